"""Causal Wan 2.1, text to video, without ComfyUI: the network of Self-Forcing, Causal-Forcing, CausVid and LongLive.

Inside ComfyUI core's own network runs; this one is for tests and for full-size measurements. Names of weights are those of the
official code (guandeh17/Self-Forcing, `model.` taken off), whose numbers it makes. Every latent frame has a noise level of its
own; self-attention goes through a `KVCache`, with keys before RoPE; the prompt's keys and values are made once per prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ...attention import prompt as prompts
from ...cache import KVCache
from ...cache.spec import CacheSpec
from ...errors import ConfigError, UnsupportedModelError
from ...positions.rope import GridRope, pairs_apart, wan_rope
from ..common.modulation import SINES, gated, modulated, sines

# attend(layer index, q, k, v) -> attention output; q, k before RoPE, pairs apart; all [B, H, S, D]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
Rows = tuple[Tensor, Tensor] | prompts.MergedPrompt

PATCH = 2  # latent pixels along a token's side
TIME_SCALE = 1000  # the network's noise levels run from 0 to 1000
EPS = 1e-6


_Network = TypeVar("_Network", bound="CausalWan")


@dataclass(frozen=True)
class WanConfig:
    """Shape of the model; as it stands the 1.3B's."""

    layers: int = 30
    heads: int = 12
    head_dim: int = 128
    mlp: int = 8960
    channels: int = 16
    text_channels: int = 4096
    text_tokens: int = 512
    beside_channels: int = 0  # of its input, that are no noise

    @staticmethod
    def wan_1_3b() -> WanConfig:
        """Self-Forcing and its family."""
        return WanConfig()

    @staticmethod
    def of(state: Mapping[str, Tensor]) -> WanConfig:
        """Shape of a checkpoint, whose names have lost their prefixes. UnsupportedModelError: it is of something else."""
        image = next((name for name in state if name.startswith("img_emb.") or ".k_img." in name), None)
        if image is not None:
            raise UnsupportedModelError(
                f"the checkpoint holds {image!r}, so it is an image-to-video Wan; use a text-to-video one"
            )
        try:
            layers = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
            width, text_channels = state["text_embedding.0.weight"].shape
            mlp, channels = state["blocks.0.ffn.0.weight"].shape[0], state["patch_embedding.weight"].shape[1]
        except (KeyError, ValueError, IndexError) as error:
            raise UnsupportedModelError(
                f"the checkpoint is no Wan 2.1 ({error}); give the network's weights, 'blocks.0.self_attn.q.weight' and so on, "
                "without 'generator' or 'model.' in front"
            ) from error
        return WanConfig(layers, width // 128, 128, mlp, channels, text_channels)

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return self.heads * self.head_dim

    @property
    def out_channels(self) -> int:
        """Of the velocity, and of the noise."""
        return self.channels - self.beside_channels

    def rope(self, latent_rows: int, latent_cols: int) -> GridRope:
        """Positions of a frame's tokens."""
        return wan_rope(*_grid(latent_rows, latent_cols), self.head_dim)

    def cache_spec(
        self, latent_rows: int, latent_cols: int, chunk_frames: int, batch: int = 1, dtype: torch.dtype = torch.bfloat16
    ) -> CacheSpec:
        """What the model asks of its cache for videos of latent_rows x latent_cols, `chunk_frames` latent frames at a time."""
        rows, cols = _grid(latent_rows, latent_cols)
        return CacheSpec(self.layers, self.heads, self.head_dim, rows * cols, chunk_frames, batch, dtype)


def _grid(latent_rows: int, latent_cols: int) -> tuple[int, int]:
    if latent_rows % PATCH or latent_cols % PATCH:
        raise ConfigError(
            f"a latent of {latent_rows} x {latent_cols} does not divide into tokens of {PATCH} x {PATCH}; use even sizes, "
            "multiples of 16 pixels"
        )
    return latent_rows // PATCH, latent_cols // PATCH


@dataclass(frozen=True)
class Prompt:
    """Cross-attention's keys and values of one prompt, layer by layer. `is_merged`: padding was put together in some layer."""

    layers: Sequence[Rows]

    @property
    def is_merged(self) -> bool:
        """Whether results differ in their last bits from the model's own."""
        return any(isinstance(rows, prompts.MergedPrompt) for rows in self.layers)

    def check(self, cache: KVCache) -> None:
        """Raise ConfigError where the cache is to give the model's own numbers, and this prompt does not."""
        if self.is_merged and cache.config.codec == "none":
            raise ConfigError(
                "the prompt's padding is merged, but codec 'none' stands for the model's own numbers; read the prompt without "
                "merge, or use another codec"
            )

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """q [B, H, S, D] -> the same shape."""
        rows = self.layers[layer]
        return prompts.attend(q, rows) if isinstance(rows, prompts.MergedPrompt) else F.scaled_dot_product_attention(q, *rows)


class WanAttention(nn.Module):
    """Projections of self- and cross-attention. Queries and keys are normalised over all heads at once."""

    def __init__(self, config: WanConfig, operations: Any, like: dict[str, Any]):
        super().__init__()
        self.heads, width = config.heads, config.width
        self.q, self.k, self.v, self.o = (operations.Linear(width, width, **like) for _ in range(4))
        self.norm_q, self.norm_k = (operations.RMSNorm(width, eps=EPS, **like) for _ in range(2))

    def queries(self, x: Tensor) -> Tensor:
        """[B, S, W] -> [B, H, S, D]."""
        return self._split(self.norm_q(self.q(x)))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S, W] -> two of [B, H, S, D]."""
        return self._split(self.norm_k(self.k(x))), self._split(self.v(x))

    def out(self, x: Tensor) -> Tensor:
        """[B, H, S, D] -> [B, S, W]."""
        joined: Tensor = self.o(rearrange(x, "b h s d -> b s (h d)"))
        return joined

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = rearrange(x, "b s (h d) -> b h s d", h=self.heads)
        return heads


class CausalWan(nn.Module):
    """x [B, F, C, h, w] at noise levels t [B, F], 0 to 1000 -> velocity (noise - clean) of the same shape."""

    self_attention: type[WanAttention] = WanAttention
    block: type[WanBlock]  # below

    def __init__(self, config: WanConfig | None = None, operations: Any = nn, dtype: Any = None, device: Any = None):
        super().__init__()
        self.config = config = config or WanConfig.wan_1_3b()
        like, width = {"dtype": dtype, "device": device}, config.width
        linear, patch = operations.Linear, (1, PATCH, PATCH)
        self.patch_embedding = operations.Conv3d(config.channels, width, kernel_size=patch, stride=patch, **like)
        gelu = nn.GELU("tanh")
        self.text_embedding = nn.Sequential(linear(config.text_channels, width, **like), gelu, linear(width, width, **like))
        self.time_embedding = nn.Sequential(linear(SINES, width, **like), nn.SiLU(), linear(width, width, **like))
        self.time_projection = nn.Sequential(nn.SiLU(), linear(width, 6 * width, **like))
        self.blocks = nn.ModuleList(self.block(config, operations, like, self.self_attention) for _ in range(config.layers))
        self.head = _Head(config, operations, like)

    def forward(self, x: Tensor, t: Tensor, prompt: Prompt, attend: Attend) -> Tensor:
        """One pass; `attend` owns the memory and the positions."""
        return self._velocity(x, self.time_embedding(sines(t).to(x.dtype)), prompt, attend)

    def _velocity(self, x: Tensor, level: Tensor, prompt: Prompt, attend: Attend, beside: Any = None) -> Tensor:
        """`forward` with what every frame is conditioned on, level [B, F, W]. `beside`: what blocks of other kinds see, too."""
        tokens, shared = self._tokens(x), self._shared(level)
        for layer, block in enumerate(self.blocks):
            tokens = block(tokens, shared, layer, attend, prompt, beside)
        sizes = {"f": x.shape[1], "h": x.shape[3] // PATCH, "p": PATCH, "q": PATCH}
        video: Tensor = rearrange(self.head(tokens, level), "b (f h w) (p q c) -> b f c (h p) (w q)", **sizes)
        return video

    def _tokens(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.patch_embedding(x.transpose(1, 2)).flatten(2).transpose(1, 2)
        return tokens

    def _shared(self, level: Tensor) -> Tensor:
        """[B, F, W] -> [B, F, 6, W]."""
        shared: Tensor = self.time_projection(level).unflatten(-1, (6, -1))
        return shared

    @torch.inference_mode()
    def read_prompt(self, text: Tensor, merge: bool = False) -> Prompt:
        """Keys and values of a text encoder's output [B, n, C], n at most `text_tokens`; the rest is padding.

        `merge`: padding, equal row by row, takes one row (see `qvg.attention.prompt`): the same to rounding, and less to read.
        """
        most = self.config.text_tokens
        if text.ndim != 3 or text.shape[1] > most or text.shape[2] != self.config.text_channels:
            raise ConfigError(
                f"the prompt is {list(text.shape)}, but this model reads [batch, at most {most} tokens, "
                f"{self.config.text_channels} channels]; take it from its own text encoder"
            )
        text = F.pad(text, (0, 0, 0, most - text.shape[1]))
        embedded = self.text_embedding(text.to(self.patch_embedding.weight.dtype))
        layers = []
        for block in self.blocks:
            assert isinstance(block, WanBlock)
            k, v = block.cross_attn.keys_values(embedded)
            layers.append((prompts.merge_equal_rows(k, v) if merge else None) or (k, v))
        return Prompt(layers)


class WanBlock(nn.Module):
    """Self-attention, cross-attention and MLP; shift, scale and gate of a frame come from its noise level plus a table."""

    def __init__(
        self, config: WanConfig, operations: Any, like: dict[str, Any], self_attention: type[WanAttention] = WanAttention
    ):
        super().__init__()
        width = config.width
        self.norm1, self.norm2 = (_norm(width, operations, like) for _ in range(2))
        self.norm3 = operations.LayerNorm(width, eps=EPS, **like)
        self.self_attn, self.cross_attn = (kind(config, operations, like) for kind in (self_attention, WanAttention))
        mlp = [operations.Linear(width, config.mlp, **like), nn.GELU("tanh"), operations.Linear(config.mlp, width, **like)]
        self.ffn = nn.Sequential(*mlp)
        self.modulation = nn.Parameter(torch.zeros(1, 6, width, **like))

    def forward(self, tokens: Tensor, shared: Tensor, layer: int, attend: Attend, prompt: Prompt, beside: Any = None) -> Tensor:
        """tokens [B, F*S, W], shared [B, F, 6, W]."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self._parts(shared)
        x = modulated(self.norm1(tokens), shift_a, scale_a)
        k, v = self.self_attn.keys_values(x)
        attention = attend(layer, pairs_apart(self.self_attn.queries(x)), pairs_apart(k), v)
        out = self.self_attn.out(attention)
        tokens = tokens + gated(out if beside is None else self.with_beside(out, x, beside), gate_a)
        tokens = tokens if beside is None else self.before_text(tokens, beside)
        attention = prompt.attend(layer, self.cross_attn.queries(self.norm3(tokens)))
        tokens = tokens + self.cross_attn.out(attention)
        update: Tensor = self.ffn(modulated(self.norm2(tokens), shift_m, scale_m))
        return tokens + gated(update, gate_m)

    def with_beside(self, out: Tensor, x: Tensor, beside: Any) -> Tensor:
        """What self-attention gives of its input x, before the gate, and what a block of another kind adds. [B, F*S, W]"""
        return out

    def before_text(self, tokens: Tensor, beside: Any) -> Tensor:
        """Tokens before cross-attention, as a block of another kind changes them. [B, F*S, W]"""
        return tokens

    def keys_values(self, tokens: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` hands to `attend`, where nothing else is asked of this block."""
        shift, scale, *_ = self._parts(shared)
        k, v = self.self_attn.keys_values(modulated(self.norm1(tokens), shift, scale))
        return pairs_apart(k), v

    def _parts(self, shared: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of attention, then of the MLP, each [B, F, 1, W]."""
        return (shared + self.modulation.to(shared)).unsqueeze(3).unbind(2)


CausalWan.block = WanBlock


class _Head(nn.Module):
    """Tokens to the latent pixels of their patches."""

    def __init__(self, config: WanConfig, operations: Any, like: dict[str, Any]):
        super().__init__()
        self.norm = _norm(config.width, operations, like)
        self.head = operations.Linear(config.width, PATCH**2 * config.out_channels, **like)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.width, **like))

    def forward(self, tokens: Tensor, level: Tensor) -> Tensor:
        """tokens [B, F*S, W], level [B, F, W]."""
        shift, scale = (level.unsqueeze(2) + self.modulation.to(level)).unsqueeze(3).unbind(2)
        pixels: Tensor = self.head(modulated(self.norm(tokens), shift, scale))
        return pixels


def _norm(width: int, operations: Any, like: dict[str, Any]) -> Any:
    return operations.LayerNorm(width, elementwise_affine=False, eps=EPS, **like)


class WanDenoiser:
    """The model as the sampling loop wants it, for one latent size. Blocks are [B, F, C, h, w]. A new prompt in the middle of a
    video: put it into `prompt` between two blocks. `told_zero_sigma`: see `CausalVariant`."""

    def __init__(
        self,
        model: CausalWan,
        prompt: Prompt,
        latent_rows: int,
        latent_cols: int,
        batch: int = 1,
        told_zero_sigma: float = 0.0,
    ):
        self.model, self.prompt, self.batch, self._told_zero = model, prompt, batch, told_zero_sigma
        self.latent_rows, self.latent_cols = latent_rows, latent_cols
        weight = model.patch_embedding.weight
        self.device, self.dtype = weight.device, weight.dtype

    def block_shape(self, frames: int) -> tuple[int, ...]:
        """See `sampling.Denoiser`."""
        return (self.batch, frames, self.model.config.out_channels, self.latent_rows, self.latent_cols)

    def predict_clean(self, x: Tensor, noise_level: float, cache: KVCache) -> Tensor:
        """See `sampling.Denoiser`. Above noise level 0 a layer's keys and values are let go once it has attended."""

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = cache.attend(layer, q, k, v)
            if noise_level > 0:
                cache.release(layer)
            return out

        return self._clean(x, noise_level, cache, attend)

    def commit_clean(self, x: Tensor, cache: KVCache) -> None:
        """See `sampling.CommitsByLayer`."""

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = cache.attend(layer, q, k, v)
            cache.commit_layer(layer)
            return out

        self._clean(x, 0.0, cache, attend)

    @torch.inference_mode()
    def _clean(self, x: Tensor, noise_level: float, cache: KVCache, attend: Attend) -> Tensor:
        self.prompt.check(cache)
        told = 0.0 if noise_level <= self._told_zero else noise_level * TIME_SCALE
        levels = torch.full(x.shape[:2], told, device=x.device)
        velocity: Tensor = self.model(x.to(self.dtype), levels, self.prompt, attend)
        return x - noise_level * velocity.to(x.dtype)


def load_wan(
    state: Mapping[str, Tensor], operations: Any = nn, dtype: torch.dtype = torch.float32, device: Any = None
) -> CausalWan:
    """The model of a checkpoint, ready to run. UnsupportedModelError: its weights do not fit."""
    return loaded(CausalWan, "Wan 2.1 text to video", state, operations, dtype, device)


def loaded(
    network: type[_Network], title: str, state: Mapping[str, Tensor], operations: Any, dtype: torch.dtype, device: Any
) -> _Network:
    """A network of this kind with a checkpoint's weights, ready to run. UnsupportedModelError, by the model's title: they do not
    fit."""
    state = {name.removeprefix("model."): weight for name, weight in state.items()}
    model = network(WanConfig.of(state), operations, dtype=dtype, device=device)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"the checkpoint does not fit {title} ({str(error).splitlines()[1].strip()}); use a whole file"
        ) from error
    return model.eval().requires_grad_(False)
