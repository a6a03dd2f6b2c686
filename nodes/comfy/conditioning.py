"""What a CONDITIONING carries beside its prompt, which ComfyUI drops without a word where a network does not read it.

A picture that is dropped makes another video than the one asked for: refused. Of what remains, names are given.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...qvg import ConfigError
from ...qvg.errors import quoted

logger = logging.getLogger(__name__)

# What is the prompt's own, ComfyUI's, or this pack's.
_KNOWN = {"cross_attn", "model_conds", "uuid", "pooled_output", "attention_mask", "hooks", "default", "prompt_type"}
_KNOWN |= {"timestep_start", "timestep_end"}  # what ComfyUI makes of a range
_OURS = "qvg_"
_PICTURES = {
    "concat_latent_image": "a start image",
    "clip_vision_output": "a picture as CLIP vision sees it",
    "clip_vision_outputs": "pictures as CLIP vision sees them",
    "reference_latents": "reference latents",
    "reference_latent": "a reference latent",
    "context_latents": "reference latents",
    "vace_frames": "frames of VACE",
    "control": "a ControlNet",
    "control_video": "a video to follow",
    "pose_video_latent": "a video to follow",
    "face_video_pixels": "a video to follow",
    "time_dim_concat": "frames beside the video",
    "gligen": "places of GLIGEN",
    "audio_embed": "sound",
}
# Comes with one of the above, or says how much of it.
_WITH_A_PICTURE = {
    "concat_mask",
    "concat_mask_index",
    "vace_mask",
    "vace_strength",
    "noise_augmentation",
    "control_apply_to_uncond",
}
_AREAS = ("area", "mask")
_RANGE = {"start_percent": 0.0, "clip_start_percent": 0.0, "end_percent": 1.0, "clip_end_percent": 1.0}
# As ConditioningSetArea and SetMask leave them, and of one prompt alone without effect.
_OF_AREAS = {"strength", "set_area_to_bounds", "mask_strength"}


def check_conditioning(conds: Mapping[str, Iterable[Mapping[str, Any]]], reads: frozenset[str], model: str, picture: str) -> None:
    """Of a guider's `conds`. `reads`: keys that the network reads beside the prompt; `picture`: how a first picture is given to
    `model`. Raises ConfigError for what would be lost and is part of the picture; the log names what else is not read."""
    unread: set[str] = set()
    for entry in _entries(conds):
        given = {key for key, value in entry.items() if value is not None and not key.startswith(_OURS)} - _KNOWN - reads
        carried = next((key for key in _PICTURES if key in given), None)
        if carried is not None:
            raise ConfigError(
                f"the conditioning carries {_PICTURES[carried]} ({carried}), which {model} does not read, so the video would "
                f"have nothing to do with it; take that node out of the prompt's way, {picture}"
            )
        _check_whole(entry, model)
        unread |= given - _WITH_A_PICTURE - _OF_AREAS - {*_AREAS, *_RANGE}
    if unread:
        logger.warning("QVG: %s does not read this of its conditioning: %s", model, ", ".join(sorted(unread)))


def check_prompt(conds: Mapping[str, Iterable[Mapping[str, Any]]], channels: int | None, model: str, prompt_from: str) -> None:
    """Of a guider's `conds`: raises ConfigError for a prompt of another model, by the channels of its rows. None: not known."""
    for entry in _entries(conds):
        text = entry.get("cross_attn")
        if channels is not None and text is not None and text.shape[-1] != channels:
            raise ConfigError(
                f"the prompt is {list(text.shape)}, but {model} reads rows of {channels} channels here: it is another model's "
                f"prompt; connect {prompt_from}"
            )


def _entries(conds: Mapping[str, Iterable[Mapping[str, Any]]]) -> Iterator[Mapping[str, Any]]:
    return (entry for entries in conds.values() for entry in entries)


def _check_whole(entry: Mapping[str, Any], model: str) -> None:
    """Of the video, and of the steps."""
    area = next((key for key in _AREAS if entry.get(key) is not None), None)
    if area is not None:
        raise ConfigError(
            f"the prompt holds for a part of the picture ({area}), but {model} reads it for the whole; take out Conditioning "
            "(Set Area) or (Set Mask)"
        )
    for key, whole in _RANGE.items():
        if entry.get(key, whole) != whole:
            start, end = entry.get("start_percent", 0.0), entry.get("end_percent", 1.0)
            raise ConfigError(
                f"the prompt holds from {quoted(start)} to {quoted(end)} of the steps alone, but {model} needs it at every step, "
                "and when it remembers a finished block; take out ConditioningSetTimestepRange (for prompts that change in time "
                "there is Prompt at Frame)"
            )
