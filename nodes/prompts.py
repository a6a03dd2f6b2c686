"""Prompts that change while a video is made: the node that strings them together, and when each begins. No ComfyUI internals."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..qvg.errors import ConfigError
from ..qvg.sampling import BlockPlace
from .api import CATEGORY, io
from .widgets import Node

# In an entry of a CONDITIONING: the pixel frame that its prompt begins at, whether memory is rewritten for it,
# and whether a new shot begins.
FRAME_KEY = "qvg_from_frame"
RECACHE_KEY, CUT_KEY = "qvg_recache", "qvg_scene_cut"
# The first latent frame is one pixel frame, every other one is four, where a model does not say otherwise.
PIXELS_PER_LATENT = 4


class QVGPromptAtFrame(Node):
    """Two CONDITIONINGs, one after the other in time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QVGPromptAtFrame",
            display_name="Prompt at Frame",
            category=CATEGORY,
            description="Another prompt from a frame on. Chain several, and connect the last one to the guider, or to World "
            "Start. For QVG Causal Sampler and World Sampler.",
            search_aliases=["qvg", "prompt schedule", "prompt travel", "prompt change"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning", lazy=True, tooltip="The prompt that the video begins with, or another Prompt at Frame."
                ),
                io.Conditioning.Input("next_conditioning", lazy=True, tooltip="The prompt from the frame on."),
                io.Int.Input(
                    "frame",
                    default=81,
                    min=1,
                    max=1_000_000,
                    tooltip="Frame of the finished video, at 16 a second, that the next prompt begins at. Frames are made in "
                    "blocks: it holds from the beginning of the block that this frame is in.",
                ),
                io.Boolean.Input(
                    "recache",
                    default=False,
                    tooltip="Look at the frames in memory once more with the next prompt, as LongLive does: the change is "
                    "followed sooner. Takes one pass for each block in memory.",
                    advanced=True,
                    optional=True,
                ),
                io.Boolean.Input(
                    "scene_cut",
                    default=False,
                    tooltip="A new shot begins, for LongLive 2.0: 8 frames are left out in its positions, and its first block "
                    "stays "
                    'in memory until the next cut. Begin the prompt with "The scene transitions. ", as the model was trained.',
                    advanced=True,
                    optional=True,
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="conditioning", tooltip="For a guider, or for another Prompt at Frame.")
            ],
        )

    @classmethod
    def execute(
        cls, conditioning: Any, next_conditioning: Any, frame: int, recache: bool = False, scene_cut: bool = False
    ) -> io.NodeOutput:
        if any(FRAME_KEY in entry for _, entry in next_conditioning):
            raise ConfigError(
                "next_conditioning holds prompts that begin at frames of their own; connect that Prompt at Frame as "
                "conditioning, and a single prompt as next_conditioning"
            )
        taken = {entry.get(FRAME_KEY, 0) for _, entry in conditioning}
        if frame in taken:
            raise ConfigError(f"a prompt begins at frame {frame} already; choose another frame than {_listed(taken)}")
        marks = {FRAME_KEY: frame, RECACHE_KEY: recache, CUT_KEY: scene_cut}
        before = [[tensor, {FRAME_KEY: 0, **entry}] for tensor, entry in conditioning]
        return io.NodeOutput([*before, *([tensor, {**entry, **marks}] for tensor, entry in next_conditioning)])


@dataclass(frozen=True)
class PromptStart:
    """From block `block` on, entries marked with `frame` hold."""

    block: int
    frame: int
    recache: bool
    scene_cut: bool = False


def prompt_starts(
    entries: Iterable[Mapping[str, Any]], places: Sequence[BlockPlace], pictures: int = PIXELS_PER_LATENT
) -> tuple[PromptStart, ...]:
    """When each prompt begins, in order; none where no entry is marked. `pictures`: in a latent frame, the first one aside.
    ConfigError where prompts do not cover the video."""
    marked = [entry for entry in entries if FRAME_KEY in entry]
    recaches: dict[int, bool] = {}
    for entry in marked:
        recaches[entry[FRAME_KEY]] = recaches.get(entry[FRAME_KEY], False) or entry.get(RECACHE_KEY, False)
    cuts = {entry[FRAME_KEY] for entry in marked if entry.get(CUT_KEY)}
    starts = [
        PromptStart(_block_of(frame, places, pictures), frame, recaches[frame], frame in cuts) for frame in sorted(recaches)
    ]
    if starts and starts[0].frame != 0:
        raise ConfigError(
            f"the first prompt begins at frame {starts[0].frame}, and nothing says what comes before; connect a prompt for the "
            "beginning to conditioning of the first Prompt at Frame"
        )
    for before, after in itertools.pairwise(starts):
        if before.block == after.block:
            place = places[after.block]
            first, last = _pixel_frames(place.first_frame, place.frames, pictures)
            raise ConfigError(
                f"prompts begin at frames {before.frame} and {after.frame}, which are made together in the block of frames "
                f"{first} to {last}; let one of them begin outside of it"
            )
    return tuple(starts)


def _block_of(frame: int, places: Sequence[BlockPlace], pictures: int = PIXELS_PER_LATENT) -> int:
    latent = -(-frame // pictures)
    for place in places:
        if latent < place.first_frame + place.frames:
            return place.index
    last = _pixel_frames(0, places[-1].first_frame + places[-1].frames, pictures)[1]
    raise ConfigError(
        f"a prompt begins at frame {frame}, but the video ends with frame {last}; choose an earlier frame, or make it longer"
    )


def _pixel_frames(first_latent: int, latents: int, pictures: int) -> tuple[int, int]:
    """First and last pixel frame of a stretch of latent frames."""
    last = first_latent + latents - 1
    return max(0, pictures * (first_latent - 1) + 1), pictures * last


def _listed(frames: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(frames)))
