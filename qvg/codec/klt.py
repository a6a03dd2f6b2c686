"""Our own codec: a growing codebook, Karhunen-Loeve transform, Lloyd-Max levels, unbiased gains.

What k-means leaves over is far from white: most of its energy lies in a few directions. So the residual is transformed into the
basis of its own covariance (Karhunen-Loeve transform), bits go where the energy is (reverse water-filling, Cover and Thomas,
10.3.3, in whole bits), and every coefficient becomes a level of a normal variable (Lloyd-Max) times one gain per token, chosen so
that inner products shrink as little as noise inflates softmax (`kernels.quantize_coefficients`). Bits per value:

    b + 8/D (gains) + 8/D (ids) + per codebook of S tokens: (8 + 16/D) C/S (codewords) + (8 + 16/D) R/S (directions)

Codewords and the R directions of a basis are eight-bit rows (`kernels/rows8.py`). Consecutive spans form a group that shares
codewords: each span adds some where they fit it worst, and those that are there stay, so the earlier spans' ids keep their
meaning. Of the bases that its group has learned a span takes the one that leaves the least error, or it begins another
(`_going_on`): a black opening, a title or a cut must not set the scale for what follows. `klt_sizes.py` counts the rows. With
`transform="hadamard"`, from spans too short to learn from, and from openings that codewords describe completely, the basis is the
Hadamard matrix over channels scaled by powers of two, which costs next to nothing and gives all channels one width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import assign_clusters, quantize_coefficients, reconstruct_coefficients, subtract_centroids
from ...kernels.kmeans import MAX_CLUSTERS
from ...kernels.rows8 import Rows8
from ..config import QVGConfig
from ..errors import ConfigError
from ..positions.rope import Rotation
from .base import CodebookSize, EncodeHint, Room, refuse_non_finite
from .klt_basis import channel_basis, fixed_basis, in_float64, learn_basis
from .klt_codewords import add_codewords, learn_codewords
from .klt_sizes import (
    added_codewords,
    basis_row_bytes,
    directions,
    first_codewords,
    has_hadamard,
    learns_basis,
    most_directions,
)
from .span import Group, Span, TransformCodebook, TransformSpan

# A basis of its own must lower a span's error by these factors: where its layer's codebooks have room for it (1.5 dB), where
# those of earlier layers have (3 dB), and where nothing has (5 dB in a new scene, 12 dB otherwise).
_WORTH_ITS_ROOM, _WORTH_OTHERS_ROOM, _WORTH_A_SCENE, _WORTH_MORE_ROOM = 10**0.15, 10**0.3, 10**0.5, 10**1.2
# Errors below this share of the group's energy, times 4^-bits, count as equal.
_NO_MATTER = 0.02
# Codewords that leave less than this share of a span's squares describe it completely; those that leave more than the second
# share of its energy hardly do (noise: 0.6 to 0.76, pictures: 0.3 at most).
_NOTHING_LEFT, _HARDLY_DESCRIBED = 1e-3, 0.5
# A codebook that leaves more than this share of a head's signal as error fails, and is of no use, whatever another one costs.
_FAILS, _NO_USE = 0.7, 0.95
# A span with so many times its group's energy is not more of the same.
_LOUDER = 1.25
# A channel is loud with more than so many times the energy that half of them have.
_LOUD = 256
# Errors are compared on so many tokens at least, spread over the span.
_SAMPLE_TOKENS = 512


class Judged(NamedTuple):
    """A codebook that a span could take, tried on a sample. `error`: of every batch row, as a share of its group's energy.
    `worst`: the largest error of a head as a share of its own signal, over all channels or over those beside loud ones."""

    codebook: TransformCodebook
    error: Tensor
    worst: float


class KLTCodec:
    """See the module docstring."""

    name = "klt"
    rotates = True

    def __init__(self, config: QVGConfig):
        self.config = config

    def encode(self, x: Tensor, hint: EncodeHint) -> Span:
        """See `Codec`. With `hint.reuse` the span belongs to that codebook's group, or begins a new one."""
        refuse_non_finite(x, hint)
        known = hint.reuse
        if known is not None and not isinstance(known, TransformCodebook):
            raise ConfigError(f"codec 'klt' cannot extend a {type(known).__name__} of another codec; start a new cache")
        best = self._going_on(x, known, hint) if known else self._judged(x, self._begin(x, hint.seed), _energy(x))
        if best.worst > _NO_USE:
            best = self._rescued(x, best, hint.seed)
        codes, gains, ids = self._quantized(x, best.codebook)
        if best.worst > _FAILS:
            gains = self._harmless(x, codes, gains, ids, best.codebook)
        return TransformSpan(codes, gains, ids, best.codebook)

    def decode(self, span: Span, tokens: slice, heads: slice, out: Tensor, rotation: Rotation | None = None) -> Tensor:
        """See `Codec`."""
        assert isinstance(span, TransformSpan)
        parts = tuple(part[:, heads, tokens] for part in (span.codes, span.gains, span.ids))
        return self._reconstructed(parts, span.codebook, heads, out, rotation)

    def predicted_bytes(self, shape: tuple[int, int, int, int]) -> dict[str, int]:
        """See `Codec`."""
        batch, heads, tokens, channels = shape
        rows = batch * heads * tokens
        return {"codes": rows * (round(self.config.bits * channels) // 8), "scales": rows, "ids": rows}

    def predicted_codebook_bytes(self, rows: tuple[int, int, int], tokens: Sequence[int]) -> dict[str, int]:
        """See `Codec`."""
        codewords = first_codewords(self.config, tokens[0])
        for count in tokens[1:]:
            codewords += added_codewords(self.config, codewords, count)
        learned = learns_basis(self.config, tokens[0], rows[2])
        return self.codebook_bytes(
            rows, CodebookSize(codewords, (directions(self.config, tokens[0], rows[2]) if learned else 0,))
        )

    def codebook_bytes(self, rows: tuple[int, int, int], codebook: CodebookSize) -> dict[str, int]:
        """Bytes by component of a codebook for [B, H, D]."""
        batch, heads, channels = rows
        row = basis_row_bytes(channels)
        basis = sum(count * row if count else 2 * channels for count in codebook.bases)
        return {"centroids": batch * heads * codebook.codewords * row, "basis": batch * heads * basis}

    def most_codebooks(self, tokens: Sequence[int], channels: int, window: bool) -> list[CodebookSize]:
        """More than spans of so many tokens can have of codebooks: each a whole basis of its own and a new group's codewords.
        `window`: spans that have left may have added to them."""
        codewords = [max(first_codewords(self.config, count), added_codewords(self.config, 0, count)) for count in tokens]
        bases = [most_directions(self.config, count, channels) * learns_basis(self.config, count, channels) for count in tokens]
        return [CodebookSize(MAX_CLUSTERS if window else count, (basis,)) for count, basis in zip(codewords, bases, strict=True)]

    # ------------------------------------------------------------------------------------------------------ codebooks

    def _begin(self, x: Tensor, seed: int) -> TransformCodebook:
        """A new group. An opening that its codewords describe completely has nothing to teach a basis."""
        codewords = learn_codewords(x, first_codewords(self.config, x.shape[2]), seed, self.config)
        residual = self._residual(x, codewords)
        moment = in_float64(x).square().mean((2, 3))
        described = bool((in_float64(residual).square().mean((2, 3)) <= _NOTHING_LEFT * moment).all())
        if described and has_hadamard(x.shape[3]):
            return TransformCodebook(codewords, fixed_basis(residual, self.config.bits), Group())
        return self._with_basis(x, codewords, Group())

    def _going_on(self, x: Tensor, known: TransformCodebook, hint: EncodeHint) -> Judged:
        """The group's codewords, grown, with the basis of the group that fits x best, or with another one if that is worth its
        room; or a new group.

        Room is what codebooks left of a whole basis for each group, and the codewords that this span then does not add. Within
        it bytes stay below those of one whole basis per group; what goes beyond has to be worth it.
        """
        energy = torch.maximum(_energy(x), _energy_of(known))
        added = added_codewords(self.config, known.codewords.values.shape[2], x.shape[2])
        grown = add_codewords(x, known.codewords, added, hint.seed, self.config)
        bases = hint.bases or (known.basis,)
        best = min(
            (self._judged(x, TransformCodebook(grown, basis, known.group), energy) for basis in bases),
            key=lambda one: one.error.max(),
        )
        if not learns_basis(self.config, *x.shape[2:]):
            own = self._judged(x, self._with_basis(x, grown, known.group), energy)
            best = own if self._gain(best, own) > _WORTH_ITS_ROOM else best
            own = self._judged(x, self._renewed(x, known, hint.seed), energy) if best.worst > _FAILS else best
            return own if _rescues(own, best) else best
        if all(basis.rows is None for basis in bases):
            # Nothing was worth learning until now, and little room was taken: a new group costs what the first one should have.
            own = self._judged(x, self._begin(x, hint.seed), energy)
            return own if self._gain(best, own) > _WORTH_ITS_ROOM or _rescues(own, best) else best
        return self._best_or_another(x, known, hint, best, energy)

    def _best_or_another(self, x: Tensor, known: TransformCodebook, hint: EncodeHint, best: Judged, energy: Tensor) -> Judged:
        """The best of what the group has, or a learned basis of x's own, with more codewords where those help."""
        tokens, channels = x.shape[2:]
        more, added = self._more_codewords(tokens), added_codewords(self.config, known.codewords.values.shape[2], tokens)
        room = hint.room or Room(*[channels - sum(basis.directions for basis in hint.bases or (known.basis,))] * 2)
        own = self._judged(x, self._with_basis(x, known.codewords, known.group), energy)
        rows = own.codebook.basis.directions
        # Once in a group, and again where these tokens themselves are louder.
        new_scene = hint.new_scene and (len(hint.bases) < 2 or _is_louder(x, known))
        worth = _WORTH_ITS_ROOM if rows <= room.layer + added else _WORTH_OTHERS_ROOM
        if own.worst <= _FAILS and rows <= room.so_far + added and self._gain(best, own) > worth:
            # The layer's keys (or values) need room for a basis, too.
            if new_scene or 2 * rows + more <= room.layer + 2 * added:
                renewed = self._judged(x, self._renewed(x, known, hint.seed), energy)
                return renewed if self._gain(own, renewed) > _WORTH_ITS_ROOM else own
            return own
        if best.worst <= _FAILS and self._gain(best, own) <= _WORTH_OTHERS_ROOM:
            return best
        renewed = self._judged(x, self._renewed(x, known, hint.seed), energy)
        worth = _WORTH_A_SCENE if new_scene else _WORTH_MORE_ROOM
        return renewed if self._gain(best, renewed) > worth or _rescues(renewed, best) else best

    def _renewed(self, x: Tensor, known: TransformCodebook, seed: int) -> TransformCodebook:
        """Half as many codewords more as a new group begins with, and a basis; or a new group where ids cannot name so many."""
        count = self._more_codewords(x.shape[2])
        if known.codewords.values.shape[2] + count > MAX_CLUSTERS:
            return self._begin(x, seed)
        return self._with_basis(x, add_codewords(x, known.codewords, count, seed, self.config), known.group)

    def _rescued(self, x: Tensor, best: Judged, seed: int) -> Judged:
        """Where all of a head's signal would be lost: a new group, because old codewords may be what harms; then a basis that
        gives every channel its own scale, because one channel may be so loud that a learned one knows no other."""
        energy = _energy(x)
        own = self._judged(x, self._begin(x, seed), energy)
        best = own if _rescues(own, best) else best
        if best.codebook.basis.rows is None:
            return best
        codewords, channels = best.codebook.codewords, x.shape[3]
        make = fixed_basis if has_hadamard(channels) else channel_basis
        basis = make(self._residual(x, codewords), self.config.bits)
        plain = self._judged(x, TransformCodebook(codewords, basis, best.codebook.group), energy)
        return plain if _rescues(plain, best) else best

    def _harmless(self, x: Tensor, codes: Tensor, gains: Tensor, ids: Tensor, codebook: TransformCodebook) -> Tensor:
        """Gains, and 0 for tokens to which their codeword alone is nearer; for all of a head where what codewords leave over is
        less than the error of that."""
        wanted = in_float64(x)
        alone, coded = (
            in_float64(self._reconstructed((codes, some, ids), codebook, slice(None), torch.empty_like(x, dtype=torch.float32)))
            for some in (torch.zeros_like(gains), gains)
        )
        without, errors = (alone - wanted).square(), (coded - wanted).square()
        nearer = without.sum(-1) < errors.sum(-1)
        errors = torch.where(nearer[..., None], without, errors)
        own = wanted.square().mean(2)
        before, after = (_shares_of_signal(part.mean(2), own).amax(0) for part in (errors, without))
        silent = (before > 1) & (after < before)
        return torch.where((nearer | silent[..., None]).to(gains.device), torch.zeros_like(gains), gains)

    def _more_codewords(self, tokens: int) -> int:
        """What a span adds that fits its group badly."""
        return max(1, first_codewords(self.config, tokens) // 2)

    def _with_basis(self, x: Tensor, codewords: Rows8, group: Group) -> TransformCodebook:
        """Codewords and a basis for what they leave of x."""
        residual, (tokens, channels) = self._residual(x, codewords), x.shape[2:]
        if not learns_basis(self.config, tokens, channels):
            return TransformCodebook(codewords, fixed_basis(residual, self.config.bits), group)
        return TransformCodebook(
            codewords, learn_basis(residual, directions(self.config, tokens, channels), self.config.bits), group
        )

    def spare_rows(self, span: TransformSpan, hint: EncodeHint, before: int) -> int:
        """What a group that had `before` rows to spare has left after this span: of a whole basis, and of the codewords that each
        span may add. Negative where it took more."""
        codewords, basis = span.codebook.codewords.values.shape[2], span.codebook.basis
        channels, known = span.codebook.codewords.values.shape[3], hint.reuse
        if not isinstance(known, TransformCodebook):
            return channels - basis.directions
        had = known.codewords.values.shape[2]
        left = before + added_codewords(self.config, had, span.num_tokens) - codewords
        if known.group is not span.codebook.group:
            return left - basis.directions
        return left + had - (0 if any(basis is one for one in (*hint.bases, known.basis)) else basis.directions)

    def is_new(self, x: Tensor, known: TransformCodebook) -> bool:
        """Whether tokens are not more of the same: they carry much more energy than their group, or its codewords were wasted on
        noise."""
        left = in_float64(known.basis.weights()).mean((1, 2))
        wasted = left > _HARDLY_DESCRIBED * (left + _energy(known.codewords.dequantize()).mean(1))
        return bool(wasted.any()) or _is_louder(x, known)

    # ---------------------------------------------------------------------------------------------------------- tokens

    def _judged(self, x: Tensor, codebook: TransformCodebook, energy: Tensor) -> Judged:
        """Encode and decode a sample of x."""
        sample = x[:, :, :: max(1, x.shape[2] // _SAMPLE_TOKENS)].float()
        got = self._reconstructed(self._quantized(sample, codebook), codebook, slice(None), torch.empty_like(sample))
        errors, own = (in_float64(part).square().mean(2) for part in (got - sample, sample))  # [B, H, D]
        least = _NO_MATTER * 4.0**-self.config.bits
        return Judged(codebook, (errors.mean(-1) / energy).mean(1) + least, float(_shares_of_signal(errors, own).max()))

    @staticmethod
    def _gain(before: Judged, after: Judged) -> float:
        """By what factor the error falls, in the batch row that gains most."""
        return float((before.error / after.error).max())

    def _residual(self, x: Tensor, codewords: Rows8) -> Tensor:
        """What codewords leave of tokens, float32."""
        centers = codewords.dequantize()
        return subtract_centroids(x, assign_clusters(x, centers, self.config.backend), centers, self.config.backend)

    def _quantized(self, x: Tensor, codebook: TransformCodebook) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, gains and ids of tokens."""
        centers = codebook.codewords.dequantize()
        ids = assign_clusters(x, centers, self.config.backend)
        residual = subtract_centroids(x, ids, centers, self.config.backend)
        y, weights = torch.matmul(residual, codebook.basis.analysis()), codebook.basis.weights()
        parts = [
            quantize_coefficients(y[row : row + 1], weights[row : row + 1], planes, self.config.backend)
            for row, planes in enumerate(codebook.basis.planes)
        ]
        codes, gains = (part[0] if len(part) == 1 else torch.cat(part) for part in zip(*parts, strict=True))
        return codes, gains, ids

    def _reconstructed(
        self, parts: tuple[Tensor, ...], codebook: TransformCodebook, heads: slice, out: Tensor, rotation: Rotation | None = None
    ) -> Tensor:
        """The tokens of codes, gains and ids of some heads, into `out`."""
        codes, gains, ids = parts
        codewords = Rows8(*(part[:, heads] for part in codebook.codewords)).dequantize()
        matrix = codebook.basis.heads(heads).synthesis()
        for row, planes in enumerate(codebook.basis.planes):
            one = slice(row, row + 1)
            reconstruct_coefficients(
                codes[one], gains[one], ids[one], codewords[one], matrix[one], planes, out[one], self.config.backend, rotation
            )
        return out


def _is_louder(x: Tensor, known: TransformCodebook) -> bool:
    """Whether a video's tokens carry much more energy than their group."""
    energy = _energy(x).mean(1)
    return bool((energy > _LOUDER * _energy_of(known).mean(1).to(energy.device)).any())


def _rescues(one: Judged, other: Judged) -> bool:
    """Whether a codebook does better where another one leaves all of the signal, or much better where that one fails."""
    return one.worst < other.worst and (other.worst > _NO_USE or (other.worst > _FAILS and one.worst < _FAILS * other.worst))


def _shares_of_signal(errors: Tensor, own: Tensor) -> Tensor:
    """Errors as a share of the signal, both [B, H, D] by channel: over all channels, and beside loud ones. -> [2, B, H]"""
    usual = torch.where(own > 0, own, torch.nan).nanmedian(-1, keepdim=True).values  # of the channels that are in use
    faint = own <= _LOUD * usual.nan_to_num(0.0)
    sums = (((errors * some).sum(-1), (own * some).sum(-1)) for some in (torch.ones_like(faint), faint))
    return torch.stack([torch.where(error > 0, error / signal.clamp(min=1e-300), 0.0) for error, signal in sums])


def _energy(x: Tensor) -> Tensor:
    """Mean squared distance of tokens [B, H, S, D] from their mean, per value: float64 [B, H], never 0."""
    x = in_float64(x)
    return (x - x.mean(2, keepdim=True)).square().mean((2, 3)).clamp(min=1e-30)


def _energy_of(codebook: TransformCodebook) -> Tensor:
    """The energy of the tokens that a codebook describes: what is between its codewords, and what its basis expects."""
    residual = in_float64(codebook.basis.weights()).mean(-1)
    return (_energy(codebook.codewords.dequantize()) + residual).clamp(min=1e-30)
