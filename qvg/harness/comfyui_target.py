"""Any workflow in API format on a ComfyUI server: its memory is set through QVG KV Cache, and what it makes is fetched as
pictures without loss, latents and the report."""

from __future__ import annotations

import copy
import hashlib
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from ..errors import ConfigError, RunError, quoted
from ..server.address import DEFAULT_SERVER, server_url
from ..server.connection import Server
from ..server.display import Display
from ..server.login import login_headers
from ..server.outputs import Outputs
from ..server.prompt import Prompt, is_link, label, load_prompt, named_files, override, title, use_listed_names
from ..server.run import RefusedError, Run, failure
from .choices import Choice
from .phases import PhaseWatch
from .plan import Case
from .videos import Pictures, Video

CACHE_NODE, REPORT_NODE = "QVGKVCache", "QVGCacheReport"
PATIENCE_SECONDS = 60.0
# Ids of the nodes that are put in: what is fetched, and nothing else is run.
_DECODE, _PICTURES, _LATENT, _REPORT = "study_decode", "study_pictures", "study_latent", "study_report"
_ATTENDED = re.compile(r"memory at the end ([\d.]+) MB, at its peak ([\d.]+) MB;.*?: ([\d.]+) MB")
_HOLDS = re.compile(r"holds, in MB: ([^;]*); attention's workspace beside it ([\d.]+)")
_SECONDS = re.compile(r"([\d.]+) s per generated frame")
_GIVEN = re.compile(r"\d+ latent frames \((\d+) given\)")
MEMORY = "not measured: the server's memory is its own; bytes of the cache are its report's"


class Watch(Display):
    """Says nothing of single nodes, and remembers how long each ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self._running, self._started = "", 0.0

    def node(self, name: str) -> None:
        """This node runs now."""
        now = time.monotonic()
        if self._running:
            self.seconds[self._running] = self.seconds.get(self._running, 0.0) + now - self._started
        self._running, self._started = name, now


class ComfyUITarget:
    """A workflow. Options: `workflow`, `prompt_input` and `frames_input` (NODE.INPUT, as of `qvg run --set`), `seed_inputs`,
    `set` (a table of NODE.INPUT and values), `picture` and `picture_input` (a start picture, put among the server's inputs),
    `cache_node` where there are several, `given_frames` (pictures)."""

    device = torch.device("cpu")

    def __init__(self, options: Mapping[str, Any], name: str):
        self._options, self._name = options, name
        workflow = options.get("workflow")
        if not isinstance(workflow, str):
            raise ConfigError(f"target {quoted(name)} has no workflow; give the path of one in API format")
        self._prompt = load_prompt(Path(workflow))
        self._cache = self._cache_node()
        self._samples, self._vae = self._decoded()
        seeds = options.get("seed_inputs", [])
        self._seeds = [seeds] if isinstance(seeds, str) else seeds
        if not self._seeds:
            raise ConfigError(
                f"target {quoted(name)} has no seed_inputs, so its seeds would all be one; name NODE.INPUT of the noise"
            )
        for setting, value in options.get("set", {}).items():
            override(self._prompt, f"{setting}={value}")
        self._picture = self._start_picture()

    def _start_picture(self) -> tuple[str, bytes] | None:
        """Its name on a server, which is of its content, so that no other picture is written over; and the file."""
        picture, setting = self._options.get("picture"), self._options.get("picture_input")
        if picture is None and setting is None:
            return None
        if not (isinstance(picture, str) and isinstance(setting, str)):
            raise ConfigError(
                f"target {quoted(self._name)} has one of picture and picture_input; give both: a file, NODE.INPUT of Load Image"
            )
        path = Path(picture)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"picture {quoted(picture)} cannot be read ({error.strerror}); give a file, or paint those of the evaluation set"
            ) from None
        return f"qvg-study-{hashlib.sha256(content).hexdigest()[:16]}{path.suffix}", content

    def _cache_node(self) -> str:
        """The node that says how the memory is kept."""
        wanted = self._options.get("cache_node")
        found = [node for node, step in self._prompt.items() if step["class_type"] == CACHE_NODE]
        chosen = [node for node in found if wanted in (None, node, title(self._prompt, node))]
        if len(chosen) != 1:
            listed = ", ".join(label(self._prompt, node) for node in found) or "none"
            raise ConfigError(
                f"the workflow of {quoted(self._name)} has {listed} to set the method of; it needs one QVG KV Cache between "
                "model and sampler, or cache_node says which"
            )
        return chosen[0]

    def _decoded(self) -> tuple[Any, Any]:
        """Links to the sampled latents and to their VAE: what a node decodes."""
        for step in self._prompt.values():
            inputs = step["inputs"]
            if is_link(inputs.get("samples")) and is_link(inputs.get("vae")):
                return inputs["samples"], inputs["vae"]
        raise ConfigError(f"the workflow of {quoted(self._name)} decodes nothing; it needs a node such as VAE Decode")

    def check(self, case: Case) -> None:
        """ConfigError where the workflow has no such inputs."""
        self.prompt(case, None)

    def prompt(self, case: Case, choice: Choice | None) -> Prompt:
        """The workflow of one video: its inputs set, everything else that it would put out left away."""
        prompt = copy.deepcopy(self._prompt)
        # A text goes in as it is; `override` would take it apart.
        for setting, value in (
            (self._options.get("prompt_input"), case.prompt),
            (self._options.get("frames_input"), case.frames),
        ):
            if setting is not None:
                _put(prompt, setting, value)
        for setting in self._seeds:
            _put(prompt, setting, case.seed)
        if self._picture:
            _put(prompt, self._options["picture_input"], self._picture[0])
        if choice is not None:
            assert choice.node is not None, choice.name
            inputs = prompt[self._cache]["inputs"]
            for name in [name for name in inputs if name == "cache" or name.startswith("cache.")]:
                del inputs[name]
            inputs.update(choice.node)
        prompt[_DECODE] = _node("VAEDecode", samples=self._samples, vae=self._vae)
        prompt[_PICTURES] = _node("PreviewImage", images=[_DECODE, 0])
        prompt[_LATENT] = _node("SaveLatent", samples=self._samples, filename_prefix="QVG/study")
        prompt[_REPORT] = _node(REPORT_NODE, model=[self._cache, 0], latent=self._samples)
        return _needed(prompt, (_PICTURES, _LATENT, _REPORT))

    def make(self, case: Case, choice: Choice, watch: PhaseWatch, server: str = "") -> Video:
        """One video on one server. RunError where it fails there, ServerError where the server is gone."""
        prompt, display = self.prompt(case, choice), Watch()
        address = server or DEFAULT_SERVER
        connection = Server(server_url(address), PATIENCE_SECONDS, lambda text: None, login_headers([], address))
        connection.identify()
        if self._picture:
            _put(prompt, self._options["picture_input"], connection.upload(*self._picture))
        for kind in named_files(prompt):
            use_listed_names(prompt, kind, connection.get(f"/object_info/{quote(kind, safe='')}"))
        with tempfile.TemporaryDirectory(prefix="qvg-study-") as folder:
            outputs = Outputs(connection, prompt, Path(folder))
            run = Run(connection, prompt, outputs, display)
            started = time.monotonic()
            try:
                _drive(run)
            finally:
                run.close()
            return self._video(outputs, display, time.monotonic() - started, connection.url)

    def _video(self, outputs: Outputs, display: Watch, seconds: float, url: str) -> Video:
        report = next((each["text"] for each in outputs.texts if each["node"] == _REPORT), "")
        end, peak, exact, components, workspace = read_report(report)
        pictures = _pictures([Path(each["path"]) for each in outputs.files if each["node"] == _PICTURES])
        stated = _GIVEN.search(report)
        given = self._options.get("given_frames", int(stated[1]) if stated else 0)
        video = Video(pictures, min(given, len(pictures) - 1), [], components, exact, peak, {"workspace": workspace})
        video.cache_bytes = [end]
        video.latents_digest = _digest([Path(each["path"]) for each in outputs.files if each["node"] == _LATENT])
        decode = display.seconds.get("VAEDecode", 0.0)
        spoken = _SECONDS.search(report)
        video.seconds = {"denoise": sum(display.seconds.values()) - decode, "decode": decode, "wall": seconds}
        if spoken:
            video.seconds["per_generated_frame"] = float(spoken[1])
        video.memory = {"how": MEMORY}
        video.remarks.append(f"made on {url}; seconds of encoding are in those of denoising; bytes as the report rounds them")
        return video


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def _put(prompt: Prompt, setting: str, value: Any) -> None:
    """Set NODE.INPUT, found as `--set` finds it. ConfigError."""
    node, name = override(prompt, f"{setting}=0")
    prompt[node]["inputs"][name] = value


def _needed(prompt: Prompt, ends: tuple[str, ...]) -> Prompt:
    """The nodes that these come from, and no other: nothing is saved that nobody asked for."""
    found, waiting = set[str](), list(ends)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [value[0] for value in prompt[node]["inputs"].values() if is_link(value)]
    return {node: step for node, step in prompt.items() if node in found}


def _drive(run: Run) -> None:
    """Queue, wait, fetch. RunError, ServerError; whoever ends this program ends the run on the server."""
    try:
        run.queue()
        entry = run.wait()
    except RefusedError as error:
        raise RunError(f"{error}: {'; '.join(each['message'] for each in error.complaints)}") from None
    except KeyboardInterrupt:
        run.cancel()
        raise
    outputs = entry.get("outputs")
    for node, output in outputs.items() if isinstance(outputs, dict) else ():
        run.outputs.take(node, output)
    failed = failure(run.prompt, entry) or next(iter(run.outputs.failures), None)
    if failed is not None:
        raise RunError(failed["message"])


def read_report(text: str) -> tuple[int, int, int, dict[str, int], int]:
    """What QVG Cache Report says: bytes at the end, at the peak, of all frames at 16 bits; by component; of the workspace.
    RunError for a text of another version."""
    sizes, held = _ATTENDED.search(text), _HOLDS.search(text)
    if sizes is None or held is None:
        raise RunError(f"the server's QVG Cache Report says {quoted(text)}, which is not this version's; use one version on both")
    end, peak, exact = (round(float(each) * 1e6) for each in sizes.groups())
    parts = [part.rsplit(" ", 1) for part in held[1].split(", ") if part]
    return end, peak, exact, {name: round(float(size) * 1e6) for name, size in parts}, round(float(held[2]) * 1e6)


def _pictures(files: list[Path]) -> Pictures:
    """In the order of their numbers. -> uint8 [F, H, W, 3]"""
    if not files:
        raise RunError("the server gave out no pictures of the run; look into its log")
    numbered = sorted(files, key=lambda path: [int(part) for part in re.findall(r"\d+", path.stem)])
    pictures = []
    for path in numbered:
        with Image.open(path) as image:
            pictures.append(np.asarray(image.convert("RGB")))
    return np.stack(pictures)


def _digest(files: list[Path]) -> str:
    """SHA-256 of the latents' values; "" where the server gave none out that can be read."""
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                return hashlib.sha256(file.get_tensor("latent_tensor").contiguous().numpy().tobytes()).hexdigest()
        except (SafetensorError, OSError, TypeError):
            continue
    return ""
