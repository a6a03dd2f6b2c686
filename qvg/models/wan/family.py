"""Causal Wan 2.1 at 1.3B."""

from __future__ import annotations

from ..common.checkpoint import CausalCheckpoint
from ..common.weight_files import WeightFile
from ..family import Ability, Family, FileFormat, Licence, ReadOptions
from .checkpoint import is_wan, read_causal_wan
from .diffusers_names import diffusers_names
from .network import load_wan
from .shape import wan_shape
from .variants import NAMES, VARIANTS


def _read(file: WeightFile, options: ReadOptions) -> CausalCheckpoint:
    return read_causal_wan(file.path, options.variant, options.weights, file, options.has_lora, options.members)


FILES = FileFormat(is_wan, _read, float32=("patch_embedding.",), in_loras=diffusers_names)

FAMILY = Family(
    name="causal-wan",
    title="causal Wan (Self-Forcing, Causal-Forcing, CausVid, LongLive)",
    abilities=frozenset({Ability.TEXT, Ability.PICTURE}),
    licence=Licence("of each model's own card", "https://github.com/guandeh17/Self-Forcing"),
    networks={
        "self-forcing-1.3b": wan_shape("Self-Forcing 1.3B", 30, 12, 8960, 1_418_996_800, 3),
        "causal-forcing-1.3b": wan_shape("Causal-Forcing 1.3B, frame-wise", 30, 12, 8960, 1_418_996_800, 1),
    },
    variants=VARIANTS,
    names=NAMES,
    files=FILES,
    load_with="Load Causal Wan",
    converts="a file that ComfyUI's Load Diffusion Model knows, by its mark, to be a causal Wan",
    network=load_wan,
    adapter="causal.adapter",
)
