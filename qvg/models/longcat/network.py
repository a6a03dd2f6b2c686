"""LongCat-Video 13.6B: text to video, image to video and continuation in one network (arXiv 2510.22200, MIT).

Names of weights are those of the released `dit` folder, whose code's numbers it makes. ComfyUI has no such network, so this one
runs there too: `operations` is where its layers come from, as in ComfyUI's own (torch.nn, or ComfyUI's, which cast and offload).
Every latent frame has a noise level of its own: those that a segment is conditioned on are told 0, see each other alone and do
not read the text. Noise levels and what they do to tokens are computed in float32, whatever the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError, UnsupportedModelError
from ...positions.rope import pairs_apart
from ..common.modulation import SINES
from .config import PATCH, LongCatConfig

EPS = 1e-6


class Attend(Protocol):
    """attend(layer index, q, k, v) -> attention output; all [B, H, S, D], q and k before RoPE, pairs apart. It owns the memory
    and the positions."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, /) -> Tensor: ...


class Recording(Attend, Protocol):
    """Where a pass over what a segment is conditioned on leaves its keys and values."""

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Of a layer whose attention nobody needs: k and v [B, H, S, D]."""


@dataclass(frozen=True)
class Prompt:
    """A text as the layers read it, [B, `text_tokens`, W]: embedded, its padding zeros, which are attended like words, as
    released."""

    embedded: Tensor

    @property
    def batch(self) -> int:
        """Texts."""
        return self.embedded.shape[0]

    @staticmethod
    def joined(*prompts: Prompt) -> Prompt:
        """Several as one batch, in this order."""
        return Prompt(torch.cat([prompt.embedded for prompt in prompts]))


class LongCat(nn.Module):
    """x [B, F, C, h, w] at timesteps t [B, F], 0 to 1000 -> clean - noise, [B, F, C, h, w] in float32: the opposite sign of
    Wan's velocity. Tokens are computed in the dtype of x, which must be the prompt's, too."""

    def __init__(self, config: LongCatConfig | None = None, operations: Any = nn, dtype: Any = None, device: Any = None):
        super().__init__()
        self.config = config = config or LongCatConfig()
        like: dict[str, Any] = {"dtype": dtype, "device": device}
        self.x_embedder = _Patches(config, operations, like)
        self.t_embedder = _Levels(config, operations, like)
        self.y_embedder = _Text(config, operations, like)
        self.blocks = nn.ModuleList(_Block(config, operations, like) for _ in range(config.layers))
        self.final_layer = _Final(config, operations, like)

    def forward(self, x: Tensor, t: Tensor, prompt: Prompt, attend: Attend, condition_frames: int = 0) -> Tensor:
        """One pass. `condition_frames`: the first of the frames in x do not read the text; `attend` must see to it that they see
        themselves alone (`WholeAttention`)."""
        tokens, levels = self.x_embedder(x), self.t_embedder(t)
        silent = condition_frames * tokens.shape[1] // x.shape[1]
        for layer, block in enumerate(self.blocks):
            tokens = block(tokens, levels, layer, attend, prompt, silent)
        pixels = self.final_layer(tokens, levels)
        sizes = {"f": x.shape[1], "h": x.shape[3] // PATCH, "p": PATCH, "q": PATCH}
        video: Tensor = rearrange(pixels, "b (f h w) (p q c) -> b f c (h p) (w q)", **sizes)
        return video.float()

    def record(self, x: Tensor, recording: Recording) -> None:
        """The pass over what a segment is conditioned on, clean latents x [B, F, C, h, w]: all layers' keys and values, and
        nothing that they do not need. No text is read."""
        tokens, levels = self.x_embedder(x), self.t_embedder(torch.zeros(x.shape[:2], device=x.device))
        *blocks, last = self.blocks
        for layer, block in enumerate(blocks):
            tokens = block(tokens, levels, layer, recording, None, 0)
        assert isinstance(last, _Block)
        recording.keep(len(blocks), *last.keys_values(tokens, levels))

    @torch.inference_mode()
    def read_prompt(self, text: Tensor, tokens: Tensor | None = None) -> Prompt:
        """A text encoder's output [B, n, C], n at most `text_tokens`. `tokens`: how many of the n are words, [B]; None: rows of
        zeros at the end are padding, as ComfyUI's encoder leaves them. ConfigError for another encoder's."""
        most, channels = self.config.text_tokens, self.config.text_channels
        if text.ndim != 3 or text.shape[2] != channels:
            raise ConfigError(
                f"the prompt is {list(text.shape)}, but LongCat-Video reads [batch, tokens, {channels} channels]; encode it with "
                "umt5-xxl, the text encoder of Wan"
            )
        if text.shape[1] > most:
            raise ConfigError(f"the prompt has {text.shape[1]} tokens, but LongCat-Video reads {most}; shorten it")
        if tokens is None:
            words = text.ne(0).any(-1).flip(1).cummax(1).values.flip(1)
        else:
            words = torch.arange(text.shape[1], device=text.device) < tokens.to(text.device).view(-1, 1)
        embedded = self.y_embedder(text) * words[..., None]
        return Prompt(F.pad(embedded, (0, 0, 0, most - text.shape[1])))


class _Patches(nn.Module):
    """[B, F, C, h, w] -> [B, S, W]."""

    def __init__(self, config: LongCatConfig, operations: Any, like: dict[str, Any]):
        super().__init__()
        patch = (1, PATCH, PATCH)
        self.proj = operations.Conv3d(config.channels, config.width, kernel_size=patch, stride=patch, **like)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x.transpose(1, 2)).flatten(2).transpose(1, 2)
        return tokens


class _Levels(nn.Module):
    """t [B, F] -> [B, F, time_channels] in float32."""

    def __init__(self, config: LongCatConfig, operations: Any, like: dict[str, Any]):
        super().__init__()
        first = operations.Linear(SINES, config.time_channels, **like)
        self.mlp = nn.Sequential(first, nn.SiLU(), operations.Linear(config.time_channels, config.time_channels, **like))

    def forward(self, t: Tensor) -> Tensor:
        return linear_in_float32(self.mlp[2], F.silu(linear_in_float32(self.mlp[0], _sines(t))))


def _sines(t: Tensor) -> Tensor:
    """t [B, F] in 0..1000 -> cosines, then sines, [B, F, 256] in float32. Frequencies are rounded on the way as the released code
    rounds them: at 1000 another way's last bit is 6e-5 radians."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(SINES // 2, device=t.device, dtype=torch.float32) / (SINES // 2))
    angles = t.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


class _Text(nn.Module):
    """[B, n, text_channels] -> [B, n, W]."""

    def __init__(self, config: LongCatConfig, operations: Any, like: dict[str, Any]):
        super().__init__()
        first = operations.Linear(config.text_channels, config.width, **like)
        self.y_proj = nn.Sequential(first, nn.GELU("tanh"), operations.Linear(config.width, config.width, **like))

    def forward(self, text: Tensor) -> Tensor:
        embedded: Tensor = self.y_proj(text)
        return embedded


class _SelfAttention(nn.Module):
    """Projections of self-attention. Queries and keys are normalised head by head."""

    def __init__(self, config: LongCatConfig, operations: Any, like: dict[str, Any]):
        super().__init__()
        self.heads = config.heads
        self.qkv = operations.Linear(config.width, 3 * config.width, **like)
        self.q_norm, self.k_norm = (operations.RMSNorm(config.head_dim, eps=EPS, **like) for _ in range(2))
        self.proj = operations.Linear(config.width, config.width, **like)

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, S, W] -> queries, keys (pairs apart) and values, each [B, H, S, D]."""
        q, k, v = rearrange(self.qkv(x), "b s (n h d) -> n b h s d", n=3, h=self.heads)
        return pairs_apart(self.q_norm(q)), pairs_apart(self.k_norm(k)), v

    def out(self, x: Tensor) -> Tensor:
        """[B, H, S, D] -> [B, S, W]."""
        joined: Tensor = self.proj(rearrange(x, "b h s d -> b s (h d)"))
        return joined


class _CrossAttention(nn.Module):
    """Attention over the text. Its keys and values are made anew in every pass: kept, they would take 384 MiB in all 48 layers,
    and 0.2 % of a pass's operations make them."""

    def __init__(self, config: LongCatConfig, operations: Any, like: dict[str, Any]):
        super().__init__()
        self.heads = config.heads
        self.q_linear = operations.Linear(config.width, config.width, **like)
        self.kv_linear = operations.Linear(config.width, 2 * config.width, **like)
        self.q_norm, self.k_norm = (operations.RMSNorm(config.head_dim, eps=EPS, **like) for _ in range(2))
        self.proj = operations.Linear(config.width, config.width, **like)

    def forward(self, x: Tensor, prompt: Prompt) -> Tensor:
        """x [B, S, W] -> the same shape."""
        q = self.q_norm(rearrange(self.q_linear(x), "b s (h d) -> b h s d", h=self.heads))
        k, v = rearrange(self.kv_linear(prompt.embedded), "b s (n h d) -> n b h s d", n=2, h=self.heads)
        attention = F.scaled_dot_product_attention(q, self.k_norm(k), v)
        out: Tensor = self.proj(rearrange(attention, "b h s d -> b s (h d)"))
        return out


class _MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LongCatConfig, operations: Any, like: dict[str, Any]):
        super().__init__()
        self.w1, self.w3 = (operations.Linear(config.width, config.mlp, bias=False, **like) for _ in range(2))
        self.w2 = operations.Linear(config.mlp, config.width, bias=False, **like)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)).mul_(self.w3(x)))
        return out


class _Block(nn.Module):
    """Self-attention, cross-attention and MLP."""

    def __init__(self, config: LongCatConfig, operations: Any, like: dict[str, Any]):
        super().__init__()
        width = config.width
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(config.time_channels, 6 * width, **like))
        self.pre_crs_attn_norm = operations.LayerNorm(width, eps=EPS, **like)
        self.attn = _SelfAttention(config, operations, like)
        self.cross_attn = _CrossAttention(config, operations, like)
        self.ffn = _MLP(config, operations, like)

    def forward(self, x: Tensor, levels: Tensor, layer: int, attend: Attend, prompt: Prompt | None, silent: int) -> Tensor:
        """x [B, F*S, W], levels [B, F, time_channels]. The first `silent` tokens do not read the prompt; None: no token does."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self._parts(levels)
        x = gated_sum(x, self.attn.out(attend(layer, *self.attn.inputs(modulated(x, shift_a, scale_a)))), gate_a)
        if prompt is not None:
            read = self.cross_attn(self.pre_crs_attn_norm(x[:, silent:]), prompt)
            x = torch.cat([x[:, :silent], x[:, silent:] + read], 1) if silent else x + read
        return gated_sum(x, self.ffn(modulated(x, shift_m, scale_m)), gate_m)

    def keys_values(self, x: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` hands to `attend`, where nothing else is asked of this block."""
        shift, scale, *_ = self._parts(levels)
        _, k, v = self.attn.inputs(modulated(x, shift, scale))
        return k, v

    def _parts(self, levels: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of attention, then of the MLP, each [B, F, 1, W] in float32."""
        return linear_in_float32(self.adaLN_modulation[1], F.silu(levels)).unsqueeze(2).chunk(6, -1)


class _Final(nn.Module):
    """Tokens to the latent pixels of their patches, in float32."""

    def __init__(self, config: LongCatConfig, operations: Any, like: dict[str, Any]):
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(config.time_channels, 2 * config.width, **like))
        self.linear = operations.Linear(config.width, PATCH**2 * config.channels, **like)

    def forward(self, x: Tensor, levels: Tensor) -> Tensor:
        shift, scale = linear_in_float32(self.adaLN_modulation[1], F.silu(levels)).unsqueeze(2).chunk(2, -1)
        return linear_in_float32(self.linear, modulated(x, shift, scale).float())


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm of x [B, F*S, W], then shift and scale [B, F, 1, W] of each frame, in float32; a frame at a time, so that no more
    than one is there in 32 bits. -> as x."""
    out = torch.empty_like(x)
    frames, results = (tensor.unflatten(1, (shift.shape[1], -1)) for tensor in (x, out))
    for frame in range(shift.shape[1]):
        normal = F.layer_norm(frames[:, frame].float(), x.shape[-1:], eps=EPS)
        results[:, frame] = torch.addcmul(shift[:, frame], normal, 1 + scale[:, frame])
    return out


def gated_sum(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + gate * update, summed in float32 and rounded once; x and update [B, F*S, W], gate [B, F, 1, W]. Written to `update`."""
    frames, updates = (tensor.unflatten(1, (gate.shape[1], -1)) for tensor in (x, update))
    for frame in range(gate.shape[1]):
        updates[:, frame] = torch.addcmul(frames[:, frame].float(), updates[:, frame].float(), gate[:, frame])
    return update


def linear_in_float32(layer: Any, x: Tensor) -> Tensor:
    """A linear layer on float32 whatever its weights are; layers that cast by themselves (ComfyUI's) do it."""
    if layer.weight.dtype == x.dtype or getattr(layer, "comfy_cast_weights", False) or getattr(layer, "weight_function", None):
        own: Tensor = layer(x)
        return own
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def load_longcat(
    state: Mapping[str, Tensor], operations: Any = nn, dtype: torch.dtype = torch.float32, device: Any = None
) -> LongCat:
    """The model of a checkpoint with the released names, ready to run. UnsupportedModelError: its weights do not fit."""
    model = LongCat(LongCatConfig.of(state), operations, dtype=dtype, device=device)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"the checkpoint does not fit LongCat-Video ({str(error).splitlines()[1].strip()}); use all shards of one release"
        ) from error
    return model.eval().requires_grad_(False)
