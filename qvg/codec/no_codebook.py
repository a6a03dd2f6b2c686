"""What codecs without a codebook have in common."""

from __future__ import annotations

from collections.abc import Sequence


class WithoutCodebook:
    """Nothing is learned, nothing is shared."""

    def predicted_codebook_bytes(self, rows: tuple[int, int, int], tokens: Sequence[int]) -> dict[str, int]:
        """See `Codec`."""
        return {}
