"""Models whose blocks are denoised in steps of their own (`models.common.solver`): what their runs must have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ....qvg import ConfigError, QVGConfig
from ....qvg.camera.cameras import Cameras
from ....qvg.models.common.variants import CausalVariant
from ...prompts import PromptStart
from ..settings import CAMERAS_KEY

_NEAR = 0.01  # of two noise levels


def check_solver(variant: CausalVariant, sigmas: Tensor, options: Any) -> None:
    """Raise ConfigError for another sampler than ours, and for what its steps do not take."""
    if options is None:
        raise ConfigError(
            f"{variant.name} is sampled in steps of its own, which 'Sampler AR Video' does not make; connect 'QVG Causal Sampler'"
        )
    levels = sigmas.tolist()
    if len(levels) != len(variant.sigmas) or any(abs(a - b) > _NEAR for a, b in zip(levels, variant.sigmas, strict=True)):
        raise ConfigError(
            f"the sigmas are {', '.join(f'{level:.3g}' for level in levels)}, but {variant.name} is sampled in steps of its own, "
            f"{', '.join(f'{level:.3g}' for level in variant.sigmas)}, and in no others; connect 'Trained Sigmas'"
        )
    if options.first_block_sigmas is not None:
        raise ConfigError(f"first_block_sigmas are connected, but {variant.name} makes all blocks alike; disconnect them")
    if options.context_noise:
        raise ConfigError(
            f"context_noise is {options.context_noise:g}, but {variant.name} remembers blocks at a level of its own; set it to 0"
        )
    if options.memory != "grow":
        raise ConfigError(f"memory is {options.memory}, but {variant.name} has a memory that grows; choose grow")


def check_frames(variant: CausalVariant | None, frames: int, given: int, per_block: int) -> None:
    """Raise ConfigError for a video that is not whole blocks, and for given frames that it does not begin with."""
    if variant is None or not variant.whole_blocks:
        return
    name = variant.name
    if frames % per_block:
        fitting = max(1, round(frames / per_block)) * per_block
        raise ConfigError(
            f"the latent has {frames} frames, but {name} makes whole blocks of {per_block}; use {fitting} latent frames, "
            f"{4 * fitting - 3} pictures"
        )
    if variant.needs_picture and not given:
        raise ConfigError(f"{name} begins with a picture, and no frame is given; connect one to 'Camera Video Start'")
    if given % per_block and not (given == 1 and variant.picture_in_block):
        raise ConfigError(
            f"{given} latent frames are given, but {name} goes on from {'one picture or from ' * variant.picture_in_block}whole "
            f"blocks of {per_block}; give it {given // per_block * per_block or 1}"
        )


def check_cuts(variant: CausalVariant | None, prompts: Sequence[PromptStart], config: QVGConfig, block: int) -> None:
    """Raise ConfigError for scene cuts that the model, or its memory, has no place for."""
    cut = next((start for start in prompts if start.scene_cut), None)
    if cut is None:
        return
    if variant is None or not variant.cut_frames:
        raise ConfigError(
            f"the prompt at frame {cut.frame} is a scene cut, which {'this model' if variant is None else variant.name} was not "
            "trained for; turn scene_cut off on 'Prompt at Frame'"
        )
    if any(start.recache for start in prompts):
        raise ConfigError(
            f"the prompt at frame {cut.frame} is a scene cut, and another one asks for recache, which knows no shots; turn one "
            "of "
            "them off"
        )
    if config.merges or config.skips:
        raise ConfigError(
            f"the prompt at frame {cut.frame} is a scene cut, which goes with merge 0 and sparse 0 alone; set these to 0"
        )
    needed = -(-config.sink_frames // block) * block + 2 * block
    if config.window_frames is not None and config.window_frames < needed:
        raise ConfigError(
            f"window_frames is {config.window_frames}, but sink, the shot's first block and the block in work take {needed}; "
            "use that "
            "or more"
        )


def cameras_of(variant: CausalVariant | None, entries: Iterable[Mapping[str, Any]], frames: int) -> Cameras | None:
    """Of a guider's conditioning, for a model that is told of cameras. Raises ConfigError where there are none, or not one for
    each latent frame."""
    if variant is None or variant.cameras is None:
        return None
    cameras: Cameras | None = next((entry[CAMERAS_KEY] for entry in entries if CAMERAS_KEY in entry), None)
    if cameras is None:
        raise ConfigError(
            f"{variant.name} is told where each frame is seen from, and the conditioning holds no camera; put 'Camera Video "
            "Start' "
            "between the prompt and the guider"
        )
    if len(cameras) != frames:
        raise ConfigError(
            f"the latent has {frames} frames, but the camera {len(cameras)}; take both from one 'Camera Video Start'"
        )
    return cameras


def steps_text(variant: CausalVariant, how: str, tensors: int) -> str:
    """What a loader says of such a model, in lines."""
    assert variant.solver is not None
    steps = ", ".join(f"{step:g}" for step in variant.solver.timesteps)
    lines = [
        f"{variant.name} (known by {how}), {tensors} tensors",
        f"blocks of {variant.frames_per_block} latent frames, timesteps {steps}, shift {variant.shift:g}, finished blocks at "
        f"{variant.solver.context_timestep:.3g}",
    ]
    if variant.window_frames:
        lines.append(
            f"trained with window_frames {variant.window_frames} and sink_frames {variant.sink_frames}: set these on QVG KV Cache"
        )
    return "\n".join(lines)
