"""LongCat-Video 13.6B: its memory can be planned; nothing loads it yet."""

from __future__ import annotations

from ..common.shape import NetworkShape
from ..family import Ability, Family, Licence

FAMILY = Family(
    name="longcat",
    title="LongCat-Video",
    abilities=frozenset({Ability.TEXT, Ability.PICTURE}),
    licence=Licence("MIT", "https://huggingface.co/meituan-longcat/LongCat-Video"),
    networks={
        "longcat-13b": NetworkShape(
            "LongCat-Video 13.6B",
            layers=48,
            heads=32,
            mlp=11008,
            parameters=13_581_071_424,
            layer_parameters=48 * (8 * 4096**2 + 3 * 4096 * 11008 + 6 * 512 * 4096),
            chunk_frames=20,  # new ones of a segment of 24, as released; 5 in Quant VideoGen's
            segment_frames=24,
            beside_mlp=4,
            is_counted=True,
            keeps_prompt=False,
            pictures_per_second=15,
        )
    },
)
