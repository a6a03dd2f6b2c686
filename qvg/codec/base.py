"""What a cache asks of a compression method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from ..errors import ConfigError
from ..positions.rope import Rotation
from .klt_tables import Tables
from .span import Basis, Codebook, Span


@dataclass(frozen=True)
class CodebookSize:
    """What a group of spans has in memory: codewords that they share, and the directions of each of its bases, 0 for one that is
    not learned."""

    codewords: int
    bases: tuple[int, ...]


# Of every layer, the codebooks of its keys and those of its values.
Codebooks = Sequence[tuple[Sequence[CodebookSize], Sequence[CodebookSize]]]


class Room(NamedTuple):
    """Rows (directions and codewords) that codebooks have left of what they may take: those of this layer, and those of this one
    and all before it."""

    layer: int
    so_far: int


@dataclass(frozen=True)
class EncodeHint:
    """Where a span stands in its cache.

    seed      of every random choice in this span
    reuse     codebook to encode with, because an earlier span of the same group trained it; a codec may add to it
    bases     of the group's spans in memory, each once, the newest last; only of `TransformCodebook`
    room      directions and codewords that codebooks may still begin; None: what this group's bases leave of a whole one
    new_scene  this layer's tokens, or those of one before it, are not more of the same: room does not count
    warm      codebook to start training from
    checked   the values are known to be finite; otherwise the codec looks, which costs a synchronisation on a GPU
    tables    what `KLTCodec.is_new` has made of these tokens and of `reuse`, so that `encode` need not
    """

    seed: int = 0
    reuse: Codebook | None = None
    bases: tuple[Basis, ...] = ()
    room: Room | None = None
    new_scene: bool = False
    warm: Codebook | None = None
    checked: bool = False
    tables: Tables | None = None


def refuse_non_finite(x: Tensor, hint: EncodeHint) -> None:
    """Raise ConfigError for NaN or infinity in what is to be encoded."""
    if not hint.checked and not bool(x.isfinite().all()):
        bad = int((~x.isfinite()).sum())
        raise ConfigError(f"{bad} of {x.numel()} values to encode are NaN or infinite; look for the layer that made them")


class Codec(Protocol):
    """Keys or values in, spans out, and back. Stateless: everything that was learned is in the span."""

    name: str

    def encode(self, x: Tensor, hint: EncodeHint) -> Span:
        """x [B, H, S, D] -> a span that shares no memory with x. If its codebook is another one than `hint.reuse`, it is that one
        grown, and the spans that used the shorter one take the longer one over (`with_codewords`); or a new group's."""

    def decode(self, span: Span, tokens: slice, heads: slice, out: Tensor) -> Tensor:
        """Tokens and heads of a span into `out` [B, heads, tokens, D], which is returned."""

    def predicted_bytes(self, shape: tuple[int, int, int, int]) -> dict[str, int]:
        """Bytes by component of a span of this shape without its codebook, before anything is allocated. Must equal what is then
        counted."""

    def predicted_codebook_bytes(self, rows: tuple[int, int, int], tokens: Sequence[int]) -> dict[str, int]:
        """Bytes by component of a codebook for [B, H, D] after it has encoded spans of so many tokens, in their order."""


@runtime_checkable
class RotatingCodec(Protocol):
    """A codec whose kernels rotate keys on their way out. On a CPU it is as fast to rotate a tile
    afterwards, and takes less memory."""

    rotates: bool

    def decode(self, span: Span, tokens: slice, heads: slice, out: Tensor, rotation: Rotation | None = None) -> Tensor:
        """As `Codec.decode`; `rotation` holds the angles of these tokens."""
