"""One run of a workflow on a server: queued, waited for, cancelled."""

from __future__ import annotations

import time
import uuid
from typing import Any

from ..errors import RunError, ServerError
from .connection import Server, SilenceError
from .display import Display
from .events import TEXT, Event, Events
from .outputs import Outputs
from .prompt import Prompt, label, title
from .refusal import NO_REASON, Complaint, complaints

LISTEN_SECONDS = 0.5
POLL_QUEUED_SECONDS = 2.0  # how often /history is asked while events come as well; without events, at every turn
POLL_RUNNING_SECONDS = 5.0
ENDINGS = ("execution_success", "execution_error", "execution_interrupted")
MOST_LETTERS = 4000  # of a node's own error
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
        self.events = Events(server.url, self.client, server.headers)
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
        return bool(self.server.ask(f"/history/{self.id}")) or self._place(self.server.ask("/queue")) is not None

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
        if event.kind == TEXT:
            if data["node"] == self.executing:  # sent to everybody, without the prompt's id
                self.display.text(data["text"])
        elif data.get("prompt_id") != self.id:
            pass
        elif event.kind == "executing":
            self._executes(str(data.get("node") or ""))
        elif event.kind == "progress_state":
            nodes = data.get("nodes")
            states = nodes.items() if isinstance(nodes, dict) else ()
            running = {node: each for node, each in states if isinstance(each, dict) and each.get("state") == "running"}
            if running and self.executing not in running:
                self._executes(next(iter(running)))  # its start was missed
            state = running.get(self.executing, {})
            done, total = state.get("value", 0), state.get("max")
            if isinstance(done, int | float) and isinstance(total, int | float) and total:
                self.display.steps(done, total)
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
        place = self._place(queue)
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
        found = self.server.get(f"/history/{self.id}")
        if self.id in found and not isinstance(found[self.id], dict):
            raise self.server.stranger("no entry of ComfyUI's in /history")
        return found.get(self.id)

    def _place(self, queue: dict[str, Any]) -> int | None:
        """0 while running, 1 for the next in the queue and so on, None when not there. ServerError. An entry is [number, id,
        prompt, ...]."""
        try:
            if any(item[1] == self.id for item in queue["queue_running"]):
                return 0
            waiting = [item[1] for item in sorted(queue["queue_pending"], key=lambda item: item[0])]
        except (KeyError, IndexError, TypeError):
            raise self.server.stranger("no queue of ComfyUI's") from None
        return waiting.index(self.id) + 1 if self.id in waiting else None

    def cancel(self) -> str:
        """Take this run, and no other, off the server. -> what came of it, in words; nothing is raised."""
        if not self.tries:
            return "nothing was queued"
        try:
            self.server.post("/queue", {"delete": [self.id]})
            if self._place(self.server.ask("/queue")) is None:
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
    for kind, data in _messages(entry):
        node = str(data.get("node_id") or "")
        if kind == "execution_error":
            reason = str(data.get("exception_message") or "").strip() or str(data.get("exception_type") or NO_REASON)
            return {"node": node, "message": f"{label(prompt, node)}: {reason[:MOST_LETTERS]}"}
        if kind == "execution_interrupted":
            return {"node": node, "message": f"{label(prompt, node)}: somebody interrupted the run on the server"}
    status = entry.get("status")
    if isinstance(status, dict) and status.get("status_str") == "error":
        return {"node": "", "message": "the run failed on the server, whose log says why"}
    return None


def answered_from_cache(entry: dict[str, Any]) -> list[str]:
    """Ids of the nodes of a run in /history that were not run again."""
    nodes = [data.get("nodes") for kind, data in _messages(entry) if kind == "execution_cached"]
    return [str(node) for each in nodes if isinstance(each, list) for node in each]


def _messages(entry: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Kind and data of what happened in a run; what is of another shape is left out."""
    status = entry.get("status")
    found = status.get("messages") if isinstance(status, dict) else None
    pairs = [each for each in found if isinstance(each, list) and len(each) == 2] if isinstance(found, list) else []
    return [(str(kind), data) for kind, data in pairs if isinstance(data, dict)]
