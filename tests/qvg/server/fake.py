"""A small server on a real socket that speaks as much of ComfyUI's HTTP as `qvg run` does, and can be told to misbehave.

It opens no websocket; what comes over one is tested against a real ComfyUI in tests/integration.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Reply = tuple[int, Any]


def success(outputs: dict[str, Any], cached: tuple[str, ...] = ()) -> dict[str, Any]:
    """An entry in /history."""
    messages = [["execution_start", {}], ["execution_cached", {"nodes": list(cached)}], ["execution_success", {}]]
    return {"outputs": outputs, "status": {"status_str": "success", "completed": True, "messages": messages}}


def error(node: str, message: str, outputs: dict[str, Any]) -> dict[str, Any]:
    """An entry in /history of a run in which a node failed."""
    data = {"node_id": node, "node_type": "X", "exception_message": message, "exception_type": "ValueError"}
    return {"outputs": outputs, "status": {"status_str": "error", "completed": False, "messages": [["execution_error", data]]}}


class FakeComfyUI:
    """What is queued stays running until a test puts it into `history`. `on_prompt` is called with the id of what was queued."""

    def __init__(self) -> None:
        self.history: dict[str, Any] = {}
        self.running: list[str] = []
        self.pending: list[str] = []
        self.files: dict[str, bytes] = {}
        self.inputs: dict[str, Any] = {"required": {"frames": ["INT", {}]}, "optional": {"fps": ["FLOAT", {}]}}  # of every class
        self.posts: list[tuple[str, Any]] = []
        self.on_prompt: Callable[[str], Reply | None] = lambda prompt_id: None
        self.drop_answer = self.cut_download = False
        self.looks = 0  # how often somebody has looked into the queue
        self._then: dict[int, Callable[[], Any]] = {}
        self._in_silence: Callable[[], Any] | None = None
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen; again on the same port after `stop`."""
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                call, fake._in_silence = fake._in_silence, None
                if call is None:
                    fake._get(self)
                else:
                    call()

            def do_POST(self) -> None:
                fake._post(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Be gone."""
        self._http.shutdown()
        self._http.server_close()

    def when_looked_for(self, call: Callable[[], Any], times: int = 1) -> None:
        """Do this as soon as somebody has looked into the queue, so many times, and knows that the run is there."""
        self._then[self.looks + times] = call

    def fall_silent(self, call: Callable[[], Any]) -> None:
        """Do this as soon as a question was left without an answer; the next ones are answered."""
        self._in_silence = call

    def finish(self, prompt_id: str, entry: dict[str, Any]) -> None:
        """The run has ended."""
        self.history[prompt_id] = entry
        self.running = [each for each in self.running if each != prompt_id]

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        if url.path == "/system_stats":
            self._reply(request, 200, {"system": {"comfyui_version": "0.0.fake"}})
        elif url.path.startswith("/history/"):
            name = url.path.split("/")[-1]
            self._reply(request, 200, {name: self.history[name]} if name in self.history else {})
        elif url.path == "/queue":
            entries = [[[number, name] for number, name in enumerate(names)] for names in (self.running, self.pending)]
            self._reply(request, 200, {"queue_running": entries[0], "queue_pending": entries[1]})
            self.looks += 1
            self._then.pop(self.looks, lambda: None)()
        elif url.path.startswith("/object_info/"):
            self._reply(request, 200, {url.path.split("/")[-1]: {"input": self.inputs}})
        elif url.path == "/view" and (body := self.files.get(parse_qs(url.query)["filename"][0])) is not None:
            self._send(request, body)
        else:
            self._reply(request, 404, {})

    def _send(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if self.cut_download else body)
        self.cut_download = False

    def _post(self, request: BaseHTTPRequestHandler) -> None:
        data = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        self.posts.append((request.path, data))
        if request.path == "/queue":
            self.pending = [name for name in self.pending if name not in data["delete"]]
        elif request.path == "/interrupt" and data.get("prompt_id") in self.running:
            self.finish(data["prompt_id"], error("1", "interrupted", {}))
        elif request.path == "/prompt":
            name = data["prompt_id"]
            reply = self.on_prompt(name)
            if reply is not None:
                self._reply(request, *reply)
                return
            if name not in self.history and name not in self.pending:
                self.running.append(name)
            if self.drop_answer:
                self.drop_answer = False
                return
            self._reply(request, 200, {"prompt_id": name, "number": 1, "node_errors": {}})
            return
        self._reply(request, 200, {})

    def _reply(self, request: BaseHTTPRequestHandler, code: int, data: Any) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        request.send_response(code)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)
