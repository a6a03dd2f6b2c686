"""A cache made again out of tensors whose shapes are known to fit what is said of them."""

from __future__ import annotations

from pathlib import Path

import torch

from ..attention.plan import Pair
from ..cache import KVCache
from ..codec.span import Known, put_span
from ..errors import BackendError, CacheFileError, ConfigError, quoted, shown
from .row_files import restored_rows
from .span_files import WHICH, Read, RestoredSpans
from .state import SavedState
from .tile_files import restored_tiles


def restored_cache(path: Path, state: SavedState, read: Read, device: torch.device, backend: str | None) -> KVCache:
    """`read` gives the tensors that `check_entries` has found. `backend`: in place of the one that it was saved with. `path` is
    what errors name: CacheFileError, and MisfitError for values that cannot be."""
    cache = _empty(path, state, backend)
    _restore_layers(cache, state, read, device)
    rows = None if state.rows is None else restored_rows(state, read)
    cache.resume(state.layout, state.frames_committed, state.spans_due, state.origins, rows)
    return cache


def usable_device(device: torch.device | str) -> torch.device:
    """ConfigError unless tensors can be there."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found).cpu()
        return found
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = shown((str(error) or type(error).__name__).splitlines()[0], 200)
        raise ConfigError(
            f"device is {quoted(str(device))}, which cannot be used here ({reason}); use 'cpu', or a card that torch has"
        ) from None


def _empty(path: Path, state: SavedState, backend: str | None) -> KVCache:
    config = state.config if backend is None else state.config.with_changes(backend=backend)
    try:
        return KVCache(state.spec, config, state.rope)
    except BackendError as error:
        if backend is not None:
            raise
        raise CacheFileError(
            f"{path} was saved with backend {config.backend!r}, which does not run here ({error.reason}); open it with "
            "backend='auto'"
        ) from error


def _restore_layers(cache: KVCache, state: SavedState, read: Read, device: torch.device) -> None:
    spans = RestoredSpans(state, read)
    at_home: Known = {}
    there: Known = {}
    for layer in cache.layers:
        for number, (section, tokens) in enumerate(state.stretches()):
            pair = []
            for which, part in enumerate(WHICH):
                span = spans.span(f"layer.{layer.layer}.{part}.{number}", which, tokens, section == "spans")
                if cache.offloader is not None and section == "spans":
                    span = cache.offloader.adopt(span, device, at_home)
                elif device.type != "cpu":
                    span = put_span(span, lambda tensor: tensor.to(device), there)
                pair.append(span)
            if section == "waiting":
                layer.state.waiting = Pair(*pair)
            else:
                getattr(layer.state, section).append(Pair(*pair))
            if section == "spans" and state.config.skips:
                layer.state.tiles.append(restored_tiles(read, layer.layer, number).on(device))
        layer.state.spans_encoded, layer.state.encode_calls = state.spans_due, 2 * state.spans_due
        layer.state.group_starts = list(state.group_starts[layer.layer])
        layer.state.spare_rows = list(state.spare_rows[layer.layer])
