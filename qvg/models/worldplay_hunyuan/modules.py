"""The layers of HunyuanVideo 1.5 and those that HY-WorldPlay adds to it, by ComfyUI's names: structure alone.

What is computed with them is in `hunyuan_text` and `worldplay_hunyuan`, which ask no more of a network than these names, so that
ComfyUI's own serves as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...cache.spec import CacheSpec
from ...errors import ConfigError, UnsupportedModelError
from ...positions.rope import GridRope, hunyuan_rope
from ..common.modulation import SINES

HEAD_DIM = 128  # rotary encoding deals 16, 56 and 56 channels to time, row and column
EPS = 1e-6
REFINER_BLOCKS = 2
_MLP_RATIO = 4


@dataclass(frozen=True)
class HunyuanConfig:
    """Shape of the model; as it stands the 8B's. `channels` are the latent's: the network reads as many again of the picture to
    start with, and a mask."""

    layers: int = 54
    heads: int = 16
    channels: int = 32
    text_channels: int = 3584
    byt5_channels: int = 1472
    byt5_hidden: int = 2048
    vision_channels: int = 1152

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return self.heads * HEAD_DIM

    @property
    def channels_in(self) -> int:
        """Channels that the network reads."""
        return 2 * self.channels + 1

    @staticmethod
    def of(shapes: Mapping[str, Tensor]) -> HunyuanConfig:
        """Shape of a checkpoint with ComfyUI's names, merged or in parts. UnsupportedModelError: it is of something else."""
        try:
            layers = len({name.split(".")[1] for name in shapes if name.startswith("double_blocks.")})
            width, channels_in = shapes["img_in.proj.weight"].shape[:2]
            byt5_hidden, byt5_channels = shapes["byt5_in.fc1.weight"].shape
            text = shapes["txt_in.input_embedder.weight"].shape[1]
            vision = shapes["vision_in.proj.0.weight"].shape[0]
        except (KeyError, ValueError, IndexError) as error:
            raise UnsupportedModelError(
                f"the checkpoint is no HunyuanVideo 1.5 ({error}); give the transformer's weights, with a vision_in and a byt5_in"
            ) from error
        return HunyuanConfig(layers, width // HEAD_DIM, (channels_in - 1) // 2, text, byt5_channels, byt5_hidden, vision)

    def rope(self, latent_rows: int, latent_cols: int) -> GridRope:
        """Positions of a frame's tokens, which are its latent pixels."""
        return hunyuan_rope(latent_rows, latent_cols)

    def cache_spec(self, latent_rows: int, latent_cols: int, chunk_frames: int, batch: int = 1, dtype: Any = None) -> CacheSpec:
        """What the model asks of its memory, one attention wide, for frames of latent_rows x latent_cols."""
        if min(latent_rows, latent_cols) < 1:
            raise ConfigError(f"a latent of {latent_rows} x {latent_cols} has no tokens; use multiples of 16 pixels")
        kept = {} if dtype is None else {"dtype": dtype}
        return CacheSpec(self.layers, self.heads, HEAD_DIM, latent_rows * latent_cols, chunk_frames, batch, **kept)


class HunyuanNetwork(nn.Module):
    """All layers. It has no `forward`: see the module docstring."""

    def __init__(self, config: HunyuanConfig | None = None, operations: Any = nn, dtype: Any = None, device: Any = None):
        super().__init__()
        self.config = config = config or HunyuanConfig()
        width, make = config.width, _Maker(operations, {"dtype": dtype, "device": device})
        self.img_in = nn.Module()
        self.img_in.proj = operations.Conv3d(config.channels_in, width, kernel_size=1, **make.like)
        self.time_in, self.action_in = (make.embedder(SINES, width) for _ in range(2))
        self.txt_in = _Refiner(config, make)
        self.byt5_in = _Byt5(config, make)
        vision = config.vision_channels
        self.vision_in = nn.Module()
        layers = [make.norm(vision), make.linear(vision, vision), nn.GELU(), make.linear(vision, width), make.norm(width)]
        self.vision_in.proj = nn.Sequential(*layers)
        self.cond_type_embedding = nn.Embedding(3, width, **make.like)
        self.double_blocks = nn.ModuleList(_DoubleBlock(width, make) for _ in range(config.layers))
        self.final_layer = _Final(config, make)


class _Maker:
    """Layers of one kind of operations, dtype and device."""

    def __init__(self, operations: Any, like: dict[str, Any]):
        self.operations, self.like = operations, like

    def linear(self, inside: int, outside: int) -> Any:
        return self.operations.Linear(inside, outside, **self.like)

    def norm(self, channels: int, eps: float = 1e-5, affine: bool = True) -> Any:
        return self.operations.LayerNorm(channels, eps=eps, elementwise_affine=affine, **self.like)

    def embedder(self, inside: int, width: int) -> nn.Module:
        made = nn.Module()
        made.in_layer, made.out_layer = self.linear(inside, width), self.linear(width, width)
        return made

    def mlp(self, width: int, activation: nn.Module) -> nn.Sequential:
        hidden = _MLP_RATIO * width
        return nn.Sequential(self.linear(width, hidden), activation, self.linear(hidden, width))

    def levels(self, width: int, count: int) -> nn.Sequential:
        return nn.Sequential(nn.SiLU(), self.linear(width, count * width))


class _Refiner(nn.Module):
    """Of the text encoder's output."""

    def __init__(self, config: HunyuanConfig, make: _Maker):
        super().__init__()
        width = config.width
        self.input_embedder = make.linear(config.text_channels, width)
        self.t_embedder, self.c_embedder = make.embedder(SINES, width), make.embedder(config.text_channels, width)
        self.individual_token_refiner = nn.Module()
        self.individual_token_refiner.blocks = nn.ModuleList(_RefinerBlock(width, make) for _ in range(REFINER_BLOCKS))


class _RefinerBlock(nn.Module):
    def __init__(self, width: int, make: _Maker):
        super().__init__()
        self.norm1, self.norm2 = make.norm(width, EPS), make.norm(width, EPS)
        self.self_attn = nn.Module()
        self.self_attn.qkv, self.self_attn.proj = make.linear(width, 3 * width), make.linear(width, width)
        self.mlp, self.adaLN_modulation = make.mlp(width, nn.SiLU()), make.levels(width, 2)


class _Byt5(nn.Module):
    """Of the letters that a picture is to show."""

    def __init__(self, config: HunyuanConfig, make: _Maker):
        super().__init__()
        hidden = config.byt5_hidden
        self.layernorm = make.norm(config.byt5_channels)
        self.fc1, self.fc2 = make.linear(config.byt5_channels, hidden), make.linear(hidden, hidden)
        self.fc3 = make.linear(hidden, config.width)


class _Attention(nn.Module):
    """Queries and keys are normalised head by head."""

    def __init__(self, width: int, make: _Maker):
        super().__init__()
        self.qkv, self.proj = make.linear(width, 3 * width), make.linear(width, width)
        self.norm = nn.Module()
        for which in ("query_norm", "key_norm"):
            setattr(self.norm, which, make.operations.RMSNorm(HEAD_DIM, eps=EPS, **make.like))


class _DoubleBlock(nn.Module):
    """A stream of the video and one of the text."""

    def __init__(self, width: int, make: _Maker):
        super().__init__()
        for stream in ("img", "txt"):
            modulation = nn.Module()
            modulation.lin = make.linear(width, 6 * width)
            setattr(self, f"{stream}_mod", modulation)
            setattr(self, f"{stream}_norm1", make.norm(width, EPS, affine=False))
            setattr(self, f"{stream}_attn", _Attention(width, make))
            setattr(self, f"{stream}_norm2", make.norm(width, EPS, affine=False))
            setattr(self, f"{stream}_mlp", make.mlp(width, nn.GELU("tanh")))
        self.img_attn_prope_proj = make.linear(width, width)


class _Final(nn.Module):
    def __init__(self, config: HunyuanConfig, make: _Maker):
        super().__init__()
        self.norm_final = make.norm(config.width, EPS, affine=False)
        self.linear = make.linear(config.width, config.channels)
        self.adaLN_modulation = make.levels(config.width, 2)
