"""Bytes of what a network works in while it makes one block, and of what stays with a run besides weights and cache.

Counted, for Wan, over every tensor that torch makes in a pass of ComfyUI's own network at 480 x 832; upper bounds for every card.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels.dispatch import triton_refusal
from ..config import QVGConfig
from ..models.common.shape import NetworkShape

# Tensors of the residual's width that a layer holds while its finished block is encoded, keys and values aside.
_AT_COMMIT = 5
# Per channel of a head: ComfyUI's table of rotations, four float32 for two channels, and the cache's sines and cosines.
_ANGLE_BYTES = 12
# Core's sampler has noise, start, result and the video in work on the device, in float32.
_LATENT_BYTES = 4 * 4
# What a codec works in per value of the keys or of the values of one layer's span. Measured over every tensor, 4,680 tokens.
_TORCH_BYTES = {"none": 0.0, "klt": 34.0, "qvg": 16.2, "rtn": 16.1, "kivi": 18.5, "quarot": 16.2}
# Of those to compare with (`COMPARED`), 1,560 tokens, the dearest of their widths, keys or values.
_TORCH_BYTES |= {"fp8": 40.0, "nvfp4": 33.9, "bf16-int8": 12.0, "pca": 20.8, "lightx2v-kivi": 20.6}
_TORCH_BYTES |= {"study-rtn": 20.3, "study-kivi": 20.6, "study-quarot": 20.3, "study-prq": 22.0, "study-qaq": 20.6}
_TORCH_BYTES |= {"study-tptq": 21.7}
_TRITON_BYTES = {**_TORCH_BYTES, "klt": 14.0, "qvg": 4.3}


@dataclass(frozen=True)
class Activations:
    """`block_bytes`: at the worst moment of a pass over one block, and what stays for the whole run; `encoding_bytes`: the same
    of a block at whose end a span is encoded. `frame_bytes`: of the latents, per latent frame."""

    block_bytes: int
    encoding_bytes: int
    frame_bytes: int

    def total(self, latent_frames: int, encodes: bool = True) -> int:
        """Of a run of so many latent frames, in which spans are encoded or none is."""
        return (self.encoding_bytes if encodes else self.block_bytes) + latent_frames * self.frame_bytes


@dataclass(frozen=True)
class Block:
    """What is denoised together: tokens of all its frames and videos, latent pixels of one frame, and tokens of one span."""

    batch: int
    tokens: int
    frame_values: int
    span_tokens: int


def activations(
    network: NetworkShape,
    block: Block,
    config: QVGConfig,
    value_bytes: int = 2,
    weight_bytes: int = 2,
    triton: bool | None = None,
) -> Activations:
    """`value_bytes` of what is computed in, `weight_bytes` of what weights are kept in. `triton`: whether our kernels encode;
    None: whether they would on this machine."""
    width = network.width
    unit, text = block.tokens * width * value_bytes, block.batch * network.text_tokens
    mlp = network.mlp_tensors * block.tokens * network.mlp * value_bytes + network.beside_mlp * unit
    attention = network.in_attention * unit
    per_value = (_TRITON_BYTES if _by_triton(triton) else _TORCH_BYTES)[config.codec]
    encoding = _AT_COMMIT * unit + round(per_value * block.span_tokens * width)
    stays = [
        block.tokens * network.head_dim * _ANGLE_BYTES,
        text * (network.text_channels * (4 + value_bytes) + width * value_bytes),  # the prompt as it comes, cast, embedded
        (network.layers if network.keeps_prompt else 1) * 2 * text * width * value_bytes,  # its keys and values
        # A weight that is kept in another type than it is used in is cast when its turn comes.
        width * network.mlp * value_bytes if weight_bytes != value_bytes else 0,
    ]
    passing = max(mlp, attention)
    return Activations(passing + sum(stays), max(passing, encoding) + sum(stays), block.frame_values * _LATENT_BYTES)


def _by_triton(wanted: bool | None) -> bool:
    if wanted is not None:
        return wanted
    return torch.cuda.is_available() and triton_refusal("kmeans", torch.device("cuda")) is None
