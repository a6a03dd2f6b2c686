"""How a model was trained to be run: block size, noise levels, which weights of its file."""

from __future__ import annotations

from dataclasses import dataclass

from ...camera.poses import Steps
from .solver import Solver

# Steps 1000, 750, 500, 250 bent by a shift of 5: 5 s / (1 + 4 s).
FOUR_STEPS = (1.0, 0.9375, 5 / 6, 0.625, 0.0)


@dataclass(frozen=True)
class CausalVariant:
    """`sigmas` fall from 1 to 0; `first_block_sigmas` replaces them for the first block that is generated. `window_frames` and
    `sink_frames` are what the model was trained to see, None for everything. Frames are latent frames. `needs_lora`: released
    as a base and a LoRA. `guidance` is the classifier-free guidance that it wants, 1 for none. `told_zero_sigma`: up to this
    noise level the network is told 0. `width`: channels of the network as released; a wider one of its name is another model.
    `frame_pictures`: pictures in a latent frame, the first one aside. `sizes`: width and height in pixels of its videos, where it
    makes no others. `prompt_from`: whose prompts it reads. `given_by_block`: under ComfyUI's own sampler, too, it sees a start of
    several frames block by block. `solver`: its own steps, where they are not fresh noise at `sigmas`; then `sigmas` are what a
    scheduler would call them. `reindexed`: positions are counted in memory, from its oldest frame. `picture_in_block`: a first
    picture is the first frame of the first block, and not a block of its own; `needs_picture`: there must be one. `cameras`:
    it is
    told where each frame is seen from, and a held key leads so far with every picture. `whole_blocks`: it makes none that are
    shorter. `cut_frames`:
    frames that a scene cut leaves out between two blocks' positions, 0 for a model that knows no cuts."""

    name: str
    frames_per_block: int
    weights_key: str
    sigmas: tuple[float, ...] = FOUR_STEPS
    first_block_sigmas: tuple[float, ...] | None = None
    shift: float = 5.0
    context_noise: float = 0.0
    window_frames: int | None = None
    sink_frames: int = 0
    trained_frames: int = 21
    needs_lora: bool = False
    guidance: float = 1.0
    told_zero_sigma: float = 0.0
    width: int = 1536
    frame_pictures: int = 4
    sizes: tuple[int, int] | None = None
    prompt_from: str = "CLIP Text Encode with the text encoder of Wan 2.1"
    given_by_block: bool = False
    solver: Solver | None = None
    reindexed: bool = False
    picture_in_block: bool = False
    needs_picture: bool = False
    cameras: Steps | None = None
    whole_blocks: bool = False
    cut_frames: int = 0


def by_name(*variants: CausalVariant) -> dict[str, CausalVariant]:
    """In the order of menus."""
    return {variant.name: variant for variant in variants}
