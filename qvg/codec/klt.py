"""Our own codec: a growing codebook, Karhunen-Loeve transform, Lloyd-Max levels, unbiased gains.

What k-means leaves over is far from white: most of its energy lies in a few directions. So the residual is turned into the basis
of its own covariance (Karhunen-Loeve transform), bits go where the energy is (reverse water-filling, Cover and Thomas, 10.3.3, in
whole bits), and every coefficient becomes a level of a normal variable (Lloyd-Max) times one gain per token, chosen so that inner
products shrink as little as noise inflates softmax (`kernels.quantize_coefficients`). Bits per value:

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
from .base import BookSize, EncodeHint, Room, refuse_non_finite
from .klt_basis import fixed_basis, learn_basis
from .klt_sizes import added_words, basis_row_bytes, directions, first_words, learns_basis
from .klt_codewords import add_words, learn_words
from .span import Dictionary, Group, Span, TransformSpan

# A basis of its own must lower a span's error by these factors: where its layer's codebooks have room for it (1.5 dB), where those
# of other layers have (6 dB), and where nothing has (10 dB).
_WORTH_ITS_ROOM, _WORTH_OTHERS_ROOM, _WORTH_MORE_ROOM = 10**0.15, 10**0.6, 10**1.0
# Differences below this share of the group's energy, times 4^-bits, are no matter.
_NO_MATTER = 0.02
# Codewords that leave less than this share of a span's squares describe it completely.
_NOTHING_LEFT = 1e-3
# A codebook that leaves more than this share of a head's signal as error fails, and is of no use, whatever another one costs.
_FAILS, _NO_USE = 0.7, 0.95
# A channel is loud with more than so many times the energy that half of them have.
_LOUD = 256
# Errors are compared on so many tokens at least, spread over the span.
_SAMPLE_TOKENS = 512


class Judged(NamedTuple):
    """A codebook that a span could take, tried on a sample. `error`: of every batch row, as a share of its group's energy.
    `worst`: the largest error of a head as a share of its own signal, over all channels or over those beside loud ones."""

    book: Dictionary
    error: Tensor
    worst: float


class KLTCodec:
    """See the module docstring."""

    name = "klt"
    turns = True

    def __init__(self, config: QVGConfig):
        self.config = config

    def encode(self, x: Tensor, hint: EncodeHint) -> Span:
        """See `Codec`. With `hint.reuse` the span belongs to that codebook's group, or begins a new one."""
        refuse_non_finite(x, hint)
        known = hint.reuse
        if known is not None and not isinstance(known, Dictionary):
            raise ConfigError(f"codec 'klt' cannot extend a {type(known).__name__} of another codec; start a new cache")
        book = self._begin(x, hint.seed) if known is None else self._going_on(x, known, hint)
        return TransformSpan(*self._quantized(x, book), book)

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
        words = first_words(self.config, tokens[0])
        for count in tokens[1:]:
            words += added_words(self.config, words, count)
        learned = learns_basis(self.config, tokens[0], rows[2])
        return self.codebook_bytes(rows, BookSize(words, (directions(self.config, tokens[0], rows[2]) if learned else 0,)))

    def codebook_bytes(self, rows: tuple[int, int, int], book: BookSize) -> dict[str, int]:
        """Bytes by component of a codebook for [B, H, D]."""
        batch, heads, channels = rows
        row = basis_row_bytes(channels)
        basis = sum(count * row if count else 2 * channels for count in book.bases)
        return {"centroids": batch * heads * book.words * row, "basis": batch * heads * basis}

    def most_books(self, tokens: Sequence[int], channels: int, window: bool) -> list[BookSize]:
        """More than spans of so many tokens can have of codebooks: each a basis of its own and a new group's codewords.
        `window`: spans that have left may have added to them."""
        words = [max(first_words(self.config, count), added_words(self.config, 0, count)) for count in tokens]
        bases = [directions(self.config, count, channels) * learns_basis(self.config, count, channels) for count in tokens]
        return [BookSize(MAX_CLUSTERS if window else word, (basis,)) for word, basis in zip(words, bases, strict=True)]

    # ------------------------------------------------------------------------------------------------------ codebooks

    def _begin(self, x: Tensor, seed: int) -> Dictionary:
        """A new group. An opening that its codewords describe completely has nothing to teach a basis."""
        words = learn_words(x, first_words(self.config, x.shape[2]), seed, self.config)
        residual = self._residual(x, words)
        moment = x.double().square().mean((2, 3))
        if bool((residual.double().square().mean((2, 3)) <= _NOTHING_LEFT * moment).all()):
            return Dictionary(words, fixed_basis(residual, self.config.bits), Group())
        return self._with_basis(x, words, Group())

    def _going_on(self, x: Tensor, known: Dictionary, hint: EncodeHint) -> Dictionary:
        """The group's codewords, grown, with the basis of the group that fits x best, or with another one if that is worth its
        room; or a new group.

        Room is what codebooks left of a whole basis for each group, and the codewords that this span then does not add. Within
        it bytes stay below those of one whole basis per group; what goes beyond has to be worth it.
        """
        tokens, channels = x.shape[2:]
        energy = torch.maximum(_energy(x), _energy_of(known))
        added = added_words(self.config, known.words.values.shape[2], tokens)
        grown = add_words(x, known.words, added, hint.seed, self.config)
        bases = hint.bases or (known.basis,)
        best = min(
            (self._judged(x, Dictionary(grown, basis, known.group), energy) for basis in bases), key=lambda one: one.error.max()
        )
        if not learns_basis(self.config, tokens, channels):
            own = self._judged(x, self._with_basis(x, grown, known.group), energy)
            best = own if self._gain(best, own) > _WORTH_ITS_ROOM else best
            own = self._judged(x, self._renewed(x, known, hint.seed), energy) if best.worst > _FAILS else best
            return own.book if _rescues(own, best) else best.book
        if all(basis.rows is None for basis in bases):
            # Nothing was worth learning until now, and little room was taken: a new group costs what the first one should have.
            own = self._judged(x, self._begin(x, hint.seed), energy)
            return own.book if self._gain(best, own) > _WORTH_ITS_ROOM or _rescues(own, best) else best.book
        own = self._judged(x, self._with_basis(x, known.words, known.group), energy)
        usual = directions(self.config, tokens, channels)
        room = hint.room or Room(*[channels - sum(min(basis.directions, usual) for basis in bases)] * 2)
        worth = _WORTH_ITS_ROOM if usual <= room.layer + added else _WORTH_OTHERS_ROOM
        if own.worst <= _FAILS and usual <= room.cache + added and self._gain(best, own) > worth:
            return own.book
        if best.worst <= _FAILS and self._gain(best, own) <= _WORTH_MORE_ROOM:
            return best.book
        own = self._judged(x, self._renewed(x, known, hint.seed), energy)
        return own.book if self._gain(best, own) > _WORTH_MORE_ROOM or _rescues(own, best) else best.book

    def _renewed(self, x: Tensor, known: Dictionary, seed: int) -> Dictionary:
        """Half as many codewords more as a new group begins with, and a basis; or a new group where ids cannot name so many."""
        count = max(1, first_words(self.config, x.shape[2]) // 2)
        if known.words.values.shape[2] + count > MAX_CLUSTERS:
            return self._begin(x, seed)
        return self._with_basis(x, add_words(x, known.words, count, seed, self.config), known.group)

    def _with_basis(self, x: Tensor, words: Rows8, group: Group) -> Dictionary:
        """Codewords and a basis for what they leave of x."""
        residual, (tokens, channels) = self._residual(x, words), x.shape[2:]
        if not learns_basis(self.config, tokens, channels):
            return Dictionary(words, fixed_basis(residual, self.config.bits), group)
        return Dictionary(words, learn_basis(residual, directions(self.config, tokens, channels), self.config.bits), group)

    def spare_rows(self, span: TransformSpan, hint: EncodeHint, before: int) -> int:
        """What a group that had `before` rows to spare has left after this span: of a whole basis, and of the codewords that each
        span may add. Negative where it took more."""
        words, basis = span.codebook.words.values.shape[2], span.codebook.basis
        channels, known = span.codebook.words.values.shape[3], hint.reuse
        taken = min(basis.directions, directions(self.config, span.num_tokens, channels))
        if not isinstance(known, Dictionary):
            return channels - taken
        had = known.words.values.shape[2]
        left = before + added_words(self.config, had, span.num_tokens) - words
        if known.group is not span.codebook.group:
            return left - taken
        return left + had - (0 if any(basis is one for one in (*hint.bases, known.basis)) else taken)

    # ---------------------------------------------------------------------------------------------------------- tokens

    def _judged(self, x: Tensor, book: Dictionary, energy: Tensor) -> Judged:
        """Encode and decode a sample of x."""
        sample = x[:, :, :: max(1, x.shape[2] // _SAMPLE_TOKENS)].float()
        got = self._reconstructed(self._quantized(sample, book), book, slice(None), torch.empty_like(sample))
        errors, own = (part.double().square().mean(2) for part in (got - sample, sample))  # [B, H, D]
        least = _NO_MATTER * 4.0**-self.config.bits
        faint = own <= _LOUD * own.median(-1, keepdim=True).values
        shares = [_largest_share((errors * some).sum(-1), (own * some).sum(-1)) for some in (torch.ones_like(faint), faint)]
        return Judged(book, (errors.mean(-1) / energy).mean(1) + least, max(shares))

    @staticmethod
    def _gain(before: Judged, after: Judged) -> float:
        """By what factor the error falls, in the batch row that gains most."""
        return float((before.error / after.error).max())

    def _residual(self, x: Tensor, words: Rows8) -> Tensor:
        """What codewords leave of tokens, float32."""
        centers = words.dequantize()
        return subtract_centroids(x, assign_clusters(x, centers, self.config.backend), centers, self.config.backend)

    def _quantized(self, x: Tensor, book: Dictionary) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, gains and ids of tokens."""
        centers = book.words.dequantize()
        ids = assign_clusters(x, centers, self.config.backend)
        residual = subtract_centroids(x, ids, centers, self.config.backend)
        y, weights = torch.matmul(residual, book.basis.analysis()), book.basis.weights()
        parts = [
            quantize_coefficients(y[row : row + 1], weights[row : row + 1], planes, self.config.backend)
            for row, planes in enumerate(book.basis.planes)
        ]
        codes, gains = (part[0] if len(part) == 1 else torch.cat(part) for part in zip(*parts, strict=True))
        return codes, gains, ids

    def _reconstructed(
        self, parts: tuple[Tensor, ...], book: Dictionary, heads: slice, out: Tensor, rotation: Rotation | None = None
    ) -> Tensor:
        """The tokens of codes, gains and ids of some heads, into `out`."""
        codes, gains, ids = parts
        words = Rows8(*(part[:, heads] for part in book.words)).dequantize()
        matrix = book.basis.heads(heads).synthesis()
        for row, planes in enumerate(book.basis.planes):
            one = slice(row, row + 1)
            reconstruct_coefficients(
                codes[one], gains[one], ids[one], words[one], matrix[one], planes, out[one], self.config.backend, rotation
            )
        return out


def _rescues(one: Judged, other: Judged) -> bool:
    """Whether a codebook does better where another one leaves all of the signal, or much better where that one fails."""
    return one.worst < other.worst and (other.worst > _NO_USE or (other.worst > _FAILS and one.worst < _FAILS * other.worst))


def _largest_share(errors: Tensor, signals: Tensor) -> float:
    return float(torch.where(errors > 0, errors / signals.clamp(min=1e-300), 0.0).max())


def _energy(x: Tensor) -> Tensor:
    """Mean squared distance of tokens [B, H, S, D] from their mean, per value: float64 [B, H], never 0."""
    x = x.double()
    return (x - x.mean(2, keepdim=True)).square().mean((2, 3)).clamp(min=1e-30)


def _energy_of(book: Dictionary) -> Tensor:
    """The energy of the tokens that a codebook describes: what is between its codewords, and what its basis expects."""
    residual = book.basis.weights().double().mean(-1)
    return (_energy(book.words.dequantize()) + residual).clamp(min=1e-30)
