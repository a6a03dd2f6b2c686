"""The library's networks without ComfyUI: a checkpoint of a causal Wan, block by block as its variant was trained.

The library has no text encoder and no VAE of theirs. A prompt is rows drawn from its letters, the same for every method; what is
compared is the latents, three of their channels as a picture. That says how far a memory's videos part, not how they look. The
demo film's file is a causal Wan's, too: its prompts are read as they were trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bench.judge import check_bytes
from ..cache import KVCache
from ..errors import ConfigError, quoted
from ..models.common.variants import CausalVariant
from ..models.common.weight_files import open_weights
from ..models.demo_film.directions import DIRECTIONS, text_rows
from ..models.demo_film.family import FAMILY as DEMO_FILM
from ..models.demo_film.family import FILM as FILM_VARIANT
from ..models.demo_film.weights import MODEL as FILM_MODEL
from ..models.demo_film.weights import load_demo_film
from ..models.registry import read
from ..models.wan.network import CausalWan, WanDenoiser
from ..sampling import generate
from ..sampling.distilled import DistilledSchedule
from ..study.run import StudyRun
from .choices import Choice
from .phases import PhaseWatch
from .plan import Case
from .videos import Pictures, Video

STRIDE = 8  # pixels of a latent pixel
TEXT_TOKENS = 32
_FILM_PROMPTS = tuple(direction.text for direction in DIRECTIONS)
# Latents are about normal; four standard deviations either way are the picture's range.
_RANGE = 4.0
_LATENTS = "three channels of the latents, not decoded pictures"
REMARK = f"{_LATENTS}: this library has no VAE of this model's; prompts are drawn, not read"
FILM_REMARK = f"{_LATENTS}; the demo film's own prompts, from noise on"


class NetworkTarget:
    """Latents of a causal Wan's file, on the GPU where there is one."""

    def __init__(self, options: Mapping[str, Any]):
        weights = options.get("weights")
        if not isinstance(weights, str) or not Path(weights).is_file():
            raise ConfigError(
                f"weights is {quoted(weights)}, but a network needs a checkpoint's file; give its path in the target"
            )
        self._film = open_weights(Path(weights)).metadata.get("model") == FILM_MODEL
        default = FILM_VARIANT.sizes if self._film else None
        self._width, self._height = (
            _size(options, key, size) for key, size in zip(("width", "height"), default or (832, 480), strict=True)
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model, self._variant = self._loaded(Path(weights), options.get("family"))
        if self._variant.sizes not in (None, (self._width, self._height)):
            raise ConfigError(
                f"the size is {self._width} x {self._height}, but {self._variant.name} makes videos of "
                f"{self._variant.sizes[0]} x {self._variant.sizes[1]} alone; leave width and height out"
            )

    def _loaded(self, weights: Path, wanted: str | None) -> tuple[CausalWan, CausalVariant]:
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        if self._film:
            name, variant = DEMO_FILM.name, FILM_VARIANT
        else:
            family, checkpoint = read(weights)
            name, found = family.name, checkpoint.variant
            if family.network is None or found is None:
                raise ConfigError(f"{weights} does not say which member of {family.title} it is; `qvg convert` it with --variant")
            variant = found
        if wanted not in (None, name):
            raise ConfigError(f"{weights} is of family {name}, but the plan says {quoted(wanted)}; mend the plan")
        if self._film:
            return load_demo_film(weights, dtype=dtype, device=self.device)[0], variant
        assert family.network is not None
        model = family.network(checkpoint.tensors, dtype=dtype, device=self.device)
        if not isinstance(model, CausalWan) or family.memory is not None:
            raise ConfigError(f"{family.title} is no causal Wan of text alone, which is all that runs here; use a ComfyUI server")
        return model, variant

    def check(self, case: Case) -> None:
        """ConfigError for lengths that are not whole blocks, and for what is no prompt of the demo film."""
        if self._film and case.prompt not in _FILM_PROMPTS:
            raise ConfigError(f"prompt {quoted(case.prompt)} is none of the demo film's; use some of {'; '.join(_FILM_PROMPTS)}")
        block = self._variant.frames_per_block
        if case.frames % block:
            raise ConfigError(f"frames is {case.frames}, but this model makes blocks of {block} latent frames; use a multiple")

    def make(self, case: Case, choice: Choice, watch: PhaseWatch, server: str = "") -> Video:
        """One video's latents."""
        model, variant, config = self._model, self._variant, choice.settings
        rows, cols, block = self._height // STRIDE, self._width // STRIDE, variant.frames_per_block
        spec, rope = model.config.cache_spec(rows, cols, block), model.config.rope(rows, cols)
        denoiser = WanDenoiser(model, model.read_prompt(self._text(case.prompt)), rows, cols, 1, variant.told_zero_sigma)
        schedule = DistilledSchedule(variant.sigmas, case.seed, variant.first_block_sigmas)
        places = [[(float(first + i), 0.0, 0.0) for i in range(block)] for first in range(0, case.frames, block)]
        latents, sizes = list[Tensor](), list[int]()
        opened = config.cache(spec, rope, case.frames) if isinstance(config, StudyRun) else KVCache(spec, config, rope)
        with opened as cache, torch.inference_mode():
            watch.watch(cache)
            blocks = generate(denoiser, cache, places, schedule)
            while True:
                with watch.phase("denoise"):
                    made = next(blocks, None)
                if made is None:
                    break
                latents.append(made.latent[0].float().cpu())
                sizes += [made.cache.total] * block
                check_bytes(cache, config, len(sizes), made.cache)
                components = made.cache.by_component()
            weights = sum(tensor.nbytes for tensor in model.state_dict().values())
            beside = {"weights": weights, "workspace": cache.workspace.nbytes}
        whole = torch.cat(latents)
        video = Video(as_pictures(whole), 0, sizes, components, spec.exact_bytes(case.frames), max(sizes), beside)
        video.latents_digest = hashlib.sha256(whole.numpy().tobytes()).hexdigest()
        video.remarks.append(FILM_REMARK if self._film else REMARK)
        return video

    def _text(self, prompt: str) -> Tensor:
        if self._film:
            weight = self._model.patch_embedding.weight
            return text_rows()[_FILM_PROMPTS.index(prompt)][None].to(weight.device, weight.dtype)
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:7], "big")
        shape = (1, TEXT_TOKENS, self._model.config.text_channels)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)


def as_pictures(latents: Tensor) -> Pictures:
    """[F, C, h, w] -> uint8 [F, h, w, 3]."""
    channels = latents[:, :3].movedim(1, -1)
    pixels: Pictures = ((channels / _RANGE + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return np.ascontiguousarray(pixels)


def _size(options: Mapping[str, Any], key: str, default: int) -> int:
    value = options.get(key, default)
    if type(value) is not int or value % 16 or not 96 <= value <= 4096:
        raise ConfigError(f"{key} is {quoted(value)}, but must be a multiple of 16 pixels from 96 to 4096; mend it in the plan")
    return value
