"""Whatever shape an answer of a server's has, at any depth: what reads it ends in an error of ours or in nothing, and soon."""

from __future__ import annotations

import copy
import random
import time
from pathlib import Path
from typing import Any

import pytest
from comfyui_qvg.qvg.errors import ConfigError, RunError, ServerError
from comfyui_qvg.qvg.server.connection import Server
from comfyui_qvg.qvg.server.display import Display
from comfyui_qvg.qvg.server.events import Event
from comfyui_qvg.qvg.server.outputs import Outputs
from comfyui_qvg.qvg.server.prompt import check_input, use_listed_names
from comfyui_qvg.qvg.server.refusal import complaints
from comfyui_qvg.qvg.server.run import Run, answered_from_cache, failure

ODD = (
    None,
    True,
    0,
    -1,
    5,
    1.5,
    10**4000,
    "",
    "x",
    "\ud800",
    "\x1b[31m",
    "../..",
    [],
    [1],
    [[]],
    [None],
    {},
    {"a": 1},
    "a" * 5000,
)
PROMPT: dict[str, Any] = {"3": {"class_type": "A", "inputs": {"f": "x/y.safetensors"}, "_meta": {"title": "T"}}}
ENTRY = {
    "outputs": {"3": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}], "text": ["hello"]}},
    "status": {
        "status_str": "error",
        "messages": [
            ["execution_cached", {"nodes": ["3"]}],
            ["execution_error", {"node_id": "3", "exception_message": "x", "exception_type": "y"}],
        ],
    },
}
REFUSAL = {
    "error": {"type": "prompt_outputs_failed_validation", "message": "m", "details": "d", "extra_info": {"node_id": "3"}},
    "node_errors": {"3": {"errors": [{"type": "custom_validation_failed", "details": "d", "extra_info": {"input_name": "f"}}]}},
}
INFO = {
    "A": {
        "input": {
            "required": {
                "f": [["a", "b"], {}],
                "g": ["COMBO", {"options": ["x\\y.safetensors"]}],
                "c": ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "k", "inputs": {"required": {"n": ["INT", {}]}}}]}],
            }
        }
    }
}
PROGRESS = {"prompt_id": "ours", "nodes": {"3": {"value": 1, "max": 5, "state": "running"}}}
QUEUE = {"queue_running": [[0, "ours", {}, {}]], "queue_pending": [[1, "other", {}]]}


def mutated(value: Any, dice: random.Random, chance: float = 0.25) -> Any:
    """With odd things in place of some parts."""
    if dice.random() < chance:
        return copy.deepcopy(dice.choice(ODD))
    if isinstance(value, dict):
        return {key: mutated(each, dice, chance * 0.8) for key, each in value.items()}
    return [mutated(each, dice, chance * 0.8) for each in value] if isinstance(value, list) else value


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """One that asks no server: what one would answer is handed to it."""
    monkeypatch.setattr(Server, "download", lambda self, query, target: target.write_bytes(b""))
    server, made = Server("http://127.0.0.1:9", 0.0, lambda text: None), Run.__new__(Run)
    made.server, made.prompt, made.display, made.id, made.executing = server, PROMPT, Display(), "ours", ""
    made.outputs = Outputs(server, PROMPT, tmp_path)
    return made


def test_answers_of_any_shape(run: Run) -> None:
    dice = random.Random(5)
    for _ in range(400):
        entry, heard, queue = (mutated(each, dice) for each in (ENTRY, PROGRESS, QUEUE))
        calls: list[Any] = [
            lambda: complaints(PROMPT, mutated(REFUSAL, dice)),
            lambda: check_input(PROMPT, "3", "other", mutated(INFO, dice)),
            lambda: use_listed_names(copy.deepcopy(PROMPT), "A", mutated(INFO, dice)),
        ]
        if isinstance(entry, dict):
            calls += [lambda entry=entry: failure(PROMPT, entry), lambda entry=entry: answered_from_cache(entry)]
            outputs = entry.get("outputs")
            for output in outputs.values() if isinstance(outputs, dict) else ():
                calls.append(lambda output=output: run.outputs.take("3", output))
        if isinstance(heard, dict):
            calls.append(lambda heard=heard: run._hear(Event(dice.choice(("progress_state", "executing", "executed")), heard)))
        if isinstance(queue, dict):
            calls.append(lambda queue=queue: run._place(queue))
        for call in calls:
            try:
                call()
            except (ConfigError, RunError, ServerError) as error:
                assert str(error)


def test_a_hundred_thousand_inputs_of_a_node_are_looked_through_at_once() -> None:
    choices = [{"key": "k", "inputs": {"required": {f"n{number}": ["INT", {}] for number in range(100_000)}}}] * 2
    info = {"A": {"input": {"required": {"c": ["COMFY_DYNAMICCOMBO_V3", {"options": choices}]}}}}
    begun = time.process_time()
    check_input(PROMPT, "3", "c.n99999", info)
    with pytest.raises(ConfigError, match=r"has no input 'c.x'; it has c, c.n0, .*, \.\.\.$"):
        check_input(PROMPT, "3", "c.x", info)
    assert time.process_time() - begun < 10
