"""The demo world model: a small autoregressive video transformer that paints what a camera sees while it walks over a map.

One latent frame is one 64x64 picture, cut into 8x8 tokens of 8x8 pixels. The network predicts the clean picture from a noisy
one (x-prediction, "Back to Basics", arXiv 2511.13720) and is conditioned on the noise level only; where the camera stands enters
through RoPE, whose row and column axes carry each token's position in the *world*. What the camera has seen before is known from
the KV cache alone: every frame attends to all frames in memory and to itself, and a finished frame is run once more at noise
level 0 to write clean keys and values (block-causal attention, CausVid/Self-Forcing, arXiv 2412.07772, 2506.08009).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from ...cache import KVCache
from ...cache.spec import CacheSpec
from ...errors import UnsupportedModelError
from ...file_names import in_utf8
from ...positions.rope import GridRope, geometric_frequencies

WEIGHTS = Path(__file__).resolve().parents[3] / "assets" / "demo_world.safetensors"
_REMEDY = "restore it from the repository's assets/, or install this pack again"

# Pixels the camera moves in one latent frame: half a token, so that walks look smooth and tokens do not always line up.
STEP_PIXELS = 4

# attend(layer index, q, k, v) -> attention output; q, k before RoPE; all [B, H, S, D]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DemoWorldConfig:
    """Shape of the model. Saved in the weight file's metadata."""

    picture_pixels: int = 64
    patch_pixels: int = 8
    layers: int = 5
    heads: int = 2
    head_dim: int = 128
    mlp_ratio: int = 4
    shortest_wavelength: float = 3.0
    longest_wavelength: float = 96.0

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return self.heads * self.head_dim

    @property
    def grid(self) -> int:
        """Tokens along one side of a frame."""
        return self.picture_pixels // self.patch_pixels

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        return self.grid**2

    def rope(self) -> GridRope:
        """World positions in RoPE. The world stands still, so the time axis gets no channels."""
        pairs = self.head_dim // 4
        frequencies = geometric_frequencies(pairs, self.shortest_wavelength, self.longest_wavelength)
        return GridRope(self.grid, self.grid, ((), frequencies, frequencies))

    def cache_spec(self, batch: int = 1) -> CacheSpec:
        """What the model asks of its cache."""
        return CacheSpec(self.layers, self.heads, self.head_dim, self.tokens_per_frame, batch=batch)


class DemoWorld(nn.Module):
    """x [B, F, 3, P, P] in -1..1 at noise level t [B, F] -> predicted clean pictures of the same shape."""

    def __init__(self, config: DemoWorldConfig | None = None, operations: Any = nn, dtype: Any = None, device: Any = None):
        super().__init__()
        self.config = config = config or DemoWorldConfig()
        like = {"dtype": dtype, "device": device}
        patch_values = 3 * config.patch_pixels**2
        self.patch_in = operations.Linear(patch_values, config.width, **like)
        self.time_in = operations.Linear(config.width, config.width, **like)
        self.time_out = operations.Linear(config.width, 6 * config.width, **like)
        self.blocks = nn.ModuleList(_Block(config, operations, like) for _ in range(config.layers))
        self.norm = operations.LayerNorm(config.width, elementwise_affine=False, eps=1e-6, **like)
        self.patch_out = operations.Linear(config.width, patch_values, **like)

    def forward(self, x: Tensor, t: Tensor, attend: Attend) -> Tensor:
        """One pass; `attend` owns the memory, the positions and the mask."""
        patch = self.config.patch_pixels
        frames = x.shape[1]
        tokens = self.patch_in(rearrange(x, "b f c (h p) (w q) -> b (f h w) (p q c)", p=patch, q=patch))
        level = F.silu(self.time_in(_noise_level_embedding(t, self.config.width).to(x.dtype)))
        shared = self.time_out(level).unflatten(-1, (6, -1))
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, shared, index, attend)
        pixels = self.patch_out(self.norm(tokens))
        picture: Tensor = rearrange(
            pixels, "b (f h w) (p q c) -> b f c (h p) (w q)", f=frames, h=self.config.grid, p=patch, q=patch
        )
        return picture


class _Block(nn.Module):
    """Pre-norm attention and MLP; the noise level's shift, scale and gate are shared by all layers plus a table per layer."""

    def __init__(self, config: DemoWorldConfig, operations: Any, like: dict[str, Any]):
        super().__init__()
        self.heads = config.heads
        width = config.width
        self.norm_attention = operations.LayerNorm(width, elementwise_affine=False, eps=1e-6, **like)
        self.qkv = operations.Linear(width, 3 * width, **like)
        self.norm_q = operations.RMSNorm(config.head_dim, eps=1e-6, **like)
        self.norm_k = operations.RMSNorm(config.head_dim, eps=1e-6, **like)
        self.out = operations.Linear(width, width, **like)
        self.norm_mlp = operations.LayerNorm(width, elementwise_affine=False, eps=1e-6, **like)
        self.mlp_in = operations.Linear(width, config.mlp_ratio * width, **like)
        self.mlp_out = operations.Linear(config.mlp_ratio * width, width, **like)
        self.modulation = nn.Parameter(torch.zeros(6, width, **like))

    def forward(self, tokens: Tensor, shared: Tensor, index: int, attend: Attend) -> Tensor:
        """tokens [B, F*S, W], shared [B, F, 6, W]."""
        frames = shared.shape[1]
        parts = (shared + self.modulation.to(shared)).unsqueeze(2).unbind(3)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts  # each [B, F, 1, W]

        def per_frame(x: Tensor) -> Tensor:
            grouped: Tensor = x.unflatten(1, (frames, -1))
            return grouped

        x = torch.addcmul(shift_a, per_frame(self.norm_attention(tokens)), 1 + scale_a).flatten(1, 2)
        q, k, v = rearrange(self.qkv(x), "b s (n h d) -> n b h s d", n=3, h=self.heads)
        attention = attend(index, self.norm_q(q), self.norm_k(k), v)
        update = self.out(rearrange(attention, "b h s d -> b s (h d)"))
        tokens = tokens + (per_frame(update) * gate_a).flatten(1, 2)
        x = torch.addcmul(shift_m, per_frame(self.norm_mlp(tokens)), 1 + scale_m).flatten(1, 2)
        update = self.mlp_out(F.gelu(self.mlp_in(x), approximate="tanh"))
        result: Tensor = tokens + (per_frame(update) * gate_m).flatten(1, 2)
        return result


def _noise_level_embedding(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of t * 1000, as in DDPM. t [B, F] in 0..1 -> [B, F, width] float32."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-9.2103 / half))
    angles = t.float()[..., None] * 1000 * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


class DemoWorldDenoiser:
    """The model as the sampling loop wants it. Blocks are single frames [1, 1, 3, P, P] in -1..1."""

    def __init__(self, model: DemoWorld):
        self.model = model
        self.device = next(model.parameters()).device

    def block_shape(self, frames: int) -> tuple[int, ...]:
        """See `sampling.Denoiser`."""
        pixels = self.model.config.picture_pixels
        return (1, frames, 3, pixels, pixels)

    @torch.inference_mode()
    def predict_clean(self, x: Tensor, noise_level: float, cache: KVCache) -> Tensor:
        """See `sampling.Denoiser`."""
        levels = torch.full(x.shape[:2], noise_level, device=x.device)
        clean: Tensor = self.model(x, levels, cache.attend)
        return clean


def read_demo_world(path: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> tuple[DemoWorldConfig, dict[str, Tensor]]:
    """Shape and weights of the shipped model. UnsupportedModelError: the file is missing, damaged, or of something else."""
    if not path.is_file():
        raise UnsupportedModelError(f"{path} is not there, but holds the demo model's weights; {_REMEDY}")
    try:
        with in_utf8(path) as name, safe_open(name, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UnsupportedModelError(f"{path} cannot be read ({error}); {_REMEDY}") from error
    if metadata.get("model") != "qvg-demo-world":
        raise UnsupportedModelError(
            f"{path} is not a demo world (its metadata says {metadata.get('model')!r}); use assets/{WEIGHTS.name}"
        )
    try:
        config = DemoWorldConfig(**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModelError(f"{path} does not say what shape its model has ({error}); {_REMEDY}") from error
    _check_weights(path, config, state)
    return config, state


def _check_weights(path: Path, config: DemoWorldConfig, state: dict[str, Tensor]) -> None:
    """Raise UnsupportedModelError for the first weight that is missing, unknown, or of another shape."""
    expected = {name: list(weight.shape) for name, weight in DemoWorld(config, device="meta").state_dict().items()}
    for name in sorted(expected.keys() | state.keys()):
        found = list(state[name].shape) if name in state else None
        if found == expected.get(name):
            continue
        if found is None:
            complaint = f"lacks the weight {name!r}"
        elif name not in expected:
            complaint = f"holds {name!r}, which is no weight of the demo world"
        else:
            complaint = f"holds {name!r} in shape {found} instead of {expected[name]}"
        raise UnsupportedModelError(f"{path} {complaint}; {_REMEDY}")


def load_demo_world(
    path: Path = WEIGHTS, operations: Any = nn, dtype: torch.dtype = torch.float32, device: Any = None
) -> DemoWorld:
    """The shipped model, ready to run. Raises as `read_demo_world` does."""
    config, state = read_demo_world(path, dtype)
    model = DemoWorld(config, operations, dtype=dtype, device=device)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)
