"""`qvg run`: from a workflow file to outputs in a folder, a report and an exit code."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import ConfigError, RunError, ServerError, shown
from .address import server_url
from .connection import Server
from .display import Display
from .login import login_headers
from .outputs import Outputs
from .prompt import check_input, load_prompt, named_files, override, use_listed_names
from .run import RefusedError, Run, answered_from_cache, failure

DEFAULT_TIMEOUT_SECONDS = 60.0
EXIT_CODES = {"done": 0, "failed": 1, "refused": 2, "gone": 3, "interrupted": 130}
EXIT_CODES_TEXT = """exit codes:
  0    done, all outputs are in the folder
  1    the run failed: a node's error, an output that could not be fetched, or somebody stopped it on the server
  2    a wrong argument or file, or a workflow that the server refuses; nothing was run
  3    no ComfyUI answers, or it was gone for longer than --timeout, or it was restarted
  130  interrupted (Ctrl-C); the run was taken off the server, other people's were not touched"""


@dataclass
class Outcome:
    """How a run ended; what --json prints."""

    status: str = "failed"
    exit_code: int = 1
    server: str = ""
    prompt_id: str = ""
    seconds: float = 0.0
    messages: list[str] = field(default_factory=list)
    files: list[dict[str, str]] = field(default_factory=list)
    texts: list[dict[str, str]] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)

    def end(self, status: str, *messages: str) -> Outcome:
        """Note how it ended."""
        self.status, self.exit_code = status, EXIT_CODES[status]
        self.messages += messages
        return self


def run_workflow(
    workflow: Path,
    server: str,
    settings: Sequence[str],
    out: Path,
    timeout_seconds: float,
    as_json: bool = False,
    headers: Sequence[str] = (),
) -> int:
    """Run a workflow file on a server and fetch what it makes. Everything but the result goes to stderr. -> exit code"""
    outcome = Outcome()
    run: Run | None = None
    started = time.monotonic()
    try:
        run = _prepared(outcome, workflow, server, settings, out, timeout_seconds, headers)
        _perform(outcome, run)
    except ConfigError as error:
        outcome.end("refused", str(error))
    except KeyboardInterrupt:
        _end_interrupted(outcome, run)
    except ServerError as error:
        outcome.end("gone", str(error))
    outcome.seconds = round(time.monotonic() - started, 2)
    _report(outcome, out, as_json)
    return outcome.exit_code


def _prepared(
    outcome: Outcome,
    workflow: Path,
    server: str,
    settings: Sequence[str],
    out: Path,
    timeout_seconds: float,
    headers: Sequence[str],
) -> Run:
    """A run of which the server knows nothing yet. ConfigError, ServerError."""
    if not 0 <= timeout_seconds < float("inf"):
        rule = f"must be a number of seconds from 0; leave it out for {DEFAULT_TIMEOUT_SECONDS:g}"
        raise ConfigError(f"timeout is {timeout_seconds:g}, but {rule}")
    prompt = load_prompt(workflow)
    fresh = {node: set(step["inputs"]) for node, step in prompt.items()}
    changed = [override(prompt, setting) for setting in settings]
    display = Display()
    connection = Server(server_url(server), timeout_seconds, display.say, login_headers(headers, server))
    outcome.server = connection.url
    version = connection.identify()
    for node, name in changed:
        if name not in fresh[node]:
            check_input(prompt, node, name, _about(connection, prompt[node]["class_type"]))
    for kind in named_files(prompt):
        use_listed_names(prompt, kind, _about(connection, kind))
    outputs = Outputs(connection, prompt, out)
    outputs.prepare()
    outcome.files, outcome.texts = outputs.files, outputs.texts
    display.say(f"{workflow.name} on ComfyUI {version} at {connection.url}")
    run = Run(connection, prompt, outputs, display)
    outcome.prompt_id = run.id
    return run


def _about(connection: Server, kind: str) -> Any:
    """What the server says of a class of nodes; nothing where it has none of that name. ServerError."""
    return connection.get(f"/object_info/{quote(kind, safe='')}")


def _perform(outcome: Outcome, run: Run) -> None:
    try:
        _drive(outcome, run)
    finally:
        run.close()
        outcome.messages += [failed["message"] for failed in run.outputs.failures]


def _drive(outcome: Outcome, run: Run) -> None:
    """Queue, wait, fetch; note how it ended."""
    try:
        run.queue()
        entry = run.wait()
        outcome.cached = answered_from_cache(entry)
        outputs = entry.get("outputs")
        for node, output in outputs.items() if isinstance(outputs, dict) else ():
            run.outputs.take(node, output)
    except RefusedError as error:
        outcome.end("refused", f"{error}:", *(f"  {complaint['message']}" for complaint in error.complaints))
    except RunError as error:
        outcome.end("failed", str(error))
    except ServerError as error:
        outcome.end("gone", f"{error}; {_so_far(run.outputs)}")
    except KeyboardInterrupt:
        _end_interrupted(outcome, run)
    else:
        failed = failure(run.prompt, entry)
        clean = failed is None and not run.outputs.failures
        outcome.end("done" if clean else "failed", *([failed["message"]] if failed else []))


def _end_interrupted(outcome: Outcome, run: Run | None) -> None:
    """Take the run off the server, if it was handed over at all, and note that."""
    if run is None or not run.tries:
        outcome.end("interrupted", "interrupted before anything was queued")
    else:
        outcome.end("interrupted", f"interrupted; {_cancel(run)}; {_so_far(run.outputs)}")


def _cancel(run: Run) -> str:
    """What became of a run that is not wanted any more, in words."""
    run.display.say("stopping the run on the server; Ctrl-C again leaves that to the server")
    try:
        return run.cancel()
    except KeyboardInterrupt:
        return "the run may go on on the server"


def _so_far(outputs: Outputs) -> str:
    count = len(outputs.files)
    if not count:
        return "no output has come"
    return f"{count} output{'s' if count > 1 else ''} had come and {'are' if count > 1 else 'is'} in {outputs.folder}"


def _report(outcome: Outcome, out: Path, as_json: bool) -> None:
    """What is to be said in the end: errors to stderr, the result to stdout."""
    for number, message in enumerate(outcome.messages):
        text = _printable(message)
        print(text if number or outcome.status == "interrupted" else f"error: {text}", file=sys.stderr)
    if as_json:
        print(json.dumps(asdict(outcome), indent=2))
        return
    for file in outcome.files:
        print(file["path"])
    if outcome.status == "done":
        outputs = "1 output" if len(outcome.files) == 1 else f"{len(outcome.files)} outputs"
        print(f"done in {outcome.seconds:.1f} s, {outputs} in {out}", file=sys.stderr)


def _printable(message: str) -> str:
    """A message with what a server or a node wrote in it: lines that a terminal shows and does not obey, not without end."""
    lines = message.splitlines() or [""]
    return "\n".join([*(shown(line.expandtabs(4), 2000) for line in lines[:60]), *(["..."] if len(lines) > 60 else [])])
