"""HY-WorldPlay on HunyuanVideo 1.5, 8B, in the three passes that its autoregressive rollout asks for.

The text goes through all layers once, by itself (`hunyuan_text`); context and chunks attend to it in both of their attentions,
along the rope and in coordinates of the cameras, which share one set of queries, keys and values. Every latent frame is
conditioned on a timestep and an action label of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from ...attention.joint import JointKV
from ...errors import UnsupportedModelError
from ...positions.rope import pairs_apart
from ..common.modulation import gated, modulated
from .modules import HunyuanConfig, HunyuanNetwork
from .names import hunyuan_parts
from .text import TextRows, Words, embedded, joined, parts, queries_keys_values, read_words

# attend(layer index, q, k, v, text) -> both attentions side by side [B, H, S, 2D]; q, k before RoPE, pairs apart
Attend = Callable[[int, Tensor, Tensor, Tensor, JointKV], Tensor]


class Recording(Protocol):
    """Where a context pass leaves keys and values; `worldplay_memory.WorldMemory` is one."""

    def attend_context(self, layer: int, q: Tensor, k: Tensor, v: Tensor, joint: JointKV) -> Tensor:
        """Both attentions; keeps k and v."""

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keeps k and v of a layer whose attention nobody needs."""


class WorldPlayHunyuan:
    """The passes over any network with the names of `hunyuan_modules`: ours, or ComfyUI's with WorldPlay's layers attached.

    x [B, F, C, h, w] holds noise, the picture to start with (zeros but in the first frame) and its mask: see `with_condition`.
    Timesteps t [B, F] run from 0 to 1000, action labels [B, F] from 0 to 80.
    """

    def __init__(self, network: Any, dtype: torch.dtype | None = None):
        self.network = network
        self.dtype: torch.dtype = dtype or network.img_in.proj.weight.dtype

    def read_prompt(self, words: Words) -> TextRows:
        """The text pass."""
        return read_words(self.network, words, self.dtype)

    def __call__(self, x: Tensor, t: Tensor, prompt: TextRows, attend: Attend, labels: Tensor | None = None) -> Tensor:
        """A denoise pass. -> velocity (noise - clean) [B, F, latent channels, h, w]. No labels: the camera is at rest."""
        tokens, level = self._tokens(x), self._level(x, t, labels)
        for layer, block in enumerate(self.network.double_blocks):
            tokens = _block(block, tokens, level, layer, attend, prompt.layers[layer])
        final = self.network.final_layer
        shift, scale = final.adaLN_modulation(level).unsqueeze(2).chunk(2, -1)
        pixels = final.linear(modulated(final.norm_final(tokens), shift, scale))
        video: Tensor = rearrange(pixels, "b (f h w) c -> b f c h w", f=x.shape[1], h=x.shape[3])
        return video

    def record(self, x: Tensor, t: Tensor, prompt: TextRows, recording: Recording, labels: Tensor | None = None) -> None:
        """The context pass: all layers' keys and values, and nothing that they do not need."""
        tokens, level = self._tokens(x), self._level(x, t, labels)
        *blocks, last = self.network.double_blocks
        for layer, block in enumerate(blocks):
            tokens = _block(block, tokens, level, layer, recording.attend_context, prompt.layers[layer])
        _, k, v = _own(last, tokens, parts(last.img_mod, level))
        recording.keep(len(blocks), k, v)

    def _tokens(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.network.img_in.proj(x.to(self.dtype).transpose(1, 2)).flatten(2).transpose(1, 2)
        return tokens

    def _level(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        labels = torch.zeros_like(t) if labels is None else labels.to(t.device)
        return embedded(self.network.time_in, t, self.dtype) + embedded(self.network.action_in, labels, self.dtype)


def _own(block: Any, tokens: Tensor, level: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    shift, scale, *_ = level
    q, k, v = queries_keys_values(block.img_attn, modulated(block.img_norm1(tokens), shift, scale))
    return pairs_apart(q), pairs_apart(k), v


def _block(block: Any, tokens: Tensor, level: Tensor, layer: int, attend: Attend, text: JointKV) -> Tensor:
    """tokens [B, F*S, W], level [B, F, W]."""
    *first, gate_a, shift_m, scale_m, gate_m = parts(block.img_mod, level)
    along, by_cameras = attend(layer, *_own(block, tokens, (*first,)), text).chunk(2, -1)
    update = block.img_attn.proj(joined(along)) + block.img_attn_prope_proj(joined(by_cameras))
    tokens = tokens + gated(update, gate_a)
    return tokens + gated(block.img_mlp(modulated(block.img_norm2(tokens), shift_m, scale_m)), gate_m)


def with_condition(x: Tensor, frames: list[int], image: Tensor | None) -> Tensor:
    """x [B, F, C, h, w] of these latent frames -> what the network reads [B, F, 2C + 1, h, w]: frame 0 carries the picture's
    latent, [B, 1, C, h, w] as the network's latents are scaled, and a mask of ones; all other frames zeros."""
    shape = (*x.shape[:2], x.shape[2] + 1, *x.shape[3:])
    condition = x.new_zeros(shape)
    if image is not None and 0 in frames:
        first = frames.index(0)
        condition[:, first, :-1] = image[:, 0].to(x)
        condition[:, first, -1] = 1
    return torch.cat([x, condition], 2)


def load_worldplay_hunyuan(
    state: Mapping[str, Tensor], operations: Any = nn, dtype: torch.dtype = torch.float32, device: Any = None
) -> WorldPlayHunyuan:
    """The model of a checkpoint with official or ComfyUI's names, ready to run. UnsupportedModelError: its weights do not fit."""
    parted = hunyuan_parts(state)
    config = HunyuanConfig.of({name: tensors[0] for name, tensors in parted.items()})
    network = HunyuanNetwork(config, operations, dtype=dtype, device=device)
    whole = {name: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for name, tensors in parted.items()}
    try:
        network.load_state_dict(whole)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"the checkpoint does not fit HY-WorldPlay on HunyuanVideo 1.5 ({str(error).splitlines()[1].strip()}); use a whole "
            "file"
        ) from error
    return WorldPlayHunyuan(network.eval().requires_grad_(False))
