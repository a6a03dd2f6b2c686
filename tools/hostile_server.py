"""`qvg run` against a server that answers as no ComfyUI does, from a seed: no tracebacks, no hangs, nothing outside its folder.

    python tools/hostile_server.py                      100 answers, minutes of waiting and little work
    python tools/hostile_server.py --seed 7 --count 300

The server behaves as ComfyUI but for one answer: JSON of another shape, without end or nested so; answers that come a byte
at a time, that break off, that lead elsewhere; websocket frames of every kind; names and texts that a terminal would obey. Every
run must end within 30 seconds (waiting is shortened to one), with one of `qvg run`'s exit codes, its JSON on stdout, a sentence
where it failed, and nothing on stderr that is not printable. The exit code says whether all did.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import io
import json
import random
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bootstrap_package import comfyui_qvg  # noqa: F401  (first: it names the repository `comfyui_qvg`)
from comfyui_qvg.qvg.cli import main as qvg
from comfyui_qvg.qvg.server import command, events, http_limits, run
from watched import watched

SECONDS, MEGABYTES, LETTERS, PATIENCE = 30, 400, 40_000, 60
VIDEO = bytes(range(256)) * 400
PROMPT = {
    "1": {"class_type": "Make", "inputs": {"frames": 5, "file": "folder/a.pt"}, "_meta": {"title": "Make It"}},
    "2": {"class_type": "Save", "inputs": {"images": ["1", 0]}},
}
OUTPUTS: dict[str, Any] = {"2": {"images": [{"filename": "walk.mp4", "subfolder": "QVG", "type": "output"}], "text": ["a text"]}}
DEEP = "[" * 200_000
ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.exe"
# What stands where something else should, as JSON.
SHAPES = (
    *(
        "null",
        "[]",
        "{}",
        "0",
        '"x"',
        "[[]]",
        '{"x": 1}',
        "[1, 2]",
        "true",
        "1e999",
        "NaN",
        "",
        "{",
        "\x00",
        "[null]",
        "[[1]]",
        DEEP,
    ),
    *('{"a":' * 100_000, "9" * 5000, json.dumps(ESCAPES), '"\\ud800"', "<html>hello</html>", "[" * 900 + "]" * 900, "\xff\xfe"),
)


@dataclass
class Case:
    """What is said in place of one answer. `act` speaks for itself; without it `body` and `code` are sent."""

    name: str
    route: str
    body: bytes = b""
    code: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    act: Callable[[BaseHTTPRequestHandler], None] | None = None


# ------------------------------------------------------------------------------------------------------------- answers


def _shapes(dice: random.Random) -> Iterator[Case]:
    """JSON of another shape, everywhere, and one level down."""
    for shape in dice.sample(SHAPES, len(SHAPES)):
        route = dice.choice(["/system_stats", "/object_info", "/prompt", "/queue", "/history"])
        yield Case(f"{route} says {shape[:20]!r}", route, shape.encode("utf-8", "surrogatepass"))


def _inner(dice: random.Random) -> Iterator[Case]:
    """An entry of a history, of a queue, of a refusal, of a class, of another shape."""
    readable = [shape for shape in SHAPES if _is_json(shape)]
    places = ["outputs", "status", "messages", "node", "images", "entry", "filename", "text", "data"]
    for number, shape in enumerate(dice.sample(readable, len(readable))):
        place = places[number % len(places)]
        yield Case(f"history's {place} is {shape[:20]!r}", "/history", _history(place, shape).encode("utf-8", "surrogatepass"))
    for shape in dice.sample(readable, 4):
        yield Case(f"queue of {shape[:20]!r}", "/queue", f'{{"queue_running": [{shape}], "queue_pending": {shape}}}'.encode())
        yield Case(f"node_errors are {shape[:20]!r}", "/prompt", f'{{"node_errors": {shape}, "error": {shape}}}'.encode(), 400)
        yield Case(f"errors are {shape[:20]!r}", "/prompt", f'{{"node_errors": {{"1": {{"errors": [{shape}]}}}}}}'.encode(), 400)
        yield Case(f"input is {shape[:20]!r}", "/object_info", f'{{"Make": {{"input": {{"required": {shape}}}}}}}'.encode())


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _history(place: str, shape: str) -> str:
    """An entry, with `shape` at one of its places. RUN stands for the run's id."""
    parts = {"filename": '"walk.mp4"', "text": '["a"]', "data": "{}"}
    parts |= {place: shape} if place in parts else {}
    parts["images"] = shape if place == "images" else f'[{{"filename": {parts["filename"]}, "subfolder": "", "type": "output"}}]'
    parts["node"] = shape if place == "node" else f'{{"images": {parts["images"]}, "text": {parts["text"]}}}'
    parts["outputs"] = shape if place == "outputs" else f'{{"2": {parts["node"]}}}'
    parts["messages"] = shape if place == "messages" else f'[["execution_error", {parts["data"]}]]'
    parts["status"] = shape if place == "status" else f'{{"status_str": "error", "messages": {parts["messages"]}}}'
    return (
        f'{{"RUN": {shape if place == "entry" else ""}'
        + ("" if place == "entry" else f'{{"outputs": {parts["outputs"]}, "status": {parts["status"]}}}')
        + "}"
    )


def _http(dice: random.Random) -> Iterator[Case]:
    """Answers that do not end, that break off, that lie about their length, that lead elsewhere."""
    for route in dice.sample(["/system_stats", "/object_info", "/prompt", "/queue", "/history", "/view"], 6):
        yield Case(f"{route} drips", route, act=_drip(b"HTTP/1.0 200 OK\r\n\r\n" + b" " * 10_000))
        yield Case(f"{route} begins and stops", route, act=_drip(b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n{", 0))
    for length in ("abc", "-5", "1e9", "9" * 30, "3000000000", "0"):
        route = dice.choice(["/view", "/history", "/queue"])
        yield Case(f"{route} has {length} bytes", route, b"{}", headers={"Content-Length": length})
    yield Case("a header a byte at a time", "/queue", act=_drip(b"HTTP/1.0 200 OK\r\nX: " + b"a" * 10_000))
    yield Case("a header without end", "/history", act=_endless(b"HTTP/1.0 200 OK\r\nX: ", b"a" * 65536))
    yield Case("JSON without end", "/history", act=_endless(b"HTTP/1.0 200 OK\r\n\r\n[", b"1," * 32768))
    yield Case("chunks of nonsense", "/queue", act=_said(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}"))
    yield Case("no HTTP", "/prompt", act=_said(b"SSH-2.0-OpenSSH_9.0\r\n"))
    yield Case("nothing", "/queue", act=_said(b""))
    for place in (
        "http://127.0.0.1:1/view",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "http://[",
        "/view",
        "//example.invalid/x",
    ):
        route = dice.choice(["/view", "/history", "/prompt", "/system_stats"])
        yield Case(f"{route} leads to {place}", route, b"", dice.choice([301, 302, 303, 307]), {"Location": place})
    for code in (204, 401, 403, 404, 418, 500, 999):
        yield Case(f"code {code}", dice.choice(["/view", "/history", "/prompt", "/queue"]), b"{}", code)


def _names(dice: random.Random) -> Iterator[Case]:
    """Names and texts that a terminal would obey or a disk would not take, and very many of them."""
    for name in (
        "../../../etc/x",
        "/etc/x",
        "C:\\x",
        "a" * 100_000,
        ESCAPES,
        "\ud800",
        "",
        ".",
        "..",
        "CON",
        ".qvg-unfinished-x",
        "a\n/b",
    ):
        entry = {"outputs": {"2": {"images": [{"filename": name, "subfolder": name}], "text": [name]}}, "status": {}}
        yield Case(f"a file called {name[:20]!r}", "/history", json.dumps({"RUN": entry}).encode())
    many = {"outputs": {"2": {"text": [f"text {number}" for number in range(300)]}}, "status": {}}
    yield Case("300 texts", "/history", json.dumps({"RUN": many}).encode())
    failed = {"exception_message": ESCAPES * 20_000, "node_id": ESCAPES}
    error = {"outputs": {}, "status": {"status_str": "error", "messages": [["execution_error", failed]]}}
    yield Case("an error of megabytes", "/history", json.dumps({"RUN": error}).encode())
    yield Case("a version to obey", "/system_stats", json.dumps({"system": {"comfyui_version": ESCAPES * 500}}).encode())
    refused = {"node_errors": {ESCAPES: {"errors": [{"message": ESCAPES, "details": ESCAPES * 9000}]}}}
    yield Case("a refusal to obey", "/prompt", json.dumps(refused).encode(), 400)


def _sockets(dice: random.Random) -> Iterator[Case]:
    """What comes over a websocket."""
    events_ = [
        {"type": "text", "data": {"x": 1}},
        {"type": "a node's text", "data": {}},
        {"type": 3, "data": {}},
        {"type": "executing", "data": {"node": ESCAPES, "prompt_id": "RUN"}},
        {"type": "executed", "data": {"node": "2", "output": [1], "prompt_id": "RUN"}},
        *({"type": "progress_state", "data": {"prompt_id": "RUN", "nodes": nodes}} for nodes in (3, [], {"1": 3}, {"1": {}})),
        {"type": "progress_state", "data": {"prompt_id": "RUN", "nodes": {"1": {"state": "running", "value": "x", "max": []}}}},
        {"type": "progress_state", "data": {"prompt_id": "RUN", "nodes": {"1": {"state": "running", "value": -1, "max": 1e300}}}},
    ]
    for event in events_:
        yield Case(f"event {str(event)[:60]}", "/ws", act=_speaks(_frame(1, json.dumps(event).encode())))
    yield Case("a deep event", "/ws", act=_speaks(_frame(1, DEEP.encode())))
    yield Case("no UTF-8", "/ws", act=_speaks(_frame(1, b"\xff\xfe")))
    yield Case("a text of a node", "/ws", act=_speaks(_frame(2, struct.pack(">II", 3, 2**31) + ESCAPES.encode())))
    yield Case("a frame of 2^60 bytes", "/ws", act=_speaks(struct.pack(">BBQ", 0x82, 127, 2**60) + b"x" * 70_000))
    yield Case("a frame a byte at a time", "/ws", act=_speaks(struct.pack(">BBH", 0x82, 126, 60_000), 0.2))
    yield Case("pings", "/ws", act=_speaks(_frame(9, b"x") * 20_000))
    yield Case("frames that go on", "/ws", act=_speaks(_frame(1, b"x", False) + _frame(0, b"x" * 60_000, False) * 2_000))
    yield Case("no frames", "/ws", act=_speaks(random.Random(1).randbytes(4000)))
    yield Case("a handshake a byte at a time", "/ws", act=_drip(b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"a" * 9000))
    yield Case("a handshake of nonsense", "/ws", act=_said(b"HTTP/1.1 101 \r\nnonsense\r\n: x\r\n\r\n"))
    yield Case("a handshake that leads elsewhere", "/ws", b"", 302, {"Location": "ws://127.0.0.1:1/"})
    yield Case("dropped at once, always", "/ws", act=_speaks(b""))


def _frame(opcode: int, data: bytes, last: bool = True) -> bytes:
    """A websocket's frame."""
    size = struct.pack(">BBQ", opcode | 0x80 * last, 127, len(data))
    return size + data


def _said(data: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda request: request.wfile.write(data) and None


def _drip(data: bytes, seconds: float = 0.2) -> Callable[[BaseHTTPRequestHandler], None]:
    """A byte at a time; without seconds, all and then nothing more."""

    def act(request: BaseHTTPRequestHandler) -> None:
        for place in range(len(data)):
            request.wfile.write(data[place : place + 1])
            request.wfile.flush()
            time.sleep(seconds if place > 18 else 0)
        time.sleep(PATIENCE)

    return act


def _endless(start: bytes, more: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def act(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(start)
        while True:
            request.wfile.write(more)

    return act


def _speaks(data: bytes, drip_seconds: float = 0.0) -> Callable[[BaseHTTPRequestHandler], None]:
    """Opens a websocket, says this, and stays silent, unless it has nothing to say."""

    def act(request: BaseHTTPRequestHandler) -> None:
        key = request.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        shake = f"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        request.wfile.write(shake.encode() + data.replace(b"RUN", request.server.run_id))  # type: ignore[attr-defined]
        while drip_seconds:
            time.sleep(drip_seconds)
            request.wfile.write(b"x")
        time.sleep(PATIENCE if data else 0)

    return act


def cases(seed: int) -> list[Case]:
    """Every answer, in an order of the seed."""
    dice = random.Random(seed)
    found = [case for kind in (_shapes, _inner, _http, _names, _sockets) for case in kind(dice)]
    return dice.sample(found, len(found))


# -------------------------------------------------------------------------------------------------------------- server


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        route = urlsplit(self.path).path
        case = self.server.case
        if not route.startswith(case.route):
            self._reply(*self._usual(route))
        elif case.act is not None:
            case.act(self)
            self.close_connection = True
        else:
            self._reply(case.code, case.body.replace(b"RUN", self.server.run_id), case.headers)

    def do_POST(self) -> None:
        data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/prompt":
            self.server.run_id = data["prompt_id"].encode()
        self.do_GET()

    def _usual(self, route: str) -> tuple[int, bytes, dict[str, str]]:
        """What ComfyUI says; a run has ended as soon as it is asked for."""
        if route == "/view":
            return 200, VIDEO, {}
        run_id = self.server.run_id.decode()
        done = {"outputs": OUTPUTS, "status": {"status_str": "success", "messages": [["execution_success", {}]]}}
        # While the queue or the websocket is on trial, the run is there a while.
        running = self.server.case.route in ("/queue", "/ws") and time.monotonic() - self.server.begun < 3
        answers: dict[str, Any] = {
            "/system_stats": {"system": {"comfyui_version": "0.0"}},
            "/prompt": {"prompt_id": run_id},
            "/queue": {"queue_running": [[0, run_id]] if running else [], "queue_pending": []},
            f"/history/{run_id}": {} if running or not run_id else {run_id: done},
            "/object_info/Make": {"Make": {"input": {"required": {"frames": ["INT"], "file": [["folder\\a.pt"]]}}}},
        }
        return (200, json.dumps(answers[route]).encode(), {}) if route in answers else (404, b"{}", {})

    def _reply(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, case: Case):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.case, self.run_id, self.begun = case, b"", time.monotonic()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # who asks hangs up


# ---------------------------------------------------------------------------------------------------------------- trial


def tried(case: Case, folder: Path) -> tuple[int | None, str]:
    """(exit code, what is wrong or "") of one run."""
    workflow, out = folder / "prompt.json", folder / "out"
    workflow.write_text(json.dumps(PROMPT), encoding="utf-8")
    server = _Server(case)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    arguments = [
        "run",
        str(workflow),
        "--server",
        f"127.0.0.1:{server.server_port}",
        "--out",
        str(out),
        "--timeout",
        "1",
        "--json",
    ]
    arguments += ["--set", "1.folder=3"] if case.route == "/object_info" else []
    said, result, codes = io.StringIO(), io.StringIO(), []
    started = time.monotonic()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(result):
        cost = watched(lambda: codes.append(qvg(arguments)), PATIENCE)
    seconds = time.monotonic() - started
    server.shutdown()
    server.server_close()
    return (codes[0] if codes else None), cost.wrong or _wrong(
        codes[0], said.getvalue(), result.getvalue(), folder, seconds, cost.megabytes
    )


def _wrong(code: int, said: str, result: str, folder: Path, seconds: float, megabytes: float) -> str:
    outcome = json.loads(result)
    out = folder / "out"
    files = sorted(out.iterdir()) if out.exists() else []
    strangers = [path.name for path in folder.iterdir() if path.name not in ("prompt.json", "out")]
    for condition, what in (
        (code not in command.EXIT_CODES.values() or code != outcome["exit_code"], f"exit code {code}"),
        (code and not any(message.strip(" :") for message in outcome["messages"]), "it failed without a word"),
        (
            any(message.rstrip().endswith(":") and len(outcome["messages"]) == 1 for message in outcome["messages"]),
            f"an empty sentence: {said}",
        ),
        (not said.replace("\n", "").isprintable(), f"not fit for a terminal: {said[:500]!r}"),
        (len(said) > LETTERS, f"{len(said)} letters are said"),
        (strangers, f"files outside: {strangers}"),
        (any(not path.name.isprintable() or path.name.startswith(".qvg-unfinished") for path in files), f"files called {files}"),
        (len(files) != len(outcome["files"]), f"{len(files)} files, and {len(outcome['files'])} are named"),
        (seconds > SECONDS, f"{seconds:.0f} s"),
        (megabytes > MEGABYTES, f"{megabytes:.0f} MB"),
    ):
        if condition:
            return str(what)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--verbose", action="store_true", help="how each ended")
    options = parser.parse_args()
    http_limits.ANSWER_SECONDS = 1
    events.SHAKE_SECONDS = 1
    run.CANCEL_SECONDS = 1.0
    ends: Counter[int | None] = Counter()
    wrong, slowest, pool, seed = 0, 0.0, [], options.seed
    while len(pool) < options.count:
        pool += cases(seed)
        seed += 1000
    for number, case in enumerate(pool[: options.count]):
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            code, why = tried(case, Path(folder))
        slowest = max(slowest, time.monotonic() - started)
        ends[code] += 1
        wrong += bool(why)
        if why or options.verbose:
            print(f"{number}: {case.name!r}: {why or f'exit code {code}'}", file=sys.stderr if why else sys.stdout)
    counts = ", ".join(f"{count} with {code}" for code, count in sorted(ends.items(), key=str))
    print(f"{options.count} answers, seed {options.seed}: they ended {counts}; {wrong} wrong; at most {slowest:.1f} s for one")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
