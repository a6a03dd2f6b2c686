"""The most that a cache that merges may hold at any moment of a run: a bound, for how much is merged is not known before.

Every token may begin a row. While a chunk becomes rows it is there twice, and so are the rows that wait; while rows are encoded,
those of one span, and what the codec gives back. See `peak.py` for what is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ..config import QVGConfig
from .growth import even_chunks
from .merge_bytes import MergedBytes
from .peak import Peak
from .policy import Layout
from .rows import ROW_BYTES
from .spec_like import SpecLike


def merged_peaks(
    spec: SpecLike, config: QVGConfig, chunks: Iterable[int], block_dtype: torch.dtype | None = None, by_layer: bool = True
) -> Iterator[Peak]:
    """As `peak.peaks`; all numbers are upper bounds, and none falls."""
    sizes, policy = MergedBytes(spec, config), spec.check(config)
    layout, frames = Layout(), 0
    for chunk in chunks:
        layout = policy.commit(layout, chunk).layout
        frames += chunk
        yield _moment(spec, config, sizes, frames, layout, chunk, (block_dtype or spec.dtype).itemsize, by_layer)


class MergedPeaks:
    """As `EvenPeaks`, of a cache that merges: upper bounds."""

    def __init__(
        self,
        spec: SpecLike,
        config: QVGConfig,
        first_frames: int = 0,
        block_dtype: torch.dtype | None = None,
        by_layer: bool = True,
    ):
        self._spec, self._config, self._by_layer = spec, config, by_layer
        self._sizes, self._policy = MergedBytes(spec, config), spec.check(config)
        self._first, self._itemsize = first_frames, (block_dtype or spec.dtype).itemsize

    def after(self, frames: int) -> Peak:
        """So many frames. The last moment is the worst one: nothing leaves such a cache."""
        if not frames:
            return Peak(0, 0, 0, 0)
        layout = self._sizes.layout(even_chunks(frames, self._policy.chunk_frames, self._first))
        largest = max(self._policy.chunk_frames, self._first)
        return _moment(self._spec, self._config, self._sizes, frames, layout, largest, self._itemsize, self._by_layer)


def _moment(
    spec: SpecLike,
    config: QVGConfig,
    sizes: MergedBytes,
    frames: int,
    layout: Layout,
    chunk: int,
    itemsize: int,
    by_layer: bool,
) -> Peak:
    """After a commit of `chunk` frames, and during it."""
    layers, per_frame = spec.layers, spec.tokens_per_frame
    policy = spec.check(config)
    # Frames that may leave the tail at once: short chunks wait until the recent frames are there, and then all go.
    leaving = (policy.chunk_frames + policy.recent_frames) * per_frame
    held, own = sizes.most(layout), sizes.exact_bytes(chunk * per_frame)
    span, books = sizes.encoded_bytes()
    # What leaves the tail is there as rows too, beside the block and its copy.
    open_rows = layers * (sizes.exact_bytes(leaving) + own)
    joined = sizes.exact_bytes(sizes.span_tokens + leaving) + sizes.exact_bytes(sizes.span_tokens) + span + books
    working = own * itemsize // spec.dtype.itemsize * (1 if by_layer else layers) + joined
    index = ROW_BYTES * layout.merged * per_frame
    most = held.total() + open_rows + working + index
    exact = max(sizes.sizes(layout, rows)["exact"] for rows in sizes.most_rows(layout))
    packed = max(sizes.sizes(layout, rows).total() - sizes.sizes(layout, rows)["exact"] for rows in sizes.most_rows(layout))
    device = exact + open_rows + packed // layers * min(2, layers) + working + 2 * books
    return Peak(frames, held.total(), most, device if config.offloads else most)
