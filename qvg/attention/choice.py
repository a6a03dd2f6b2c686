"""How a cache is read: chosen once, said once, and noted for whoever asks."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.dispatch import shape_refusal, triton_refusal
from ...kernels.launch import on_gpu
from ..config import QVGConfig

_LOG = logging.getLogger(__name__)

# So many queries read the codes faster than a decoded workspace: their products are cheap, and codes are an eighth of the bytes.
# "qvg": about 250 on an H100, 1000 on GeForce cards; the smaller one (docs/kernels.md, "Why a workspace"). "klt": as many as
# one program takes. A value costs it 43 instructions (sm_90, counted in the compiled loop), a decoded workspace 30 and four bytes
# of traffic: a second block of queries, for which all is decoded anew, would lose on an H100 (56 more instructions take 2.0 ps,
# four bytes 1.4) and win on a GeForce card. Not measured.
DIRECT_QUERIES = {"qvg": 250, "klt": 64}
# A weighted sum of codes or coefficients is brought back once for all keys; through cameras, once for every frame's matrix.
_NOT_PROJECTED = "no kernel projects what it reads: every frame's sums would go through a matrix of their own"


@dataclass
class Reading:
    """One way to read and the reason for it; `attention` and `detail` are what the last call ran."""

    mode: str
    why: str
    attention: str = "nothing yet"
    detail: str = ""

    def note(self, attention: str, detail: str = "") -> None:
        """What runs now."""
        self.attention, self.detail = attention, detail

    def text(self) -> str:
        """For people."""
        return f"{self.mode} ({self.why}), attention by {self.attention}" + (f", {self.detail}" if self.detail else "")


class Readings:
    """Chooses for every call, and keeps the choices made so far."""

    def __init__(self, config: QVGConfig):
        self.config = config
        self._made: dict[tuple[torch.device, bool, int, bool], Reading] = {}

    def choose(self, q: Tensor, projected: bool = False) -> Reading:
        """How to read for queries [B, H, Sq, D]. The same reading for the same kind of queries; a new one is logged. `projected`:
        keys and values go through a camera's matrices on their way."""
        key = (q.device, q.shape[2] <= DIRECT_QUERIES.get(self.config.codec, 0), q.shape[3], projected)
        if key not in self._made:
            self._made[key] = reading = _choose(self.config, *key)
            _LOG.info("the cache is read %s: %s", reading.mode, reading.why)
        return self._made[key]

    def choose_sparse(self, tokens: int, least: int) -> Reading:
        """How to read where only a share of the tiles is to be, and so many tokens are encoded."""
        key = (torch.device("meta"), tokens < least, 0, False)
        if key not in self._made:
            few = f"fewer than {least:,} encoded tokens are read whole before sparse {self.config.sparse:g} skips any"
            reading = Reading("exact", few) if tokens < least else Reading("sparse", f"{self.config.sparse:g} was asked for")
            self._made[key] = reading
            _LOG.info("the cache is read %s: %s", reading.mode, reading.why)
        return self._made[key]

    def all(self) -> list[Reading]:
        """In the order in which they came up."""
        return list(self._made.values())


def _choose(config: QVGConfig, device: torch.device, few: bool, channels: int, projected: bool) -> Reading:
    if config.read == "direct" and projected and config.workspace_mb > 0 and on_gpu(device):
        return Reading("exact", f"direct was asked for, but {_NOT_PROJECTED}")
    if config.read != "auto":
        return Reading(config.read, "asked for")
    if config.workspace_mb == 0:
        return Reading("direct", "workspace_mb is 0")
    most = DIRECT_QUERIES.get(config.codec)
    if most is None:
        kept = "keeps no codes" if config.codec == "none" else "has no kernel that reads its codes"
        return Reading("exact", f"codec {config.codec!r} {kept}")
    if not few:
        return Reading("exact", f"more than {most} queries are served best by a decoded workspace")
    op, group_size = ("direct", config.group_size) if config.codec == "qvg" else ("direct_coefficients", 64)
    refusal = "backend 'torch' was asked for" if config.backend == "torch" else triton_refusal(op, device)
    refusal = refusal or shape_refusal(channels, group_size)
    if refusal is None and projected:
        refusal = _NOT_PROJECTED
    if refusal is not None:
        return Reading("exact", f"few queries could read the codes directly, but {refusal}")
    return Reading("direct", f"at most {most} queries read the codes faster than they would be decoded")
