"""Just enough of ComfyUI's HTTP interface, with the standard library alone."""

from __future__ import annotations

import copy
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
RUN_SECONDS = 240
CALL_SECONDS = 5
Prompt = dict[str, Any]
# Core's Wan Context Windows, untouched.
CONTEXT_WINDOWS: dict[str, Any] = {
    "context_length": 81,
    "context_overlap": 30,
    "context_schedule": "standard_static",
    "context_stride": 1,
    "closed_loop": False,
    "fuse_method": "pyramid",
    "freenoise": True,
    "retain_first_frame": False,
    "split_conds_to_windows": False,
}


@dataclass(frozen=True)
class Result:
    """How a prompt ended."""

    status: str
    messages: list[Any]
    outputs: dict[str, Any]

    @property
    def error(self) -> str:
        """What the node said, if one failed."""
        return next((data["exception_message"] for kind, data in self.messages if kind == "execution_error"), "")

    def cached(self) -> set[str]:
        """Ids of nodes whose outputs came out of the cache."""
        return {node for kind, data in self.messages if kind == "execution_cached" for node in data["nodes"]}


class Client:
    """A server at `url` whose folders are under `base`."""

    def __init__(self, url: str, base: Path, process: subprocess.Popen[bytes]):
        self.url, self.base, self.process = url, base, process

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, data: Any) -> tuple[int, Any]:
        """Status code and what was answered."""
        request = urllib.request.Request(self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                code, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            code, body = error.code, error.read()
        return code, json.loads(body) if body else None

    def is_up(self) -> bool:
        try:
            return bool(self.get("/system_stats"))
        except OSError:
            return False

    def log(self) -> str:
        return (self.base / "log").read_text(encoding="utf-8", errors="replace")

    def forget(self) -> None:
        """Empty the execution cache and unload models."""
        self.free(free_memory=True)

    def free(self, free_memory: bool) -> None:
        """Unload models, and empty the execution cache too; done before the next prompt."""
        # A worker that is just about to sleep misses the call, and sleeps for up to 1,000 seconds: called until it hears.
        called = float("-inf")

        def freed() -> bool:
            nonlocal called
            if time.monotonic() - called > CALL_SECONDS:
                self.post("/free", {"unload_models": True, "free_memory": free_memory})
                called = time.monotonic()
            return not self.get("/testing/flags")

        self.until(freed, "the memory to be freed")

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for something to be true."""
        deadline = time.monotonic() + RUN_SECONDS
        while not true():
            assert time.monotonic() < deadline and self.process.poll() is None, f"waited for {what}:\n{self.log()[-4000:]}"
            time.sleep(0.1)

    def until_logged(self, text: str, seen: int) -> None:
        """Wait until the log, behind its first `seen` letters, has this line."""
        self.until(lambda: f"{text}\n" in self.log()[seen:], text)

    def queue(self, prompt: Prompt) -> str:
        code, answer = self.post("/prompt", {"prompt": prompt})
        # A prompt of which a part is valid runs that part.
        assert code == 200 and not answer["node_errors"], answer
        return str(answer["prompt_id"])

    def wait(self, prompt_id: str) -> Result:
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}").get(prompt_id)
            if history:
                return Result(history["status"]["status_str"], history["status"]["messages"], history["outputs"])
            time.sleep(0.2)
        raise TimeoutError(f"no result after {RUN_SECONDS} s:\n{self.log()[-4000:]}")

    def run(self, prompt: Prompt) -> Result:
        return self.wait(self.queue(prompt))

    def said(self, prompt: Prompt) -> dict[str, Any]:
        """What TestingSay has to say after this prompt's sampler, and the report's text as "report"."""
        prompt = {name: step for name, step in prompt.items() if step["class_type"] != "SaveVideo"}
        prompt["say"] = {"class_type": "TestingSay", "inputs": {"samples": [node(prompt, "SamplerCustomAdvanced"), 0]}}
        result = self.run(prompt)
        assert result.status == "success", result.messages
        said: dict[str, Any] = json.loads(result.outputs["say"]["text"][0])
        return said | {"report": result.outputs[node(prompt, "QVGCacheReport")]["text"][0]}

    @contextmanager
    def new_files(self, folder: str) -> Iterator[list[Path]]:
        """Files that are in this folder of the server's at the end and were not before."""
        place, files = self.base / folder, list[Path]()
        before = set(place.iterdir()) if place.is_dir() else set()
        yield files
        files += sorted(set(place.iterdir()) - before) if place.is_dir() else []

    def latent(self, prompt: Prompt) -> torch.Tensor:
        """What the sampler of this prompt made, run alone."""
        prefix = f"latents/{time.monotonic_ns()}"
        wanted = {name: step for name, step in prompt.items() if step["class_type"] not in ("SaveVideo", "QVGCacheReport")}
        sampler = node(prompt, "SamplerCustomAdvanced")
        wanted["save"] = {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": prefix}}
        result = self.run(wanted)
        assert result.status == "success", result.messages
        (file,) = (self.base / "output").glob(f"{prefix}*.latent")
        return load_file(str(file))["latent_tensor"]


def workflow(name: str = "demo_world", frames: int = 20, span_frames: int = 6) -> Prompt:
    """A workflow of ours, shortened."""
    prompt: Prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    prompt[node(prompt, "QVGCameraPath")]["inputs"].update(frames=frames, path="d-4,a-4")
    prompt[node(prompt, "QVGKVCache")]["inputs"]["span_frames"] = span_frames
    return prompt


def node(prompt: Prompt, kind: str) -> str:
    """Id of the one node of this class."""
    (name,) = (name for name, step in prompt.items() if step["class_type"] == kind)
    return name


def with_mode(prompt: Prompt, mode: str, **widgets: Any) -> Prompt:
    """With another mode of the cache node, and that mode's widgets in place of the ones before."""
    prompt = copy.deepcopy(prompt)
    inputs = prompt[node(prompt, "QVGKVCache")]["inputs"]
    for name in [name for name in inputs if name.startswith("cache.")]:
        del inputs[name]
    inputs.update({"cache": mode, **{f"cache.{name}": value for name, value in widgets.items()}})
    return prompt


def between(prompt: Prompt, kind: str, before: str = "QVGKVCache", **inputs: Any) -> Prompt:
    """With another node on the MODEL's way: in front of the node of class `before`, or behind the cache node ("")."""
    prompt, name = copy.deepcopy(prompt), f"{kind} {before}"
    cache = node(prompt, "QVGKVCache")
    if before:
        place = prompt[node(prompt, before)]["inputs"]
        source, place["model"] = place["model"], [name, 0]
    else:
        source = [cache, 0]
        for step in prompt.values():
            step["inputs"] = {key: [name, 0] if value == source else value for key, value in step["inputs"].items()}
    prompt[name] = {"class_type": kind, "inputs": {"model": source, **inputs}}
    return prompt


def bypassed(prompt: Prompt, kind: str = "QVGKVCache") -> Prompt:
    """What the page sends when the node is bypassed: its consumers get what it got."""
    prompt, name = copy.deepcopy(prompt), node(prompt, kind)
    source = prompt.pop(name)["inputs"]["model"]
    for step in prompt.values():
        step["inputs"] = {key: source if value == [name, 0] else value for key, value in step["inputs"].items()}
    return prompt
