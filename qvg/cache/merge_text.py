"""What merging came to, in a sentence or two."""

from __future__ import annotations

from .kv_cache import KVCache

# With a smaller share of tokens counted, merging saves less than a tenth of the rows.
_HARDLY = 0.1


def merge_text(cache: KVCache) -> str:
    """Tokens and the rows that they became; empty of a cache that does not merge, and before anything has left the recent
    frames."""
    tokens, rows = cache.layout.merged * cache.spec.tokens_per_frame, cache.merged_rows
    if not rows:
        return ""
    heads = cache.spec.layers * cache.spec.heads
    text = (
        f"merged: {tokens} tokens became {rows} rows ({rows / tokens:.3f} a token); a token was counted where its key and the "
        f"one kept at its place have a cosine of at least {cache.config.merge:g} in each of {heads} heads"
    )
    if rows > (1 - _HARDLY) * tokens:
        text += "; hardly any did, so merge 0 remembers the same for less work"
    return text
