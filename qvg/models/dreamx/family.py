"""DreamX-World 5B, autoregressive: the world for people whom WorldPlay's licence leaves out."""

from __future__ import annotations

from ..common.shape import NetworkShape
from ..common.video_decoder import WAN_2_2
from ..family import Ability, Family, FileFormat, Licence
from ..wan.diffusers_names import diffusers_names
from .checkpoint import is_dreamx, read_dreamx
from .network import load_dreamx
from .variants import VARIANTS

_LAYERS, _WIDTH, _MLP = 30, 3072, 14336

FAMILY = Family(
    name="dreamx",
    title="DreamX-World 5B",
    abilities=frozenset({Ability.PICTURE, Ability.CAMERA, Ability.WORLD}),
    licence=Licence("of the model's own card; its code is Apache-2.0", "https://huggingface.co/GD-ML/DreamX-World-5B"),
    networks={
        "dreamx-5b": NetworkShape(
            "DreamX-World 5B (Wan 2.2)",
            layers=_LAYERS,
            heads=24,
            mlp=_MLP,
            parameters=5_283_110_592,
            layer_parameters=_LAYERS * (9 * _WIDTH**2 + 2 * _WIDTH * _MLP),
            decoder=WAN_2_2,
            float32_parameters=(4 * 48 + 1) * _WIDTH,
            token_pixels=32,
            chunk_frames=3,
            channels=48,
            in_attention=12,  # the cameras' queries, keys, values and output take half a residual more, twice over
        )
    },
    variants=VARIANTS,
    files=FileFormat(is_dreamx, read_dreamx, float32=("patch_embedding.",), in_loras=diffusers_names),
    load_with="Load Camera World",
    converts="10.6 GB in bf16 of the 21 GB that are released",
    network=load_dreamx,
    adapter="causal.dreamx_adapter",
)
