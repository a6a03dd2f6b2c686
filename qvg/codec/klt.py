"""Our own codec: a growing codebook, Karhunen-Loeve transform, Lloyd-Max levels, unbiased gains.

What k-means leaves over is far from white: most of its energy lies in a few directions. So the residual is transformed into the
basis of its own covariance (Karhunen-Loeve transform), bits go where the energy is (reverse water-filling, Cover and Thomas,
10.3.3, in whole bits), and every coefficient becomes a level of a normal variable (Lloyd-Max) times one gain per token, chosen so
that inner products shrink as little as noise inflates softmax (`kernels.quantize_coefficients`). Bits per value:

    b + 8/D (gains) + 8/D (ids) + per codebook of S tokens: (8 + 16/D) C/S (codewords) + (8 + 16/D) R/S (directions)

Codewords and the R directions of a basis are eight-bit rows (`kernels/rows8.py`). Consecutive spans form a group that shares
codewords: each span adds some where they fit it worst, and those that are there stay, so the earlier spans' ids keep their
meaning. Of the bases that its group has learned a span takes the one that leaves the least error, or it begins another
(`klt_choice.py`): a black opening, a title or a cut must not set the scale for what follows. `klt_sizes.py` counts the rows. With
`transform="hadamard"`, from spans too short to learn from, and from openings that codewords describe completely, the basis is the
Hadamard matrix over channels scaled by powers of two, which costs next to nothing and gives all channels one width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...kernels.kmeans import MAX_CLUSTERS
from ...kernels.rotary import angles_of_tokens
from ...kernels.spans import Place, SpanTable, Tiles, decode_spans
from ..config import QVGConfig
from ..errors import ConfigError
from ..positions.rope import Rotation
from .base import CodebookSize, EncodeHint, refuse_non_finite
from .klt_choice import FAILS, Choice, is_new
from .klt_sizes import added_codewords, basis_row_bytes, directions, first_codewords, learns_basis, most_directions
from .klt_tables import Tables
from .klt_tokens import without_harm
from .span import Span, TransformCodebook, TransformSpan


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
        choice = Choice(x, known, hint, self.config, hint.tables or Tables())
        best = choice.made()
        coded = choice.coded(best.codebook)
        if best.worst > FAILS:
            coded = without_harm(x, coded, best.codebook, self.config.backend)
        return TransformSpan(*coded, best.codebook)

    def decode(self, span: Span, tokens: slice, heads: slice, out: Tensor, rotation: Rotation | None = None) -> Tensor:
        """See `Codec`."""
        assert isinstance(span, TransformSpan)
        start, stop, _ = tokens.indices(span.num_tokens)
        first, last, _ = heads.indices(span.gains.shape[1])
        assert out.shape[1:3] == (last - first, stop - start)
        table, turns = SpanTable((span.kept(),), (span.kept(),), (Place(0),)), rotation and angles_of_tokens(rotation)
        decode_spans(table, (0, 1), Tiles(out, None, start, first), turns, self.config.backend)
        return out

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

    def is_new(self, x: Tensor, known: TransformCodebook, tables: Tables | None = None) -> bool:
        """Whether tokens are not more of the same as their group's. `tables`: for `encode`, too (`EncodeHint`)."""
        return is_new(x, known, tables or Tables())
