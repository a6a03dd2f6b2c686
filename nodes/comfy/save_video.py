"""A LATENT into video files in the output folder, one for each video of the batch."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy.cli_args import args
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...qvg import ConfigError
from ...qvg.media import Picture
from ...qvg.media.colours import ColourMatch
from ...qvg.media.video_file import WholeVideo
from .decode import count_pictures, decode_pieces, split_batch, tiles_to_try
from .keep import until_decoded
from .output_names import VIDEO, output_prefix, save_names
from .progress import say

logger = logging.getLogger(__name__)

# The longer side of what the node shows while it works.
_PREVIEW_PIXELS = 512


@dataclass(frozen=True)
class SavedVideo:
    """A file in a folder of the output folder, and what is to be said of it."""

    path: Path
    subfolder: str
    text: str


@dataclass(frozen=True)
class _Settings:
    fps: float
    crf: int
    prefix: str
    metadata: dict[str, str]
    match_colours: float = 0.0


def save_videos(
    vae: Any,
    samples: Tensor,
    fps: float,
    crf: int,
    prefix: str,
    prompt: Any = None,
    extra: dict[str, Any] | None = None,
    match_colours: float = 0.0,
) -> list[SavedVideo]:
    """Decode a LATENT's samples in a stream and write every video of the batch.

    A file is there whole or not at all; videos finished before a failure stay. `prompt` and `extra` (the workflow) are written
    into the files, unless ComfyUI was told to write none. `match_colours`: strength of `qvg.media.colours`. Raises ConfigError
    for a latent that this VAE does not decode,
    MediaError where the file cannot be written.
    """
    prefix = output_prefix(prefix, VIDEO, prompt, (extra or {}).get("workflow"))
    if strange := re.findall(r"%[^%]+\.[^%.]+%", prefix):
        logger.warning("QVG: filename_prefix has %s, which is no input of a node; it stays in the name", ", ".join(strange))
    videos = split_batch(vae, samples)
    texts = {} if args.disable_metadata else {**(extra or {}), **({} if prompt is None else {"prompt": prompt})}
    settings = _Settings(fps, crf, prefix, {name: json.dumps(value) for name, value in texts.items()}, match_colours)
    bar = _Bar(sum(video.shape[2] for video in videos))
    saved: list[SavedVideo] = []
    with until_decoded(torch.cat(videos)):
        for video in videos:
            saved.append(_save(vae, video, settings, bar))
            say("\n".join(each.text for each in saved))
    return saved


class _Bar:
    """One tick for every latent frame, with the last picture decoded. `done` goes back where a video begins again."""

    def __init__(self, frames: int):
        self._bar, self._frames, self.done = comfy.utils.ProgressBar(frames), frames, 0

    def decoded(self, frames: int, picture: Picture) -> None:
        self.done += frames
        self._bar.update_absolute(self.done, self._frames, ("JPEG", Image.fromarray(picture), _PREVIEW_PIXELS))


def _save(vae: Any, video: Tensor, settings: _Settings, bar: _Bar) -> SavedVideo:
    """Whole pictures first; in tiles, again from the beginning, where memory runs out: pictures of both kinds in one video would
    differ visibly."""
    began = bar.done
    tiles = tiles_to_try(vae, video)
    for tile, smaller in zip(tiles, [*tiles[1:], None], strict=True):
        try:
            return _write(vae, video, settings, bar, tile)
        except Exception as error:
            mm.raise_non_oom(error)
            if smaller is None:
                raise
        # Outside of `except`: the error holds on to all that was alive when it was raised.
        mm.soft_empty_cache()
        bar.done = began
        logger.warning(
            "QVG: no memory to decode %s; begins again in tiles of %d pixels that share %d with their neighbours",
            f"tiles of {tile} pixels" if tile else "whole pictures",
            smaller,
            smaller // 4,
        )
    raise AssertionError("there is always one way to try")


def _write(vae: Any, video: Tensor, settings: _Settings, bar: _Bar, tile: int) -> SavedVideo:
    (names, subfolder), total = _names(vae, video, settings.prefix), count_pictures(vae, video)
    first = next(names)
    file: WholeVideo | None = None
    match = ColourMatch(settings.match_colours) if settings.match_colours else None
    try:
        with ExitStack() as stack:
            for frames, decoded in decode_pieces(vae, video, tile):
                pictures = _in_bytes(decoded, match)
                if file is None:
                    height, width = pictures.shape[1:3]
                    options: Any = {"frames": max(total, len(pictures)), "crf": settings.crf, "metadata": settings.metadata}
                    video_file = WholeVideo(first, width, height, settings.fps, otherwise=names, **options)
                    file = stack.enter_context(video_file)
                for picture in pictures:
                    file.write(picture)
                bar.decoded(frames, pictures[-1])
                del decoded  # not to be there while the next piece is decoded
    except mm.InterruptProcessingException:
        logger.info("QVG: interrupted after %d of %d pictures; nothing of %s is left", _count(file), total, first.name)
        raise
    assert file is not None
    size, seconds = file.path.stat().st_size, _count(file) / settings.fps
    text = f"{_count(file)} pictures of {width} x {height}, {seconds:.1f} s, {size / 1e6:.1f} MB: {file.path.name}"
    return SavedVideo(file.path, subfolder, text)


def _names(vae: Any, video: Tensor, prefix: str) -> tuple[Iterator[Path], str]:
    """The next free names, and their folder."""
    side = vae.spacial_compression_decode()
    height, width = (length * side for length in video.shape[3:])
    return save_names(prefix, folder_paths.get_output_directory(), VIDEO, width, height)


def _count(file: WholeVideo | None) -> int:
    return 0 if file is None else file.frames_written


def _in_bytes(pictures: Tensor, match: ColourMatch | None) -> NDArray[np.uint8]:
    """[n, H, W, C] in 0..1 -> [n, H, W, 3]; alpha is left out, grey becomes colour. `match`: colours as those before."""
    channels = pictures.shape[-1]
    if channels not in (1, 3, 4):
        raise ConfigError(f"this VAE makes pictures of {channels} channels, but a video has 3; use a VAE that makes RGB")
    pictures = pictures[..., :3].float()
    if not pictures.isfinite().all():
        logger.warning("QVG: the VAE has made NaN or infinity of this latent, shown as black; check precision (--fp32-vae helps)")
        pictures = pictures.nan_to_num(0.0, 0.0, 0.0)
    if match is not None and channels > 1:
        pictures = torch.stack([torch.from_numpy(match.matched(each.clamp(0, 1).cpu().numpy())) for each in pictures])
    whole = (pictures.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return whole.expand(*whole.shape[:-1], 3).numpy()
