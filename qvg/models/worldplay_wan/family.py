"""HY-WorldPlay on Wan 2.2 5B."""

from __future__ import annotations

from ...camera.selection import WAN_MEMORY
from ..common.checkpoint import CausalCheckpoint
from ..common.shape import NetworkShape
from ..common.variants import by_name
from ..common.video_decoder import WAN_2_2
from ..common.weight_files import WeightFile
from ..family import Ability, Family, FileFormat, Licence, ReadOptions, WorldRule
from ..wan.diffusers_names import diffusers_names
from .checkpoint import base_lacks, is_worldplay, read_worldplay, require_variant
from .network import load_worldplay
from .variants import WORLDPLAY_5B


def _read(file: WeightFile, options: ReadOptions) -> CausalCheckpoint:
    require_variant(options.variant)
    return read_worldplay(file.path, options.weights, file)


FAMILY = Family(
    name="worldplay-wan",
    title="HY-WorldPlay 5B",
    abilities=frozenset({Ability.TEXT, Ability.PICTURE, Ability.CAMERA, Ability.WORLD}),
    licence=Licence(
        "Tencent's community licence",
        "https://huggingface.co/tencent/HY-WorldPlay",
        "It does not hold in the European Union, the United Kingdom and South Korea.",
    ),
    # A world's keys and values are stored once, before RoPE: half of what its vendor keeps.
    networks={
        "worldplay-5b": NetworkShape(
            "HY-WorldPlay 5B (Wan 2.2)",
            layers=30,
            heads=24,
            mlp=14336,
            parameters=5_293_225_152,
            layer_parameters=30 * (9 * 3072**2 + 2 * 3072 * 14336),
            decoder=WAN_2_2,
            float32_parameters=592_896,
            token_pixels=32,
            chunk_frames=4,
            channels=48,
            in_attention=16,  # two branches, one rotated by RoPE, one transformed by the camera
            context_frames=16,
            most_frames=240,
        )
    },
    variants=by_name(WORLDPLAY_5B),
    files=FileFormat(is_worldplay, _read, base_lacks, float32=("patch_embedding.",), in_loras=diffusers_names),
    load_with="Load WorldPlay",
    converts="10.6 GB for Load WorldPlay of the 40 GB that are released",
    memory=WorldRule(WAN_MEMORY, (1280, 704), "Wan 2.2"),
    network=load_worldplay,
    adapter="world.wan_adapter",
)
