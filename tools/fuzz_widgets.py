"""Every widget of every node, with values that it takes and values that it must not, typed and over a link, in a real ComfyUI.

    python tools/fuzz_widgets.py --server http://127.0.0.1:8188
    python tools/fuzz_widgets.py --server http://127.0.0.1:8188 --seed 7 --count 500

The server has this pack in its custom_nodes and tests/integration/testing_pack beside it. What a widget takes is read from its
declaration in /object_info, and from `MULTIPLES`. A value that it takes must reach the node; any other must be refused in one
sentence about this input: typed, before anything is queued; linked, by the node at its start, before what takes long has run.
The exit code says whether all were.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SECONDS = 60
LETTERS = 600
# Numbers that must be multiples, by node and input.
MULTIPLES = {
    ("QVGVideoStart", "width"): 16,
    ("QVGVideoStart", "height"): 16,
    ("QVGPlan", "width"): 16,
    ("QVGPlan", "height"): 16,
    ("QVGWorldStart", "width"): 32,
    ("QVGWorldStart", "height"): 32,
    ("QVGWorldSampler", "memory_frames"): 4,
    ("QVGWorldSampler", "recent_frames"): 4,
    ("QVGFilmStart", "frames"): 3,
    ("QVGFilmStart", "given_frames"): 3,
    ("QVGKVCache", "cache.bits_k"): 1 / 16,
    ("QVGKVCache", "cache.bits_v"): 1 / 16,
}
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
NAN, INFINITY = float("nan"), float("inf")
ODD = (
    None,
    "",
    "abc",
    "12",
    " ",
    "\u732b\n\x1b[31m",
    "x" * 100_000,
    {},
    {"a": 1},
    [],
    [1, 2, 3],
    [[1]],
    True,
    False,
    0,
    1,
    -1,
    1.5,
)
ODD_NUMBERS = (NAN, INFINITY, -INFINITY, -32, 2, 33, 850, 4128, 640_000, 10**9, 10**30, -(10**30), 1e308, 0.3)
# What ComfyUI says of it is one sentence; that it could not be converted is said with what was typed.
OURS = ("ConfigError", "CameraPathError", "UnsupportedModelError")
REACHED = "what takes long was made"


@dataclass(frozen=True)
class Widget:
    """An input of a node's. `name` as in a prompt; `setting`: what else the prompt needs for it to be there."""

    node: str
    name: str
    kind: str
    options: dict[str, Any]
    setting: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def short(self) -> str:
        """As it is called in sentences."""
        return self.name.rpartition(".")[2]


def widgets(node: str, groups: dict[str, Any], prefix: str = "", setting: dict[str, Any] | None = None) -> Iterator[Widget]:
    """All that a node has, those of every mode included."""
    setting = setting or {}
    for group in ("required", "optional"):
        for name, (kind, options) in groups.get(group, {}).items():
            if kind in WIDGETS:
                yield Widget(node, prefix + name, kind, options, setting)
            elif kind == DYNAMIC:
                yield Widget(node, prefix + name, kind, {"options": [mode["key"] for mode in options["options"]]}, setting)
                for mode in options["options"]:
                    inner = {**setting, name: mode["key"], **defaults(mode["inputs"], f"{name}.")}
                    yield from widgets(node, mode["inputs"], f"{name}.", inner)


def defaults(groups: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """What a node needs, untouched."""
    found: dict[str, Any] = {}
    for name, (kind, options) in groups.get("required", {}).items():
        if kind == DYNAMIC:
            mode = options["options"][0]
            found |= {prefix + name: mode["key"], **defaults(mode["inputs"], f"{prefix}{name}.")}
        elif kind in WIDGETS:
            found[prefix + name] = options.get("default", (options.get("options") or [None])[0])
    return found


def values(widget: Widget, dice: random.Random) -> list[Any]:
    """To try, those at the edges of its range among them."""
    found = [*ODD]
    if widget.kind in ("INT", "FLOAT"):
        low, high = widget.options["min"], widget.options["max"]
        step = MULTIPLES.get((widget.node, widget.name), 1 if widget.kind == "INT" else 0.01)
        inside = low + step * dice.randrange(max(1, int((high - low) / step)))
        found += [*ODD_NUMBERS, low, high, low - step, high + step, low + step, low + step / 2, inside]
    if widget.kind in ("COMBO", DYNAMIC):
        found += widget.options["options"][:3]
    return found


def taken(widget: Widget, value: Any, linked: bool) -> bool:
    """Whether the widget takes it. What is typed, ComfyUI converts first: "12" to 12, 1.5 to 1, 0 to false, all to text."""
    kind, options = widget.kind, widget.options
    if kind in ("COMBO", DYNAMIC):
        return isinstance(value, str) and value in options["options"]
    if isinstance(value, list) and not linked:
        return False
    if kind == "STRING":
        return isinstance(value, str) or not linked
    if kind == "BOOLEAN":
        return isinstance(value, bool) or not linked
    if linked:
        number = isinstance(value, int | float) and not isinstance(value, bool) and (kind == "FLOAT" or isinstance(value, int))
        return number and _fits(widget, value)
    try:
        return _fits(widget, int(value) if kind == "INT" else float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _fits(widget: Widget, value: float) -> bool:
    low, high = widget.options["min"], widget.options["max"]
    multiple = MULTIPLES.get((widget.node, widget.name))
    return bool(low <= value <= high and (multiple is None or value % multiple == 0))


class Server:
    """A ComfyUI."""

    def __init__(self, url: str):
        self.url = url

    def get(self, path: str) -> Any:
        """What it answers, read as JSON."""
        with urllib.request.urlopen(self.url + path, timeout=SECONDS) as answer:
            return json.load(answer)

    def queue(self, prompt: dict[str, Any]) -> tuple[int, Any]:
        """Status and answer."""
        data = json.dumps({"prompt": prompt}).encode()
        request = urllib.request.Request(self.url + "/prompt", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def ended(self, prompt_id: str) -> dict[str, Any]:
        """What stopped a prompt; {} where nothing did. TimeoutError: it goes on and on."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}").get(prompt_id)
            if history:
                messages = history["status"]["messages"]
                return next((data for kind, data in messages if kind == "execution_error"), {})
            time.sleep(0.02)
        raise TimeoutError(f"it has not ended after {SECONDS} s")


def prompt_for(widget: Widget, value: Any, linked: bool, declared: dict[str, Any]) -> dict[str, Any]:
    """The node alone, what it needs that takes long, and an end."""
    groups = declared[widget.node]["input"]
    inputs = {**defaults(groups), **widget.setting}
    steps: dict[str, Any] = {"slow": {"class_type": "TestingSlow", "inputs": {}}}
    for name, (kind, _) in groups.get("required", {}).items():
        if kind == "QVG_CAMERA":
            steps["camera"] = {"class_type": "QVGCameraPath", "inputs": {"path": "d-14,s-11", "frames": 8}}
            inputs[name] = ["camera", 0]
        elif kind not in (*WIDGETS, DYNAMIC):
            inputs[name] = ["slow", 0]
    if widget.node == "QVGWorldStart":
        inputs["start"] = "text"
    if widget.node == "QVGCameraPoses" and widget.name != "poses":
        steps["camera"] = {"class_type": "QVGCameraPath", "inputs": {"path": "d-14,s-11", "frames": 8}}
        inputs["camera"] = ["camera", 0]
    inputs[widget.name] = ["value", 0] if linked else value
    if widget.kind == DYNAMIC and taken(widget, value, linked):
        mode = next(mode for mode in groups["required"][widget.name][1]["options"] if mode["key"] == value)
        inputs |= defaults(mode["inputs"], f"{widget.name}.")
    if linked:
        steps["value"] = {"class_type": "TestingValue", "inputs": {"text": json.dumps(value)}}
    steps["node"] = {"class_type": widget.node, "inputs": inputs}
    if not declared[widget.node]["output_node"]:
        steps["end"] = {"class_type": "TestingSink", "inputs": {"anything": ["node", 0]}}
    return steps


def tried(server: Server, widget: Widget, value: Any, linked: bool, declared: dict[str, Any]) -> tuple[str, str]:
    """What became of it, and what is wrong with that, "" for nothing."""
    takes = taken(widget, value, linked)
    code, answer = server.queue(prompt_for(widget, value, linked, declared))
    if code != 200 or answer.get("node_errors"):
        return "refused before the queue", _wrong_before(widget, answer, takes, linked)
    error = server.ended(answer["prompt_id"])
    return ("refused by the node" if _sentence(error) else "taken"), _wrong_after(widget, error, takes, linked)


def _wrong_before(widget: Widget, answer: Any, takes: bool, linked: bool) -> str:
    if linked:
        return f"a link was refused: {answer}"
    found = {name: node["errors"] for name, node in answer.get("node_errors", {}).items() if node["errors"]}
    errors = found.get("node", [])
    if list(found) != ["node"] or len(errors) != 1:
        return f"{[(name, error['message'], error['details']) for name in found for error in found[name]]} and not one sentence"
    (error,) = errors
    text = f"{error['message']} {error['details']}"
    if error.get("extra_info", {}).get("input_name") != widget.name:
        return f"said at another input: {text}"
    if error["type"] == "custom_validation_failed" and widget.kind == "STRING":
        return "" if len(text) < LETTERS else "too long a sentence"
    return f"refused, though it takes that: {text}" if takes else ""


def _sentence(error: dict[str, Any]) -> bool:
    return bool(error) and error["exception_type"].rpartition(".")[2] in OURS


def _wrong_after(widget: Widget, error: dict[str, Any], takes: bool, linked: bool) -> str:
    text = error.get("exception_message", "").strip()
    if error and not _sentence(error) and text != REACHED:
        return f"{error['exception_type']}: {text[:LETTERS]}"
    if len(text) >= LETTERS or "\x1b" in text:
        return f"no sentence of {len(text)} letters"
    if takes:
        return ""
    if not _sentence(error) or error["node_id"] != "node":
        return "it was taken, or what takes long was made first"
    if not linked and not text.startswith((f"{widget.short} is ", "filename_prefix")):
        return f"refused, but only when it ran: {text}"
    return "" if text.startswith(f"{widget.short} is ") else f"a sentence about something else: {text}"


def cases(declared: dict[str, Any], seed: int, count: int | None) -> list[tuple[Widget, Any, bool]]:
    """All, or `count` of them, drawn by `seed`."""
    dice = random.Random(seed)
    found = [
        (widget, value, linked)
        for name, node in sorted(declared.items())
        for widget in widgets(name, node["input"])
        for linked in ((False,) if widget.kind == DYNAMIC else (False, True))  # whose kind no link has
        for value in values(widget, dice)
    ]
    dice.shuffle(found)
    return found[:count]


def ours(server: Server) -> dict[str, Any]:
    """This pack's nodes as the server declares them."""
    return {name: node for name, node in server.get("/object_info").items() if name.startswith("QVG")}


def fuzz(server: Server, seed: int, count: int | None) -> tuple[Counter[str], list[str]]:
    """How many ended how, and what went wrong."""
    declared, ends, wrong = ours(server), Counter[str](), []
    for widget, value, linked in cases(declared, seed, count):
        try:
            end, fault = tried(server, widget, value, linked, declared)
        except (OSError, TimeoutError, ValueError) as error:
            end, fault = "no answer", f"{type(error).__name__}: {error}"
        ends[end] += 1
        if fault:
            shown = repr(value) if not isinstance(value, float) or math.isfinite(value) else str(value)
            wrong.append(f"{widget.node}.{widget.name} {'linked' if linked else 'typed'} {shown[:60]}: {fault[:LETTERS]}")
    return ends, wrong


def main() -> int:
    """See the file's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="address of a ComfyUI with both packs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, help="how many cases; all without it")
    options = parser.parse_args()
    ends, wrong = fuzz(Server(options.server), options.seed, options.count)
    print("\n".join([*wrong, f"seed {options.seed}: {ends.total()} cases, {len(wrong)} wrong; {dict(ends)}"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
