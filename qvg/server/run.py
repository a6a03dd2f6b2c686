"""One run of a workflow on a server: queued, waited for, cancelled."""

from __future__ import annotations

import time
import uuid
from typing import Any

from ..errors import RunError, ServerError
from .connection import Server, SilenceError
from .display import Display
from .events import Event, Events
from .outputs import Outputs
from .prompt import Prompt, label, title
from .refusal import Complaint, complaints

LISTEN_SECONDS = 0.5
POLL_QUEUED_SECONDS = 2.0  # how often /history is asked while events come as well; without events, at every turn
POLL_RUNNING_SECONDS = 5.0
ENDINGS = ("execution_success", "execution_error", "execution_interrupted")
CANCEL_SECONDS = 15.0  # an interrupt is obeyed between two passes of a model


class RefusedError(RunError):
    """The server refuses the workflow. Holds `complaints`."""

    def __init__(self, found: list[Complaint]):
        super().__init__("the server refuses the workflow")
        self.complaints = found


class Run:
    """A prompt and what has become of it.

    The id is ours, so that the run can be asked for and cancelled even if the answer of /prompt is lost.
    """

    def __init__(self, server: Server, prompt: Prompt, outputs: Outputs, display: Display):
        self.server, self.prompt, self.outputs, self.display = server, prompt, outputs, display
        self.id, self.client = str(uuid.uuid4()), uuid.uuid4().hex
        self.executing = ""
        self.tries = 0
        self.events = Events(server.url, self.client)
        if self.events.missing:
            display.say(self.events.missing)

    def queue(self) -> None:
        """Hand the prompt over. RefusedError, RunError, ServerError."""
        code, answer = self.server.patiently(self._queue_once)
        if code == 400 and isinstance(answer, dict):
            raise RefusedError(complaints(self.prompt, answer))
        if not isinstance(answer, dict):
            raise self.server.stranger(f"HTTP {code} to /prompt")
        if code != 200:
            raise RunError(f"the server could not queue the workflow (HTTP {code}); its log says why")
        if answer.get("node_errors"):
            # It would run without the outputs that these nodes spoil: not what was asked for.
            self.cancel()
            raise RefusedError(complaints(self.prompt, answer))

    def _queue_once(self) -> tuple[int, Any]:
        """Queue, unless an earlier try was heard after all."""
        if self.tries and self._known():
            return 200, {}
        self.tries += 1
        return self.server.post("/prompt", {"prompt": self.prompt, "client_id": self.client, "prompt_id": self.id})

    def _known(self) -> bool:
        return bool(self.server.ask(f"/history/{self.id}")) or _place(self.server.ask("/queue"), self.id) is not None

    def wait(self) -> dict[str, Any]:
        """-> the run's entry in /history. Outputs are fetched as they come. RunError, ServerError."""
        asked, pause = time.monotonic(), 0.0
        while True:
            event = self.events.next(LISTEN_SECONDS)
            ended = event is not None and self._hear(event)
            if not ended and time.monotonic() - asked < pause:
                continue
            entry = self._look()
            if entry is not None:
                return entry
            asked, pause = time.monotonic(), POLL_RUNNING_SECONDS if self.executing else POLL_QUEUED_SECONDS
            if ended or not self.events.connected:
                pause = 0.0
            self.events.reconnect()

    def _hear(self, event: Event) -> bool:
        """Show an event of ours. -> whether it says that the run has ended."""
        data = event.data
        if event.kind == "text":
            if data["node"] == self.executing:  # sent to everybody, without the prompt's id
                self.display.text(data["text"])
        elif data.get("prompt_id") != self.id:
            pass
        elif event.kind == "executing":
            self._executes(str(data.get("node") or ""))
        elif event.kind == "progress_state":
            running = {node: state for node, state in data.get("nodes", {}).items() if state.get("state") == "running"}
            if running and self.executing not in running:
                self._executes(next(iter(running)))  # its start was missed
            state = running.get(self.executing, {})
            if state.get("max"):
                self.display.steps(state.get("value", 0), state["max"])
        elif event.kind == "executed":
            self.outputs.take(str(data.get("node")), data.get("output"))
        return data.get("prompt_id") == self.id and event.kind in ENDINGS

    def _executes(self, node: str) -> None:
        self.executing = node
        self.display.node(title(self.prompt, node) or node)

    def _look(self) -> dict[str, Any] | None:
        """The entry in /history, or None while the run goes on. RunError, ServerError."""
        entry = self._entry()
        if entry is not None:
            return entry
        queue = self.server.get("/queue")
        place = _place(queue, self.id)
        if place is not None:
            before = max(0, place - 1) + len(queue["queue_running"])
            if place and before:
                self.display.waiting(before)
            return None
        entry = self._entry()  # it may have ended between the two questions
        if entry is None and (self.server.silences or self.events.dropped):
            raise ServerError(f"{self.server.url} answers again but does not know this run any more: it was restarted; run again")
        if entry is None:
            raise RunError("the run is neither in the server's queue nor in its history: somebody deleted it there")
        return entry

    def _entry(self) -> dict[str, Any] | None:
        entry = self.server.get(f"/history/{self.id}").get(self.id)
        return entry if isinstance(entry, dict) else None

    def cancel(self) -> str:
        """Take this run, and no other, off the server. -> what came of it, in words; nothing is raised."""
        if not self.tries:
            return "nothing was queued"
        try:
            self.server.post("/queue", {"delete": [self.id]})
            if _place(self.server.ask("/queue"), self.id) is None:
                return "the run is off the server's queue"
            self.server.post("/interrupt", {"prompt_id": self.id})
            deadline = time.monotonic() + CANCEL_SECONDS
            while time.monotonic() < deadline:
                entry = self.server.ask(f"/history/{self.id}").get(self.id)
                if entry:
                    return "the run was stopped on the server"
                time.sleep(LISTEN_SECONDS)
            return "the server was told to stop the run and has not done so yet"
        except (SilenceError, ServerError) as error:
            return f"the server could not be told ({error}) and may go on with the run"

    def close(self) -> None:
        """Stop listening and finish the display."""
        self.events.close()
        self.display.close()


def failure(prompt: Prompt, entry: dict[str, Any]) -> Complaint | None:
    """Why a run in /history failed, or None if it did not."""
    status = entry.get("status") or {}
    for kind, data in status.get("messages") or []:
        node = str(data.get("node_id") or "")
        if kind == "execution_error":
            reason = str(data.get("exception_message") or "").strip() or str(data.get("exception_type"))
            return {"node": node, "message": f"{label(prompt, node)}: {reason}"}
        if kind == "execution_interrupted":
            return {"node": node, "message": f"{label(prompt, node)}: somebody interrupted the run on the server"}
    if status.get("status_str") == "error":
        return {"node": "", "message": "the run failed on the server, whose log says why"}
    return None


def answered_from_cache(entry: dict[str, Any]) -> list[str]:
    """Ids of the nodes of a run in /history that were not run again."""
    messages = (entry.get("status") or {}).get("messages") or []
    return [str(node) for kind, data in messages if kind == "execution_cached" for node in data.get("nodes", [])]


def _place(queue: Any, prompt_id: str) -> int | None:
    """0 while running, 1 for the next in the queue and so on, None when not there. An entry is [number, id, prompt, ...]."""
    if any(item[1] == prompt_id for item in queue["queue_running"]):
        return 0
    waiting = [item[1] for item in sorted(queue["queue_pending"], key=lambda item: item[0])]
    return waiting.index(prompt_id) + 1 if prompt_id in waiting else None
