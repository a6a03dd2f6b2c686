"""Which codebook a span of the `klt` codec takes: one that its group has, grown, or another one, if that is worth its room."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.kmeans import MAX_CLUSTERS
from ...kernels.rows8 import Rows8
from ..config import QVGConfig
from .base import EncodeHint, Room
from .klt_basis import channel_basis, fixed_basis, learn_basis
from .klt_codewords import add_codewords, learn_codewords
from .klt_sizes import added_codewords, directions, first_codewords, has_hadamard, learns_basis
from .klt_tables import Tables, in_float64
from .klt_tokens import Coded, Signal, Sorted, in_codes, quantized, reconstructed, sort
from .span import Group, TransformCodebook

# A basis of its own must lower a span's error by these factors: where its layer's codebooks have room for it (1.5 dB), where
# those of earlier layers have (3 dB), and where nothing has (5 dB in a new scene, 12 dB otherwise).
_WORTH_ITS_ROOM, _WORTH_OTHERS_ROOM, _WORTH_A_SCENE, _WORTH_MORE_ROOM = 10**0.15, 10**0.3, 10**0.5, 10**1.2
# Errors below this share of the group's energy, times 4^-bits, count as equal.
_NO_MATTER = 0.02
# Codewords that leave less than this share of a span's squares describe it completely; those that leave more than the second
# share of its energy hardly do (noise: 0.6 to 0.76, pictures: 0.3 at most).
_NOTHING_LEFT, _HARDLY_DESCRIBED = 1e-3, 0.5
# A codebook that leaves more than this share of a head's signal as error fails, and is of no use, whatever another one costs.
FAILS, _NO_USE = 0.7, 0.95
# A span with so many times its group's energy is not more of the same.
_LOUDER = 1.25
# Errors are compared on so many tokens at least, spread over the span.
_SAMPLE_TOKENS = 512


class Judged(NamedTuple):
    """A codebook that a span could take, tried on a sample. `error`: of every batch row, as a share of its group's energy, in CPU
    memory.
    `worst`: the largest error of a head as a share of its own signal, over all channels or over those beside loud ones."""

    codebook: TransformCodebook
    error: Tensor
    worst: float


class Choice:
    """The choice for tokens x [B, H, S, D]. `known`: the group's codebook, if there is one that x may go on with."""

    def __init__(self, x: Tensor, known: TransformCodebook | None, hint: EncodeHint, config: QVGConfig, tables: Tables):
        self._x, self._known, self._hint, self._config, self._tables = x, known, hint, config, tables
        # The last codewords that were tried on the sample, and those that a new group began with, and what they leave of x.
        self._sorted: tuple[Rows8, Sorted] | None = None
        self._begun: tuple[Rows8, Sorted] | None = None
        self._signal: Signal | None = None

    def made(self) -> Judged:
        """The codebook that x takes."""
        best = self._judged(self._begin(), self._own_energy) if self._known is None else self._going_on(self._known)
        return self._rescued(best) if best.worst > _NO_USE else best

    def coded(self, codebook: TransformCodebook) -> Coded:
        """All of x in a codebook."""
        begun, self._begun = self._begun, None
        if begun is None or begun[0] is not codebook.codewords:
            begun = (codebook.codewords, sort(self._x, codebook.codewords, self._tables, self._config.backend))
        ids, left = begun[1]
        # Trials are over: nothing of them, nor what codewords leave of x, stays beside the work on all coefficients.
        self._sorted = None
        self.__dict__.pop("_sample", None)
        y = torch.matmul(left, self._tables.analysis(codebook.basis))
        del begun, left
        return in_codes(ids, y, codebook, self._tables, self._config.backend)

    def _begin(self) -> TransformCodebook:
        """A new group. An opening that its codewords describe completely has nothing to teach a basis."""
        x, config = self._x, self._config
        codewords = learn_codewords(x, first_codewords(config, x.shape[2]), self._hint.seed, config)
        self._begun = (codewords, sort(x, codewords, self._tables, config.backend))
        left = self._begun[1].residual
        moment, missed = torch.stack([in_float64(part).square().mean((2, 3)) for part in (x, left)]).cpu()
        described = bool((missed <= _NOTHING_LEFT * moment).all())
        if described and has_hadamard(x.shape[3]):
            return TransformCodebook(codewords, fixed_basis(left, config.bits), Group())
        return self._with_basis(codewords, Group(), left)

    def _going_on(self, known: TransformCodebook) -> Judged:
        """The group's codewords, grown, with the basis of the group that fits x best, or with another one if that is worth its
        room; or a new group.

        Room is what codebooks left of a whole basis for each group, and the codewords that this span then does not add. Within
        it bytes stay below those of one whole basis per group; what goes beyond has to be worth it.
        """
        x, hint, config = self._x, self._hint, self._config
        measure = torch.maximum(self._own_energy, self._tables.energy_of(known))
        added = added_codewords(config, known.codewords.values.shape[2], x.shape[2])
        grown = add_codewords(x, known.codewords, added, hint.seed, config, self._tables)
        bases = hint.bases or (known.basis,)
        best = min(
            (self._judged(TransformCodebook(grown, basis, known.group), measure) for basis in bases),
            key=lambda one: one.error.max(),
        )
        if not learns_basis(config, *x.shape[2:]):
            own = self._judged(self._with_basis(grown, known.group), measure)
            best = own if _gain(best, own) > _WORTH_ITS_ROOM else best
            own = self._judged(self._renewed(known), measure) if best.worst > FAILS else best
            return own if _rescues(own, best) else best
        if all(basis.rows is None for basis in bases):
            # Nothing was worth learning until now, and little room was taken: a new group costs what the first one should have.
            own = self._judged(self._begin(), measure)
            return own if _gain(best, own) > _WORTH_ITS_ROOM or _rescues(own, best) else best
        return self._best_or_another(known, best, measure)

    def _best_or_another(self, known: TransformCodebook, best: Judged, measure: Tensor) -> Judged:
        """The best of what the group has, or a learned basis of x's own, with more codewords where those help."""
        (tokens, channels), hint = self._x.shape[2:], self._hint
        more, added = self._more_codewords(tokens), added_codewords(self._config, known.codewords.values.shape[2], tokens)
        room = hint.room or Room(*[channels - sum(basis.directions for basis in hint.bases or (known.basis,))] * 2)
        own = self._judged(self._with_basis(known.codewords, known.group), measure)
        rows = own.codebook.basis.directions
        # Once in a group, and again where these tokens themselves are louder.
        new_scene = hint.new_scene and (len(hint.bases) < 2 or is_louder(self._x, known, self._tables))
        worth = _WORTH_ITS_ROOM if rows <= room.layer + added else _WORTH_OTHERS_ROOM
        if own.worst <= FAILS and rows <= room.so_far + added and _gain(best, own) > worth:
            # The layer's keys (or values) need room for a basis, too.
            if new_scene or 2 * rows + more <= room.layer + 2 * added:
                renewed = self._judged(self._renewed(known), measure)
                return renewed if _gain(own, renewed) > _WORTH_ITS_ROOM else own
            return own
        if best.worst <= FAILS and _gain(best, own) <= _WORTH_OTHERS_ROOM:
            return best
        renewed = self._judged(self._renewed(known), measure)
        worth = _WORTH_A_SCENE if new_scene else _WORTH_MORE_ROOM
        return renewed if _gain(best, renewed) > worth or _rescues(renewed, best) else best

    def _renewed(self, known: TransformCodebook) -> TransformCodebook:
        """Half as many codewords more as a new group begins with, and a basis; or a new group where ids cannot name so many."""
        count = self._more_codewords(self._x.shape[2])
        if known.codewords.values.shape[2] + count > MAX_CLUSTERS:
            return self._begin()
        codewords = add_codewords(self._x, known.codewords, count, self._hint.seed, self._config, self._tables)
        return self._with_basis(codewords, known.group)

    def _rescued(self, best: Judged) -> Judged:
        """Where all of a head's signal would be lost: a new group, because old codewords may be what harms; then a basis that
        gives every channel its own scale, because one channel may be so loud that a learned one knows no other."""
        if self._known is not None and best.codebook.group is self._known.group:
            own = self._judged(self._begin(), self._own_energy)
            best = own if _rescues(own, best) else best
        if best.codebook.basis.rows is None:
            return best
        codewords, channels = best.codebook.codewords, self._x.shape[3]
        make = fixed_basis if has_hadamard(channels) else channel_basis
        basis = make(self._residual(codewords), self._config.bits)
        plain = self._judged(TransformCodebook(codewords, basis, best.codebook.group), self._own_energy)
        return plain if _rescues(plain, best) else best

    def _more_codewords(self, tokens: int) -> int:
        """What a span adds that fits its group badly."""
        return max(1, first_codewords(self._config, tokens) // 2)

    def _with_basis(self, codewords: Rows8, group: Group, left: Tensor | None = None) -> TransformCodebook:
        """Codewords and a basis for what they leave of x (`left`, if that is known)."""
        left, config, (tokens, channels) = self._residual(codewords) if left is None else left, self._config, self._x.shape[2:]
        if not learns_basis(config, tokens, channels):
            return TransformCodebook(codewords, fixed_basis(left, config.bits), group)
        basis = learn_basis(left, directions(config, tokens, channels), config.bits, self._tables)
        return TransformCodebook(codewords, basis, group)

    # ---------------------------------------------------------------------------------------------------------- trials

    @cached_property
    def _own_energy(self) -> Tensor:
        return self._tables.energy(self._x)

    @cached_property
    def _sample(self) -> Tensor:
        return self._x[:, :, :: max(1, self._x.shape[2] // _SAMPLE_TOKENS)].float()

    def _judged(self, codebook: TransformCodebook, measure: Tensor) -> Judged:
        """Encode and decode a sample of x. `measure`: the energy of the group."""
        backend = self._config.backend
        if self._sorted is None or self._sorted[0] is not codebook.codewords:
            self._sorted = (codebook.codewords, sort(self._sample, codebook.codewords, self._tables, backend))
        coded = quantized(self._sample, codebook, self._tables, backend, self._sorted[1])
        got = reconstructed(coded, codebook, backend, torch.empty_like(self._sample))
        errors = in_float64(got - self._sample).square().mean(2)  # [B, H, D]
        if self._signal is None:
            errors, squares = torch.stack([errors, in_float64(self._sample).square().mean(2)]).cpu()
            self._signal = Signal(squares)
        errors = errors.cpu()
        least = _NO_MATTER * 4.0**-self._config.bits
        return Judged(codebook, (errors.mean(-1) / measure).mean(1) + least, float(self._signal.shares(errors).max()))

    def _residual(self, codewords: Rows8) -> Tensor:
        return sort(self._x, codewords, self._tables, self._config.backend).residual


def _gain(before: Judged, after: Judged) -> float:
    """By what factor the error falls, in the batch row that gains most."""
    return float((before.error / after.error).max())


def _rescues(one: Judged, other: Judged) -> bool:
    """Whether a codebook does better where another one leaves all of the signal, or much better where that one fails."""
    return one.worst < other.worst and (other.worst > _NO_USE or (other.worst > FAILS and one.worst < FAILS * other.worst))


def is_new(x: Tensor, known: TransformCodebook, tables: Tables) -> bool:
    """Whether tokens are not more of the same: they carry much more energy than their group, or its codewords were wasted on
    noise."""
    left = tables.weights_on_host(known.basis).double().mean((1, 2))
    wasted = left > _HARDLY_DESCRIBED * (left + tables.energy(tables.centers(known.codewords)).mean(1))
    return bool(wasted.any()) or is_louder(x, known, tables)


def is_louder(x: Tensor, known: TransformCodebook, tables: Tables) -> bool:
    """Whether a video's tokens carry much more energy than their group."""
    return bool((tables.energy(x).mean(1) > _LOUDER * tables.energy_of(known).mean(1)).any())
