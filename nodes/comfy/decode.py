"""Latent frames become pictures piece by piece, so that memory does not grow with the length of a video.

Wan's VAEs are causal: every convolution looks back two frames, which ComfyUI's decoder takes from a list that it is handed. Here
that list outlives a call. Pieces are cut where core cuts them, so the pictures are those of one `vae.decode` of the whole latent.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import comfy.ldm.wan.vae
import comfy.ldm.wan.vae2_2
import comfy.model_management as mm
import comfy.pixel_space_convert
import comfy.utils
import torch
from torch import Tensor

from ...qvg import ConfigError
from ...qvg.models.common.video_decoder import WAN_2_1, WAN_2_2, VideoDecoder, working_bytes

logger = logging.getLogger(__name__)

# What the convolutions of a decoder have seen last: one entry for each of them.
State = list[Any]
States = defaultdict[int, State | None]
# Latent frames that have been decoded, and their pictures [n, H, W, C], 0..1, on the VAE's output device.
Piece = tuple[int, Tensor]

# Sides in pixels of the tiles that are tried in turn where the memory for whole pictures is missing. Neighbours share a quarter,
# as in core.
_TILES = (512, 256)
# Where every frame is decoded for itself.
_FRAMES_AT_ONCE = 8
# Of Wan's VAEs; the first latent frame is one picture.
_PICTURES_PER_FRAME = 4
_MUCH = 1 << 30


@dataclass(frozen=True)
class _Causal:
    """How one of core's causal VAEs is driven. `width`: channels of its decoder as trained, what `size` was counted with."""

    size: VideoDecoder
    width: int
    cuts: Callable[[int], list[tuple[int, int]]]
    new_state: Callable[[Any, int], State | None]
    decode: Callable[[Any, Tensor, State | None, bool], Tensor]


def _cuts_of_wan_2_1(frames: int) -> list[tuple[int, int]]:
    """The first frame, then two at a time: what a piece of one frame leaves behind is too little for a next one."""
    return [(0, 1), *((start, min(start + 2, frames)) for start in range(1, frames, 2))]


def _decode_wan_2_1(model: Any, latent: Tensor, state: State | None, first: bool) -> Tensor:
    pictures: Tensor = torch.cat(model.decoder(model.conv2(latent), feat_cache=state, feat_idx=[0]), 2)
    return pictures


def _decode_wan_2_2(model: Any, latent: Tensor, state: State | None, first: bool) -> Tensor:
    patches = model.decoder(model.conv2(latent), feat_cache=state, feat_idx=[0], first_chunk=first)
    pictures: Tensor = comfy.ldm.wan.vae2_2.unpatchify(patches, patch_size=2)
    return pictures


_CAUSAL = {
    comfy.ldm.wan.vae.WanVAE: _Causal(
        WAN_2_1,
        96,
        _cuts_of_wan_2_1,
        lambda model, frames: [None] * comfy.ldm.wan.vae.count_cache_layers(model.decoder) if frames > 1 else None,
        _decode_wan_2_1,
    ),
    comfy.ldm.wan.vae2_2.WanVAE: _Causal(
        WAN_2_2,
        256,
        lambda frames: [(frame, frame + 1) for frame in range(frames)],
        lambda model, frames: [None] * comfy.ldm.wan.vae2_2.count_conv3d(model.decoder),
        _decode_wan_2_2,
    ),
}


def split_batch(vae: Any, samples: Tensor) -> list[Tensor]:
    """Latents of single videos, [1, C, F, h, w]; what an image VAE decodes, [B, C, h, w], is one video of B frames.

    Raises ConfigError for a latent of something else than pictures, or of another VAE's.
    """
    vae.throw_exception_if_invalid()
    if getattr(samples, "is_nested", False):  # sound besides the video
        samples = samples.unbind()[0]
    if samples.ndim == 4 and vae.latent_dim == 2:
        samples = samples.movedim(0, 1)[None]
    if samples.ndim != 5 or 0 in samples.shape or vae.latent_dim not in (2, 3):
        raise ConfigError(
            f"the latent is {list(samples.shape)}, but a video's is [batch, channels, frames, height, width] and needs a VAE of "
            "pictures; connect the LATENT of a video model and the VAE that belongs to that model"
        )
    if (_causal(vae) or _is_picture_by_picture(vae)) and samples.shape[1] != vae.latent_channels:
        raise ConfigError(
            f"the latent has {samples.shape[1]} channels, but this VAE decodes {vae.latent_channels}; connect the VAE that "
            "belongs to the model (16 channels: Wan 2.1 VAE, 48: Wan 2.2 VAE)"
        )
    return list(samples.split(1))


def count_pictures(vae: Any, latent: Tensor) -> int:
    """Pictures that a video's latent [1, C, F, h, w] becomes; of VAEs that are not decoded in a stream, what ComfyUI says of
    them."""
    frames, ratio = latent.shape[2], vae.upscale_ratio
    if _is_picture_by_picture(vae) or not isinstance(ratio, tuple):
        return frames
    return max(1, int(ratio[0](frames) if callable(ratio[0]) else ratio[0] * frames))


def tiles_to_try(vae: Any, latent: Tensor) -> list[int]:
    """Sides of tiles, in pixels, for when memory runs out: 0, whole pictures, comes first. Other VAEs than Wan's see to it
    themselves."""
    causal = _causal(vae)
    if causal is None:
        return [0]
    longer = max(latent.shape[3:]) * causal.size.latent_pixels
    return [0, *(tile for tile in _TILES if tile < longer)]


def decode_pieces(vae: Any, latent: Tensor, tile: int = 0) -> Iterator[Piece]:
    """Decode a video's latent [1, C, F, h, w] in a stream. `tile`: side of square tiles in pixels, 0 for whole pictures."""
    causal = _causal(vae)
    if causal is not None:
        return _Stream(vae, causal, tile // causal.size.latent_pixels).pieces(latent)
    return _picture_by_picture(vae, latent) if _is_picture_by_picture(vae) else _in_one_piece(vae, latent)


def _causal(vae: Any) -> _Causal | None:
    """None also where another node has put a `decode` of its own into the VAE: what it does is not to be passed over."""
    model = vae.first_stage_model
    known = _CAUSAL.get(type(model))
    return known if known is not None and "decode" not in vars(model) else None


def _is_picture_by_picture(vae: Any) -> bool:
    model = vae.first_stage_model
    own = isinstance(model, comfy.pixel_space_convert.PixelspaceConversionVAE) or getattr(model, "qvg_by_picture", False)
    return bool(vae.latent_dim == 2) or own


class _Stream:
    """A causal VAE at work on one video. `tile`: side in the latent's pixels, 0 for whole pictures."""

    def __init__(self, vae: Any, causal: _Causal, tile: int):
        self.vae, self.causal, self.tile = vae, causal, tile
        self.model = vae.first_stage_model

    def pieces(self, latent: Tensor) -> Iterator[Piece]:
        """Of a latent [1, C, F, h, w]."""
        self.load(*(min(side, self.tile or side) for side in latent.shape[3:]))
        frames = latent.shape[2]
        # Here and not on self: when memory has run out, they go with the generator.
        states: States = defaultdict(lambda: self.causal.new_state(self.model, frames))
        for start, stop in self.causal.cuts(frames):
            mm.throw_exception_if_processing_interrupted()
            yield stop - start, self._piece(latent[:, :, start:stop], states, start == 0)

    def load(self, rows: int, cols: int) -> None:
        """Have the VAE on its device, with room for what decoding rows x cols of a latent takes."""
        size = self.causal.size
        wider = max(1.0, self.model.decoder.dim / self.causal.width)
        bytes_each = mm.dtype_size(self.vae.vae_dtype)
        needed = wider * working_bytes(cols * size.latent_pixels, rows * size.latent_pixels, size, bytes_each)
        mm.load_models_gpu([self.vae.patcher], memory_required=int(needed), force_full_load=self.vae.disable_offload)

    def _piece(self, latent: Tensor, states: States, first: bool) -> Tensor:
        with getattr(mm, "cuda_device_context", lambda device: nullcontext())(self.vae.device):
            pictures = self._tiled(latent, states, first) if self.tile else self._decode(latent, states[0], first)
        self.vae.process_output(pictures)  # in place
        return pictures[0].movedim(0, -1)

    def pictures(self, latent: Tensor, state: State | None, first: bool) -> Tensor:
        """Of a piece [B, C, F, h, w] -> [B, n, H, W, C]."""
        with getattr(mm, "cuda_device_context", lambda device: nullcontext())(self.vae.device):
            pictures = self._decode(latent, state, first)
        self.vae.process_output(pictures)  # in place
        return pictures.movedim(1, -1)

    def _decode(self, latent: Tensor, state: State | None, first: bool) -> Tensor:
        latent = latent.to(device=self.vae.device, dtype=self.vae.vae_dtype)
        pictures = self.causal.decode(self.model, latent, state, first)
        return pictures.to(device=self.vae.output_device, dtype=self.vae.vae_output_dtype(), copy=True)

    def _tiled(self, latent: Tensor, states: States, first: bool) -> Tensor:
        """Every tile has a state of its own, which waits in main memory while the others are at work. Core blends them."""
        tiles, side = iter(range(1 << 30)), self.causal.size.latent_pixels
        pictures = latent.shape[2] * _PICTURES_PER_FRAME - (_PICTURES_PER_FRAME - 1 if first else 0)

        def decode(part: Tensor) -> Tensor:
            state = states[next(tiles)]
            _move(state, self.vae.device)
            decoded = self._decode(part, state, first)
            _move(state, torch.device("cpu"))
            return decoded

        blended: Tensor = comfy.utils.tiled_scale_multidim(
            latent,
            decode,
            tile=(latent.shape[2], self.tile, self.tile),
            overlap=(0, self.tile // 4, self.tile // 4),
            upscale_amount=(lambda frames: pictures, side, side),
            index_formulas=(1, side, side),
            out_channels=self.vae.output_channels,
            output_device=self.vae.output_device,
        )
        return blended


class GrowingDecode:
    """A causal VAE that decodes a video while it is made: whole pictures, in pieces of the video's blocks."""

    def __init__(self, vae: Any):
        causal = _causal(vae)
        if causal is None:
            raise ConfigError(
                f"this VAE ({type(vae.first_stage_model).__name__}) cannot decode a video block by block; connect Wan 2.1's VAE"
            )
        self._stream = _Stream(vae, causal, 0)
        self._state = causal.new_state(self._stream.model, 2)
        self._began = False

    def add(self, latent: Tensor) -> Tensor:
        """The next frames [B, C, F, h, w], two or more unless they are the first -> their pictures [B, n, H, W, C], 0..1."""
        stream = self._stream
        stream.load(*latent.shape[3:])
        pieces = [latent] if self._began else [latent[:, :, :1], latent[:, :, 1:]]
        made = []
        for piece in pieces:
            if piece.shape[2]:
                made.append(stream.pictures(piece, self._state, not self._began))
                self._began = True
        return torch.cat(made, 1)


def _move(state: State | None, device: torch.device) -> None:
    for index, seen in enumerate(state or []):
        if isinstance(seen, Tensor):
            state[index] = seen.to(device)  # type: ignore[index]  # no loop over None


def _picture_by_picture(vae: Any, latent: Tensor) -> Iterator[Piece]:
    for start in range(0, latent.shape[2], _FRAMES_AT_ONCE):
        mm.throw_exception_if_processing_interrupted()
        part = latent[:, :, start : start + _FRAMES_AT_ONCE]
        pictures = vae.decode(part if vae.latent_dim == 3 else part[0].movedim(1, 0))
        yield part.shape[2], pictures.reshape(-1, *pictures.shape[-3:])


def _in_one_piece(vae: Any, latent: Tensor) -> Iterator[Piece]:
    side = vae.spacial_compression_decode()
    size = count_pictures(vae, latent) * latent.shape[3] * latent.shape[4] * side**2 * 3 * 4
    if size > _MUCH:
        logger.warning(
            "QVG: this VAE (%s) decodes all frames at once, into %.1f GB of main memory; what is decoded in a stream: Wan 2.1's "
            "and Wan 2.2's VAE as ComfyUI has them",
            type(vae.first_stage_model).__name__,
            size / 1e9,
        )
    pictures = vae.decode(latent)
    yield latent.shape[2], pictures.reshape(-1, *pictures.shape[-3:])
