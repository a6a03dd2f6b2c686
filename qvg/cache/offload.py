"""Packed spans in CPU memory while no attention reads them.

With `offload="cpu"` the device holds exact frames (sink, tail, the current block) and the packed spans of two layers at most: of
the one that attends, and of the next, whose copies are made meanwhile, from pinned memory on a stream of their own. Layers are
expected in turn, the first one after the last; any other order works, and waits for its copies.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from ..attention.plan import Pair
from ..codec.base import Codec, EncodeHint
from ..codec.span import Codebook, Known, Span, TransformCodebook, put_all, put_basis, put_codebook, put_span

_LOG = logging.getLogger(__name__)


# A layer's number and its packed spans at home.
Layer = tuple[int, Sequence[Pair]]


@dataclass(frozen=True)
class Placement:
    """Bytes of a cache by where they are: `device` and `home` (CPU memory) are all of it. `copied`: the most that copies of
    what is at home took on the device beside that."""

    device: int
    home: int = 0
    copied: int = 0


@dataclass(frozen=True)
class _Copy:
    """Copies of a layer's packed spans. `ready`: recorded behind the last of them, where there are streams."""

    pairs: list[Pair]
    nbytes: int
    ready: torch.cuda.Event | None


class Offloader:
    """Keeps packed spans in the memory of `home`, and brings a layer's to the device when it attends.

    home      a CPU device
    away      whether anything had to be sent home; where attention runs on `home` itself, nothing is copied
    peak      most bytes of copies that were on the device at once
    """

    def __init__(self, home: torch.device | str = "cpu"):
        self.home = torch.device(home)
        self.away, self.peak = False, 0
        self._copies: dict[tuple[int, torch.device], _Copy] = {}

    @property
    def copied_bytes(self) -> dict[int, int]:
        """Bytes of copies on the device now, by layer."""
        return {layer: copy.nbytes for (layer, _), copy in self._copies.items() if copy.pairs}

    def encode(self, codec: Codec, x: Tensor, hint: EncodeHint) -> Span:
        """As `Codec.encode`: on x's device, with codebooks that are at home; and the span goes home."""
        if x.device == self.home:
            return codec.encode(x, hint)

        there: Known = {}

        def bring(codebook: Codebook | None) -> Codebook | None:
            return None if codebook is None else put_codebook(codebook, copy, there)

        def copy(tensor: Tensor) -> Tensor:
            return tensor.to(x.device, copy=True)

        bases = tuple(put_basis(basis, copy, there) for basis in hint.bases)
        brought = replace(hint, reuse=bring(hint.reuse), bases=bases, warm=bring(hint.warm))
        span = codec.encode(x, brought)
        home = {id(new): old for old, new in _pairs(hint, brought)}
        return put_span(span, lambda tensor: self._send(tensor, x.device), home)

    def adopt(self, span: Span, device: torch.device, known: Known) -> Span:
        """A packed span that was read from a file into the memory of home, for use on `device`; `known` as in `put_span`."""
        return span if device == self.home else put_span(span, lambda tensor: self._send(tensor, device), known)

    def fetch(self, device: torch.device, now: Layer, following: Layer) -> Sequence[Pair]:
        """The packed spans of the layer `now`, on `device`, and those of the layer after it on their way. The answer is valid
        until another layer is fetched."""
        if device == self.home:
            return now[1]
        self._copies = {key: copy for key, copy in self._copies.items() if key in ((now[0], device), (following[0], device))}
        for layer, pairs in (now, following):
            if (layer, device) not in self._copies:
                self._copies[layer, device] = self._bring(pairs, device)
                self.peak = max(self.peak, sum(copy.nbytes for copy in self._copies.values()))
        copy = self._copies[now[0], device]
        if copy.ready is not None:
            torch.cuda.current_stream(device).wait_event(copy.ready)
        return copy.pairs

    def forget(self, layer: int) -> None:
        """The layer's spans have changed: copies of the old ones go."""
        self._copies = {key: copy for key, copy in self._copies.items() if key[0] != layer}

    def clear(self) -> None:
        """As after `__init__`."""
        self.away, self.peak = False, 0
        self._copies.clear()

    def _send(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A copy at home. For a CUDA or ROCm device it is pinned, so that it can come back while the device computes; torch takes
        pinned memory in powers of two, which `nbytes` does not count."""
        self.away = True
        return _room(tensor, self.home, device.type == "cuda").copy_(tensor)

    def _bring(self, pairs: Sequence[Pair], device: torch.device) -> _Copy:
        """Copies on the device. What was there before is given up by now, and may still be read: the stream of the copies waits
        for all that has been asked of the device so far, and the memory that it reuses is its own."""
        if device.type != "cuda" or not pairs:
            return self._copied(pairs, device, None)
        side = _copy_stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            return self._copied(pairs, device, side)

    def _copied(self, pairs: Sequence[Pair], device: torch.device, stream: torch.cuda.Stream | None) -> _Copy:
        sizes = []

        def put(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor.to(device, non_blocking=stream is not None, copy=True)

        there = put_all([span for pair in pairs for span in pair], put)
        ready = None if stream is None else stream.record_event()
        return _Copy([Pair(*two) for two in zip(there[::2], there[1::2], strict=True)], sum(sizes), ready)


def _pairs(here: EncodeHint, there: EncodeHint) -> Iterator[tuple[object, object]]:
    """What a hint brings along, and the copies of it."""
    yield from zip(here.bases, there.bases, strict=True)
    for one, other in ((here.reuse, there.reuse), (here.warm, there.warm)):
        if one is not None:
            yield one, other
        if isinstance(one, TransformCodebook) and isinstance(other, TransformCodebook):
            yield from ((one.codewords, other.codewords), (one.basis, other.basis))


def _room(like: Tensor, home: torch.device, pinned: bool) -> Tensor:
    """An uninitialised tensor in CPU memory; pageable where no more of it can be pinned."""
    try:
        return torch.empty_like(like, device=home, pin_memory=pinned)
    except RuntimeError as error:
        if not pinned:
            raise
        _say_once_that_nothing_is_pinned(str(error).splitlines()[0])
        return torch.empty_like(like, device=home)


@cache
def _say_once_that_nothing_is_pinned(reason: str) -> None:
    _LOG.warning("packed spans are kept in pageable memory, from which they are slower to copy: %s", reason)


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
