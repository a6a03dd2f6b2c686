"""What the official causal Wan makes of a tiny random checkpoint, and the inputs that it got, which are made from seeds.

`data/golden_wan.safetensors` was written by tools/make_golden_wan.py with the CausalWanModel of guandeh17/Self-Forcing (the
commit is in the file's metadata) on the CPU in float32, flash attention replaced by torch's, everything else as it is: the flow
that it predicts in every pass, block by block with its KV cache, and its text embedding of the first prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .integration import tiny_wan

FILE = Path(__file__).with_name("data") / "golden_wan.safetensors"
LATENT_ROWS, LATENT_COLS = 6, 8
TOKENS = LATENT_ROWS * LATENT_COLS // 4
TEXT_TOKENS = 512
# Largest deviation as a part of the largest value of the pass: measured 6e-6, ours and ComfyUI's (float32, CPU, torch 2.13.0).
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Pass:
    """One pass of the network over a block. x [B, C, F, h, w], timesteps [B, F] in 0..1000; all 0 ends the block."""

    name: str
    x: Tensor
    timesteps: Tensor
    first_frame: int

    @property
    def is_commit(self) -> bool:
        """Whether later blocks see what this pass leaves in memory."""
        return not self.timesteps.any()


@dataclass(frozen=True)
class Case:
    """A short video. `text_tokens`: length of each batch item's prompt, and so how many items there are."""

    name: str
    frames_per_block: int
    blocks: int
    start_frame: int
    text_tokens: tuple[int, ...]
    timesteps: tuple[tuple[float, ...], ...]

    @property
    def batch(self) -> int:
        """Videos at once."""
        return len(self.text_tokens)

    def text(self) -> Tensor:
        """Text encoder's output, padded with zeros to the longest of the batch: [B, n, 4096]."""
        generator = torch.Generator().manual_seed(len(self.name))
        text = torch.randn(self.batch, max(self.text_tokens), 4096, generator=generator)
        for item, tokens in enumerate(self.text_tokens):
            text[item, tokens:] = 0
        return text

    def passes(self) -> Iterator[Pass]:
        """In order."""
        generator = torch.Generator().manual_seed(1000 + len(self.name))
        for block in range(self.blocks):
            for step, levels in enumerate(self.timesteps):
                x = torch.randn(self.batch, 16, self.frames_per_block, LATENT_ROWS, LATENT_COLS, generator=generator)
                timesteps = torch.tensor(levels).expand(self.batch, -1)
                first = self.start_frame + block * self.frames_per_block
                yield Pass(f"{self.name}.{block}.{step}", x, timesteps, first)


CASES = (
    # Frames of one block at noise levels of their own, too.
    Case("chunks", 3, 3, 0, (7,), ((1000.0,) * 3, (937.5, 2500 / 3, 625.0), (0.0,) * 3)),
    # A batch; beyond frame 256, where positions in bfloat16 would be wrong.
    Case("frames", 1, 4, 300, (6, 3), ((1000.0,), (625.0,), (0.0,))),
)


def fingerprint() -> dict[str, str]:
    """Of weights and inputs: if torch should once draw other numbers from these seeds, it is not the model that is wrong."""
    tensors = [*tiny_wan.state_dict().values(), *(each.x for case in CASES for each in case.passes())]
    tensors += [case.text() for case in CASES]
    return {"sum": f"{sum(float(tensor.double().abs().sum()) for tensor in tensors):.3f}"}


def golden() -> dict[str, Tensor]:
    """Flows [B, C, F, h, w] by the pass's name, and "text", [8, W]: the first case's seven tokens and a padding row."""
    with safe_open(FILE, "pt") as file:
        # torch's loops for old and new processors round the same draws differently, to 1.2e-6; other draws differ by 1e-3.
        same = math.isclose(float(file.metadata()["sum"]), float(fingerprint()["sum"]), rel_tol=1e-6)
        assert same, "torch draws other numbers from the seeds; make the file anew"
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def deviation(out: Tensor, reference: Tensor) -> float:
    """Largest difference as a part of the reference's largest value."""
    assert out.shape == reference.shape
    return float((out - reference).abs().max() / reference.abs().max())
