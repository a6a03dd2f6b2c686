"""What a sampling run leaves behind for the report nodes. Knows nothing of ComfyUI."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ..qvg import CacheBytes, QVGConfig
from ..qvg.cache.offload import Placement

# Runs that are remembered; a record takes about 100 bytes per latent frame.
MAX_RECORDS = 256


@dataclass(frozen=True)
class PromptBytes:
    """What cross-attention keeps of a prompt: bytes of all layers, and the keys of one, as the model got them and as it reads
    them; and the share of these that it did read on average (`prompt_rows`)."""

    nbytes: int = 0
    keys: int = 0
    keys_read: int = 0
    share: float = 1.0

    def text(self) -> str:
        """For people."""
        merged = "" if self.keys == self.keys_read else f" for {self.keys}, its padding merged"
        return f"prompt: {self.nbytes / 1e6:.2f} MB for cross-attention, {self.keys_read} keys a layer{merged}" + (
            f"; {self.share:.0%} of them were read" if self.share < 1 else ""
        )


@dataclass(frozen=True)
class RunRecord:
    """One finished run; tuples have an entry per latent frame. `exact_bytes`: all frames so far at 16 bits per value, or those
    that are to be remembered. `span_frames`: of a whole span, as the codec, the model's blocks and the window left it.
    `placement`: where the bytes at the end are; `prompt`: what cross-attention keeps beside the cache, of a model with a prompt;
    `remembers`: what a world remembers, where that is chosen; `codebooks`: what was begun of them, and what more would take;
    `merged`: tokens and the rows that they became; `study`: the method of a study, where its frames are not all kept alike."""

    model: str
    device: str
    config: QVGConfig
    span_frames: int
    cache_bytes: tuple[int, ...]
    exact_bytes: tuple[int, ...]
    seconds: tuple[float, ...]
    components: CacheBytes
    workspace_bytes: int
    given_frames: int
    read: tuple[str, ...] = ()
    placement: Placement | None = None
    prompt: PromptBytes = PromptBytes()
    remembers: str = ""
    codebooks: str = ""
    merged: str = ""
    study: str = ""

    @property
    def frames(self) -> int:
        """Latent frames of the video."""
        return len(self.cache_bytes)

    @property
    def ratio(self) -> float:
        """Bytes of all frames at 16 bits per value over the bytes in memory at the end, exact frames included."""
        # Of a world of one chunk, nothing is remembered.
        return self.exact_bytes[-1] / self.cache_bytes[-1] if self.cache_bytes[-1] else 1.0

    @property
    def seconds_per_frame(self) -> float:
        """Mean over the frames that were generated."""
        generated = self.seconds[self.given_frames :]
        return sum(generated) / max(1, len(generated))

    def label(self) -> str:
        """A few words for captions."""
        if self.study:
            return self.study
        merged = ", merged" if self.config.merges else f", {self.config.sparse:g} read" if self.config.skips else ""
        if self.config.codec == "none":
            window = self.config.window_frames
            return f"exact{merged}" if window is None else f"exact, {window} frames"
        return f"{self.config.codec.upper()}, {_bits(self.config, short=True)}{merged}"

    def headline(self) -> str:
        """The report in one line."""
        sizes = f"{self.cache_bytes[-1] / 1e6:.1f} MB instead of {self.exact_bytes[-1] / 1e6:.1f} MB"
        return f"{sizes} ({self.ratio:.1f}x), {self.seconds_per_frame:.2f} s/frame, {self.frames} frames"

    def text(self) -> str:
        """The report for people. MB are 10^6 bytes."""
        parts = ", ".join(f"{name} {size / 1e6:.2f}" for name, size in self.components.by_component().items())
        everything = f"all {self.frames} frames" if not self.remembers else "what it remembers"
        lines = [
            f"{self.model}, {self.frames} latent frames ({self.given_frames} given), {self.device}",
            f"cache: {self.study or _settings(self.config, self.span_frames)}",
            f"memory at the end {self.cache_bytes[-1] / 1e6:.2f} MB, at its peak {max(self.cache_bytes) / 1e6:.2f} MB; "
            f"{'all frames' if not self.remembers else everything} at 16 bits per value: {self.exact_bytes[-1] / 1e6:.2f} MB",
            f"ratio {self.ratio:.2f}x over {everything}, exact frames included",
            f"holds, in MB: {parts}; attention's workspace beside it {self.workspace_bytes / 1e6:.2f}",
            *([self.codebooks] if self.codebooks else []),
            *([self.merged] if self.merged else []),
            *self._places(),
            *([self.prompt.text()] if self.prompt.keys else []),
            *(f"read: {line}" for line in self.read),
            *([self.remembers] if self.remembers else []),
            f"{self.seconds_per_frame:.3f} s per generated frame",
        ]
        if self.config.codec != "none" and not self.components.codes:
            lines.append(self._why_no_codes())
        return "\n".join(lines)

    def _why_no_codes(self) -> str:
        """A window lets whole spans go, and has room for one before it is full."""
        if self.config.window_frames is not None and self.frames >= self.config.window_frames:
            return (
                "No encoded frames are left at the end: the window has just let a whole span go. Shorter spans leave one by one."
            )
        if self.config.merges:
            return "Nothing was encoded: fewer rows wait than a span takes. They are kept exactly, at 16 bits per value."
        return "Nothing was encoded: the video is too short. Generate more frames, or use shorter spans."

    def _places(self) -> list[str]:
        """Where packed spans live, if that is not with the rest."""
        if self.placement is None or not self.config.offloads:
            return []
        if not self.placement.home:
            why = f"the model runs on {self.device}" if self.components.codes else "nothing is encoded"
            return [f"offload cpu: nothing to move, {why}"]
        sizes = (size / 1e6 for size in (self.placement.home, self.placement.device, self.placement.copied))
        return ["offload cpu: {:.2f} MB in CPU memory; {:.2f} MB on the device, and copies of at most {:.2f} MB".format(*sizes)]


def _settings(config: QVGConfig, span_frames: int) -> str:
    window = "all frames" if config.window_frames is None else f"a window of {config.window_frames} frames"
    frames = f"first {config.sink_frames} and last {config.recent_frames} frames exact, {window} seen"
    if config.merges:
        frames += f", merged from {config.merge:g} on (key: {config.merge_key})"
    if config.skips:
        frames += f", {config.sparse:g} of the others read"
    if config.codec == "none":
        return f"exact, {frames}" if config.merges or config.skips else f"exact, {window} seen"
    return f"{config.codec}, {_codes(config)}, spans of {span_frames} frames, {frames}, seed {config.seed}"


def _codes(config: QVGConfig) -> str:
    if config.codec == "qvg":
        return f"{_bits(config)}, {config.num_stages} stage(s) of {_clusters(config)}, groups of {config.group_size}"
    if config.codec == "klt":
        basis = {"klt": "a learned basis", "hadamard": "a fixed basis (hadamard)"}[config.transform]
        return f"{_bits(config)}, {basis}, {_clusters(config)}, a codebook per {config.spans_per_codebook} span(s)"
    return f"{_bits(config)}, groups of {config.group_size}"


def _clusters(config: QVGConfig) -> str:
    return "automatic clusters" if config.clusters == "auto" else f"{config.clusters} clusters"


def _bits(config: QVGConfig, short: bool = False) -> str:
    if config.bits_v is None or config.bits_v == config.bits:
        return f"{config.bits:g} bits"
    if short:
        return f"{config.bits:g}/{config.bits_v:g} bits"
    return f"keys in {config.bits:g} and values in {config.bits_v:g} bits"


class Records:
    """The last runs, by the video they made, the model and how its cache was kept.

    Not kept with the MODEL: when memory is short ComfyUI's execution cache lets go of a MODEL before the LATENT that was sampled
    with it, and makes another one, with equal settings, for a report that is asked for later.
    """

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str, QVGConfig], RunRecord] = {}

    def add(self, samples: Tensor, run: RunRecord) -> None:
        """Remember the run that made `samples`."""
        key = (fingerprint(samples), run.model, run.config)
        self._runs.pop(key, None)
        self._runs[key] = run
        if len(self._runs) > MAX_RECORDS:
            del self._runs[next(iter(self._runs))]

    def find(self, samples: Tensor, model: str, config: QVGConfig) -> RunRecord | None:
        """The run of this model, by name, with these settings that made exactly these samples."""
        return self._runs.get((fingerprint(samples), model, config))


RECORDS = Records()


def fingerprint(samples: Tensor) -> str:
    """Shape and values of a latent, on whatever device it is."""
    values = samples.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(repr(tuple(values.shape)).encode() + values.numpy().tobytes()).hexdigest()
