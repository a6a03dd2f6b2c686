"""LongCat-Video 13.6B."""

from __future__ import annotations

from ..common.checkpoint import CausalCheckpoint
from ..common.shape import NetworkShape
from ..common.weight_files import WeightFile
from ..family import Ability, Family, FileFormat, Licence, ReadOptions
from .checkpoint import is_longcat, read_longcat, released_file
from .lora import with_lora
from .names import in_eight_bits
from .network import load_longcat
from .variants import VARIANTS


def _read(file: WeightFile, options: ReadOptions) -> CausalCheckpoint:
    return read_longcat(file.path, options.variant, options.weights, file)


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
            chunk_frames=5,  # Quant VideoGen's segments: 20 new pictures
            beside_mlp=4,
            is_counted=True,
            segment_frames=24,
            condition_frames=4,
            branches=2,
            keeps_prompt=False,
            pictures_per_second=15,
        )
    },
    variants=VARIANTS,
    files=FileFormat(
        is_longcat,
        _read,
        in_folder=released_file,
        with_lora=with_lora,
        fp8=in_eight_bits,
    ),
    load_with="Load LongCat",
    converts="one file for Load LongCat of the folder that is released, 27.2 GB, or 14.2 GB in fp8",
    network=load_longcat,
    adapter="longcat.adapter",
)
