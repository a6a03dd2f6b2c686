"""Frames that a latent's noise mask keeps."""

from __future__ import annotations

from torch import Tensor

from ...qvg import ConfigError


def kept_frames(mask: Tensor | None) -> int:
    """How many frames at the beginning `mask` [B, C, F, H, W] keeps (0 everywhere); ConfigError where it keeps anything else."""
    if mask is None:
        return 0
    low, high = mask.amin(dim=(0, 1, 3, 4)).tolist(), mask.amax(dim=(0, 1, 3, 4)).tolist()
    mixed = next((frame for frame, pair in enumerate(zip(low, high, strict=True)) if pair not in ((0.0, 0.0), (1.0, 1.0))), None)
    if mixed is not None:
        raise ConfigError(
            f"the noise mask keeps a part of frame {mixed} (its values go from {low[mixed]:.3g} to {high[mixed]:.3g}); a frame "
            "is either given, 0 everywhere, or generated, 1 everywhere"
        )
    frames = high.index(1.0) if 1.0 in high else len(high)
    if 0.0 in high[frames:]:
        raise ConfigError(
            f"the noise mask keeps frame {frames + high[frames:].index(0.0)} after frames that are to be generated; only frames "
            "at the beginning can be given"
        )
    return frames
