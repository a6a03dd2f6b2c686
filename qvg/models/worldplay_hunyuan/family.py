"""HY-WorldPlay on HunyuanVideo 1.5."""

from __future__ import annotations

import torch

from ...camera.selection import HUNYUAN_MEMORY
from ..common.checkpoint import CausalCheckpoint
from ..common.shape import NetworkShape
from ..common.video_decoder import VideoDecoder
from ..common.weight_files import WeightFile
from ..family import Ability, Family, FileFormat, Licence, ReadOptions, WorldRule
from .checkpoint import is_worldplay_hunyuan, read_worldplay_hunyuan
from .network import load_worldplay_hunyuan
from .variants import WORLDPLAY_8B

# HunyuanVideo 1.5's VAE as ComfyUI 0.33 decodes it, two latent frames at a time, counted as those in `video_decoder`; the
# pictures it gathers on the device are not in it.
_DECODER = VideoDecoder(7700.0, 1_262_735_363, 16, 8)


def _read(file: WeightFile, options: ReadOptions) -> CausalCheckpoint:
    return read_worldplay_hunyuan(file.path, options.variant, options.weights, file)


FAMILY = Family(
    name="worldplay-hunyuan",
    title="HY-WorldPlay 8B",
    abilities=frozenset({Ability.PICTURE, Ability.CAMERA, Ability.WORLD}),
    licence=Licence(
        "Tencent's community licence",
        "https://huggingface.co/tencent/HY-WorldPlay",
        "It does not hold in the European Union, the United Kingdom and South Korea.",
    ),
    networks={
        "worldplay-8b": NetworkShape(
            "HY-WorldPlay 8B (HunyuanVideo 1.5)",
            layers=54,
            heads=16,
            mlp=8192,
            parameters=8_557_933_856,
            layer_parameters=54 * (2 * (4 + 8 + 6) + 1) * 2048**2,
            decoder=_DECODER,
            chunk_frames=4,
            channels=32,
            text_tokens=1985,  # 1,000 of the prompt, 256 of texts to paint, 729 of the picture
            text_channels=3584,
            beside_mlp=12,  # modulation is spread over tokens
            in_attention=22,
            context_frames=20,
            most_frames=240,
        )
    },
    variants=WORLDPLAY_8B,
    files=FileFormat(
        is_worldplay_hunyuan,
        _read,
        no_lora="is HY-WorldPlay on HunyuanVideo 1.5; merge no LoRA here, but load it in ComfyUI",
    ),
    load_with="Load WorldPlay",
    converts="the same model by ComfyUI's names",
    memory=WorldRule(HUNYUAN_MEMORY, (832, 480), "HunyuanVideo 1.5", torch.float64),
    network=load_worldplay_hunyuan,
    adapter="world.hunyuan_adapter",
)
