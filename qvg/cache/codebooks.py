"""What a cache's codebooks take, in a sentence or two: codec "klt" begins more where frames do not fit those before."""

from __future__ import annotations

from .kv_cache import KVCache


def codebooks_text(cache: KVCache) -> str:
    """How many bases were begun and how many a video without cuts has, their bytes, the price of one more, and the bound; and
    what short spans get instead. Empty for other codecs, and before anything is encoded."""
    layers, spans = cache.codebooks(), len(cache.layers[0].state.spans)
    if not layers or not spans:
        return ""
    spec, config = cache.spec, cache.config
    begun = sum(len(size.bases) for layer in layers for codebooks in layer for size in codebooks)
    first, last = cache.spans_due - spans, cache.spans_due - 1  # a window may have cut a group of spans
    usual = 2 * spec.layers * (last // config.spans_per_codebook - first // config.spans_per_codebook + 1)
    held = cache.nbytes()
    without = held.total - held.centroids - held.basis
    most = spec.predict(config, cache.frames_committed, codebooks="most")
    text = (
        f"codebooks: {begun} bases (a video without cuts has {usual}) in {(held.centroids + held.basis) / 1e6:.2f} MB; one more "
        f"in every layer takes {spec.codebook_bytes(config) / 1e6:.2f} MB, and one at every span would make the whole cache "
        f"{max(held.total, without + most.centroids + most.basis) / 1e6:.2f} MB at most"
    )
    return "\n".join(filter(None, (text, spec.short_spans_text(config))))
