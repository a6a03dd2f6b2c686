"""LongLive 2.0 5B: long videos of several shots on Wan 2.2."""

from __future__ import annotations

from ..common.shape import NetworkShape
from ..common.video_decoder import WAN_2_2
from ..family import Ability, Family, FileFormat, Licence
from ..wan.diffusers_names import diffusers_names
from .checkpoint import is_longlive2, read_longlive2
from .network import load_longlive2
from .variants import VARIANTS

_LAYERS, _WIDTH, _MLP = 30, 3072, 14336

FAMILY = Family(
    name="longlive2",
    title="LongLive 2.0 5B",
    abilities=frozenset({Ability.TEXT, Ability.PICTURE}),
    licence=Licence(
        "of the model's own card; its code is Apache-2.0", "https://huggingface.co/Efficient-Large-Model/LongLive-2.0-5B"
    ),
    networks={
        "longlive2-5b": NetworkShape(
            "LongLive 2.0 5B (Wan 2.2)",
            layers=_LAYERS,
            heads=24,
            mlp=_MLP,
            parameters=4_999_787_712,
            layer_parameters=_LAYERS * (8 * _WIDTH**2 + 2 * _WIDTH * _MLP),
            decoder=WAN_2_2,
            float32_parameters=(4 * 48 + 1) * _WIDTH,
            token_pixels=32,
            chunk_frames=8,
            channels=48,
            pictures_per_second=24,
        )
    },
    variants=VARIANTS,
    files=FileFormat(is_longlive2, read_longlive2, float32=("patch_embedding.",), in_loras=diffusers_names),
    load_with="Load Causal Wan",
    converts="10.0 GB in bf16, which Load Causal Wan knows by its mark",
    network=load_longlive2,
    adapter="causal.longlive2_adapter",
)
