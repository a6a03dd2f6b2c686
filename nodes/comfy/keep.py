"""Finished frames of a run that did not end well, left where people can go on with them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import folder_paths
import torch
from torch import Tensor

from ...qvg.files import written_new
from ...qvg.safetensors_writer import in_memory, write_safetensors
from .output_names import save_names

logger = logging.getLogger(__name__)

PREFIX = "QVG/interrupted"


def keep_frames(latents: list[Tensor], base_model: Any) -> None:
    """Save blocks [B, C, F, H, W] as one file that LoadLatent reads: in the output folder, or where that is full, in temp."""
    # One after the other: where the device is out of memory there is no room to join them on it.
    joined = torch.cat([latent.cpu() for latent in latents], 2).float()
    samples = base_model.process_latent_out(joined).contiguous()
    reasons = []
    for folder in (folder_paths.get_output_directory(), folder_paths.get_temp_directory()):
        try:
            path = _save(samples, folder)
        except OSError as error:
            reasons.append(f"{folder}: {error}")
            continue
        if reasons:
            logger.warning("QVG: %s; free space there, and move the frames before ComfyUI empties its temp folder", reasons[0])
        logger.info("QVG: kept %d finished frames in %s; LoadLatent and VAEDecode show them", samples.shape[2], path)
        return
    logger.warning("QVG: the finished frames could not be kept (%s); free space on these disks", "; ".join(reasons))


def _save(samples: Tensor, folder: str) -> Path:
    tensors = {"latent_tensor": samples, "latent_format_version_0": torch.tensor([])}
    names, _ = save_names(PREFIX, folder, ".latent")
    with written_new(names) as new:
        write_safetensors(new.unfinished, in_memory(tensors), {})
    return new.path
