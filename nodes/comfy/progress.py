"""What a run shows while it goes on: a bar, a picture of the current block, a line of text on the node."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management as mm
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ...qvg import KVCache
from ...qvg.sampling import Block
from .gauge import Gauge

logger = logging.getLogger(__name__)


class Progress:
    """One tick for every pass of the model. A latent of pictures is shown even where previews are off: it costs nothing."""

    def __init__(self, device: torch.device, latent_format: Any, passes: int, blocks: int):
        self._bar = comfy.utils.ProgressBar(passes)
        self._passes, self._blocks, self._done, self._gauge = passes, blocks, 0, Gauge(blocks)
        self._previewer = latent_preview.get_previewer(device, latent_format)
        if self._previewer is None and latent_format.latent_channels == 3 and latent_format.latent_rgb_factors is not None:
            self._previewer = latent_preview.Latent2RGBPreviewer(latent_format.latent_rgb_factors)

    def passed(self, clean: Tensor) -> None:
        """The model has been run once; `clean` [B, C, F, H, W] is what it makes of the current block."""
        self._done += 1
        preview = None if self._previewer is None else self._previewer.decode_latent_to_preview_image("JPEG", clean)
        self._bar.update_absolute(self._done, self._passes, preview)

    def finished(self, block: Block, exact_bytes: int) -> None:
        """A block has become history, which would take so many bytes at 16 bits per value."""
        frames = block.latent.shape[2]
        self._gauge.finished(block.index, frames, block.seconds, block.cache.total, exact_bytes)
        say(f"{block.cache.total / 1e6:.1f} MB, {block.seconds / frames:.2f} s/frame, block {block.index + 1}/{self._blocks}")

    def remembered(self, index: int, frames: int, seconds: float, cache_bytes: int, exact_bytes: int) -> None:
        """A segment of `frames` new ones is finished, which was made with so many bytes of memory."""
        self._gauge.finished(index, frames, seconds, cache_bytes, exact_bytes)


def say(text: str) -> None:
    """A line on the node that is running; a ComfyUI that cannot show one gets it in the log."""
    try:
        from comfy_execution.utils import get_executing_context
        from server import PromptServer

        context, send = get_executing_context(), PromptServer.instance.send_progress_text
    except (ImportError, AttributeError):
        logger.info("QVG: %s", text)
        return
    if context is not None:
        send(text, context.node_id)


def say_what_is_left_out(text: str, left_out: list[str]) -> None:
    """A line on the node that is running, and one more, in the log too, for each thing that it was given and does not use."""
    for line in left_out:
        logger.warning("QVG: %s", line)
    say("\n".join([text, *left_out]))


def say_how_it_ended(error: BaseException, cache: KVCache, finished: int, total: int) -> None:
    """A line in the log about a run that did not end well; the cache is free by now."""
    held = cache.nbytes().total + cache.workspace.nbytes
    logger.info("QVG: %s after block %d of %d; the cache holds %d bytes now", how_it_ended(error), finished, total, held)


def how_it_ended(error: BaseException) -> str:
    """In a word or two."""
    return "interrupted" if isinstance(error, mm.InterruptProcessingException) else f"ended by {type(error).__name__}"
