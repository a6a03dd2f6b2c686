"""How each member of the causal Wan family was trained to be run: block size, noise levels, which weights of its file.

All share one network, Wan 2.1's text-to-video, and differ in the numbers below. They come from the inference configurations of
Self-Forcing (arXiv 2506.08009), Causal-Forcing (2602.02214) and ++ (2605.15141), CausVid (2412.07772) and LongLive (2509.22622).
"""

from __future__ import annotations

from dataclasses import dataclass

# Steps 1000, 750, 500, 250 bent by a shift of 5: 5 s / (1 + 4 s).
_FOUR_STEPS = (1.0, 0.9375, 5 / 6, 0.625, 0.0)


@dataclass(frozen=True)
class CausalVariant:
    """`sigmas` fall from 1 to 0; `first_block_sigmas` replaces them for the first block that is generated. `window_frames` and
    `sink_frames` are what the model was trained to see, None for everything. Frames are latent frames. `needs_lora`: released
    as a base and a LoRA. `guidance` is the classifier-free guidance that it wants, 1 for none."""

    name: str
    frames_per_block: int
    weights_key: str
    sigmas: tuple[float, ...] = _FOUR_STEPS
    first_block_sigmas: tuple[float, ...] | None = None
    shift: float = 5.0
    context_noise: float = 0.0
    window_frames: int | None = None
    sink_frames: int = 0
    trained_frames: int = 21
    needs_lora: bool = False
    guidance: float = 1.0


_ALL = (
    CausalVariant("self-forcing", 3, "generator_ema"),
    CausalVariant("causal-forcing-chunkwise", 3, "generator"),
    CausalVariant("causal-forcing-framewise", 1, "generator_ema"),
    CausalVariant("causal-forcing++-2step", 1, "generator_ema", (1.0, 5 / 6, 0.0), _FOUR_STEPS),
    CausalVariant("causal-forcing++-1step", 1, "generator_ema", (1.0, 0.0), _FOUR_STEPS),
    CausalVariant("causvid", 3, "generator", (1.0, 0.757, 0.522, 0.0), shift=8.0),
    CausalVariant("longlive", 3, "generator", window_frames=12, sink_frames=3, needs_lora=True),
)

VARIANTS = {variant.name: variant for variant in _ALL}

# HY-WorldPlay (arXiv 2512.14614) on Wan 2.2 5B, of another network and another loop: four steps bent by a shift of 8, finished
# frames shown at 14 of 1000. Its context is chosen by where the camera looks, see `qvg.camera`; a session ends at 241.
WORLDPLAY_5B = CausalVariant(
    "worldplay-5b",
    4,
    "generator",
    (1.0, 0.96, 8 / 9, 8 / 11, 0.0),
    shift=8.0,
    context_noise=0.014,
    window_frames=16,
    trained_frames=241,
)

# The same on HunyuanVideo 1.5: a shift of 5, fifty steps with guidance unless distilled, videos of 125 frames (32 latent ones).
_FIFTY_STEPS = tuple(5 * even / (1 + 4 * even) for even in (1 - step / 50 for step in range(51)))


def _worldplay_8b(name: str, sigmas: tuple[float, ...], guidance: float = 1.0) -> CausalVariant:
    return CausalVariant(name, 4, "", sigmas, context_noise=0.014, window_frames=20, trained_frames=32, guidance=guidance)


WORLDPLAY_8B = {
    variant.name: variant
    for variant in (
        _worldplay_8b("worldplay-8b-distilled", _FOUR_STEPS),
        _worldplay_8b("worldplay-8b", _FIFTY_STEPS, 6.0),
        _worldplay_8b("worldplay-8b-rl", _FIFTY_STEPS, 6.0),
        _worldplay_8b("worldplay-8b-bidirectional", _FIFTY_STEPS, 6.0),
    )
}
