"""Quant VideoGen's protocol for LongCat-Video (arXiv 2602.02958): 73 pictures are remembered, each segment adds 20.

The library has no text encoder and no VAE: prompts are drawn, what is compared is latents, and the next segment is conditioned on
latents, not on pictures that are encoded again. The pictures that come first are the model's own, made of the prompt without a
memory, the same for every method.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import QVGConfig
from ..errors import ConfigError, quoted
from ..models.longcat.config import LONG_CONDITION_PICTURES, SegmentFrames
from ..models.longcat.memory import ConditionCache
from ..models.longcat.network import LongCat
from ..models.longcat.schedule import DISTILLED_STEPS, LongCatSettings
from ..models.registry import read
from ..sampling.longcat import LongCatDenoiser, Texts, sample_segment, segment_noise
from ..study.run import StudyRun
from .choices import Choice
from .network_target import STRIDE, TEXT_TOKENS, as_pictures
from .phases import PhaseWatch
from .plan import Case
from .videos import Video

FRAMES = SegmentFrames(condition=LONG_CONDITION_PICTURES)
PROTOCOL = "Quant VideoGen's protocol: 73 condition pictures, 20 new ones a segment"
REMARK = (
    "three channels of the latents, not decoded pictures, and latents carried from segment to segment: this library has no VAE "
    "of this model's; prompts are drawn, not read"
)
_LEAST_PIXELS, _MOST_PIXELS = 96, 4096


class LongCatTarget:
    """Latents of LongCat-Video's file, on the GPU where there is one. Options: `weights`, `width`, `height`, `steps`,
    `distilled` (weights with the distill LoRA: 16 steps without guidance)."""

    def __init__(self, options: Mapping[str, Any]):
        weights = options.get("weights")
        if not isinstance(weights, str) or not Path(weights).is_file():
            raise ConfigError(
                f"weights is {quoted(weights)}, but target longcat ({PROTOCOL}) needs LongCat-Video's file, such as `qvg "
                "convert` makes; give its path in the target"
            )
        sizes = (_whole(options, key, default, _LEAST_PIXELS, _MOST_PIXELS, 16) for key, default in _SIZES.items())
        self._width, self._height = sizes
        distilled = options.get("distilled", False)
        if not isinstance(distilled, bool):
            raise ConfigError(f"distilled is {quoted(distilled)}, but must be true or false; mend it in the plan")
        steps = _whole(options, "steps", DISTILLED_STEPS if distilled else LongCatSettings().steps, 1, 1000, 1)
        self._settings = LongCatSettings(steps, 1.0, True) if distilled else LongCatSettings(steps)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = _loaded(Path(weights), self.device)
        self._begun: tuple[tuple[str, int], Tensor] | None = None

    @staticmethod
    def check(case: Case) -> None:
        """ConfigError for lengths that are not whole segments."""
        given, new = FRAMES.condition_latents, FRAMES.new_latents
        if case.frames <= given or (case.frames - given) % new:
            raise ConfigError(
                f"frames is {case.frames}, but this protocol makes {new} latent frames a segment behind {given}; use "
                f"{given + new}, {given + 2 * new} ..."
            )

    def make(self, case: Case, choice: Choice, watch: PhaseWatch, server: str = "") -> Video:
        """One video's latents."""
        config, denoiser = _settings_of(choice), self._denoiser(case)
        with watch.phase("denoise"):
            condition = self._beginning(case, denoiser)
        latents, sizes, components, size = [condition], list[int](), dict[str, int](), self._latent_size
        for index in range((case.frames - FRAMES.condition_latents) // FRAMES.new_latents):
            with ConditionCache(
                self._model.config, *size, FRAMES.condition_latents, config, self._kept(config), self.device
            ) as cache:
                watch.watch(cache)
                with watch.phase("denoise"):
                    made = sample_segment(denoiser, self._noise(case, index + 1), condition, cache)
                if config.codec != "none":
                    cache.verify_encoded()
                counted, exact = cache.nbytes(), cache.spec.exact_bytes(FRAMES.condition_latents)
                workspace = cache.workspace.nbytes
            components = counted.by_component()
            sizes += [counted.total] * FRAMES.new_latents
            latents.append(made[:, FRAMES.condition_latents :])
            condition = made[:, -FRAMES.condition_latents :]
        whole = torch.cat(latents, 1)[0].float().cpu()
        beside = {"weights": sum(tensor.nbytes for tensor in self._model.state_dict().values()), "workspace": workspace}
        known = [sizes[0]] * FRAMES.condition_latents + sizes
        video = Video(as_pictures(whole), FRAMES.condition_latents, known, components, exact, max(sizes), beside)
        video.latents_digest = hashlib.sha256(whole.numpy().tobytes()).hexdigest()
        video.remarks.append(REMARK)
        return video

    def _denoiser(self, case: Case) -> LongCatDenoiser:
        texts = Texts(*(self._model.read_prompt(self._text(prompt)) for prompt in (case.prompt, "")))
        return LongCatDenoiser(self._model, texts, self._settings)

    def _beginning(self, case: Case, denoiser: LongCatDenoiser) -> Tensor:
        """What all methods go on from, kept for the next of them."""
        which = (case.prompt, case.seed)
        if self._begun is None or self._begun[0] != which:
            noise = self._noise(case, 0)[:, : FRAMES.condition_latents]
            self._begun = (which, sample_segment(denoiser, noise))
        return self._begun[1]

    def _noise(self, case: Case, index: int) -> Tensor:
        shape = (1, FRAMES.latents, self._model.config.channels, *self._latent_size)
        return segment_noise(case.seed, index, shape).to(self.device)

    @property
    def _latent_size(self) -> tuple[int, int]:
        return self._height // STRIDE, self._width // STRIDE

    def _kept(self, config: QVGConfig) -> torch.dtype:
        return self._model.x_embedder.proj.weight.dtype if config.codec == "none" else torch.bfloat16

    def _text(self, prompt: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:7], "big")
        drawn = torch.randn(1, TEXT_TOKENS, self._model.config.text_channels, generator=torch.Generator().manual_seed(seed))
        return drawn.to(self.device, self._model.x_embedder.proj.weight.dtype)


_SIZES = {"width": 832, "height": 480}


def _loaded(file: Path, device: torch.device) -> LongCat:
    """ConfigError for another model's file, and for one that has to be converted first."""
    family, checkpoint = read(file)
    if family.network is None or family.name != "longcat":
        raise ConfigError(f"{file} is of {family.title}, but target longcat needs LongCat-Video; use target network, or its file")
    if checkpoint.joined or checkpoint.quantized:
        raise ConfigError(f"{file} holds LongCat-Video in parts or in 8 bits; `qvg convert` the release to one file in bf16")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = family.network(checkpoint.tensors, dtype=dtype, device=device)
    assert isinstance(model, LongCat)
    return model


def _settings_of(choice: Choice) -> QVGConfig:
    """ConfigError for methods that keep frames apart: this memory is written once and is one span."""
    settings = choice.settings
    if isinstance(settings, QVGConfig):
        return settings
    assert isinstance(settings, StudyRun)
    if settings.published or not settings.method.plain or settings.method.reuse:
        raise ConfigError(
            f"{choice.name} treats frames by their age or content or keeps caches of its own, but what LongCat-Video remembers "
            "is written once, in one span; leave it out"
        )
    return settings.method.coding.config()


def _whole(options: Mapping[str, Any], key: str, default: int, least: int, most: int, step: int) -> int:
    value = options.get(key, default)
    if type(value) is not int or value % step or not least <= value <= most:
        what = f"a multiple of {step}" if step > 1 else "a whole number"
        raise ConfigError(f"{key} is {quoted(value)}, but must be {what} from {least} to {most}; mend it in the plan")
    return value
