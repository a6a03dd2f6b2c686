"""A cache on disk: save a run, resume it later or elsewhere; load it twice to branch.

One safetensors file. Its metadata holds the format's name and version, the cache's state and checksums; tensors are named
`layer.<i>.<keys|values>.<n>.<part>` in the order of history, codebooks `codebook.<n>` and bases `basis.<n>` once each. The bytes
are the memory format itself (see `codec/span.py`), so nothing is encoded again and a file written on one device is read on any
other. Versions 1 and 2 had no checksums, and version 1 a basis of D directions in every codebook of codec "klt"; both are read.
A cache that merges tokens is written in version 4, with `rows.tokens` and `rows.counts`; one of which a share is read in version
5, with `layer.<i>.tiles.<n>.<part>`; any other in version 3, as before.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from ..attention.plan import Pair
from ..cache import KVCache
from ..codec.span import Known, put_span
from ..config import CODECS, COMPARED
from ..errors import BackendError, CacheFileError, ConfigError, quoted, shown
from ..files import written_whole
from ..positions.rope import GridRope
from ..safetensors_writer import checksum, in_memory, write_safetensors
from .contents import CHECKED_VERSION, CHECKSUMS, FORMAT, STATE, opened
from .row_files import restored_rows
from .span_files import WHICH, Read, RestoredSpans, SavedCodebooks, check_entries
from .state import ROWS_VERSION, TILES_VERSION, SavedState, read_state, state_of
from .tile_files import restored_tiles, tile_names


def save_cache(cache: KVCache, path: Path) -> None:
    """Write the committed history. The file appears whole or not at all; the cache is left as it is. CacheFileError."""
    cache.check_usable()
    path = Path(path)
    if cache.config.codec in COMPARED:
        raise CacheFileError(
            f"{path} was not written: codec {cache.config.codec!r} is there to compare with, and files have no format for its "
            f"spans; use one of {', '.join(CODECS)}"
        )
    tensors: dict[str, Tensor] = {}
    codebooks = SavedCodebooks()
    used: dict[str, list[str]] = {}
    for layer in cache.layers:
        for number, pair in enumerate(layer.state.history):
            for which, span in zip(WHICH, pair, strict=True):
                prefix = f"layer.{layer.layer}.{which}.{number}"
                codebook = span.codebook
                shared = {} if codebook is None else codebook.tensors()
                if codebook is not None:
                    used[prefix] = codebooks.add(codebook)
                tensors.update({f"{prefix}.{part}": tensor for part, tensor in span.tensors().items() if part not in shared})
    state = state_of(cache) | {"codebooks": used, "planes": codebooks.planes, "directions": codebooks.directions}
    text = json.dumps(state)
    if cache.merger is not None:
        tensors |= {"rows.tokens": cache.merger.rows.tokens, "rows.counts": cache.merger.rows.counts}
    for layer in cache.layers:
        for number, tiles in enumerate(layer.state.tiles, len(layer.state.sink)):
            prefix = tile_names(layer.layer, number)
            tensors |= {f"{prefix}.{part}": tensor for part, tensor in tiles.tensors().items()}
    version = TILES_VERSION if cache.config.skips else CHECKED_VERSION if cache.merger is None else ROWS_VERSION
    metadata = {"format": FORMAT, "version": str(version), STATE: text}
    try:
        with written_whole(path) as unfinished:
            checksums = {STATE: checksum(text.encode())}
            write_safetensors(unfinished, in_memory(tensors | codebooks.tensors), metadata, checksums=(CHECKSUMS, checksums))
    except FileNotFoundError:
        raise CacheFileError(
            f"{path} could not be written: its folder is not there; make it, or save elsewhere, the cache in memory is untouched"
        ) from None
    except OSError as error:
        raise CacheFileError(
            f"{path} could not be written ({error.strerror}); the cache in memory is untouched, free space or save elsewhere"
        ) from error


def load_cache(
    path: Path, rope: GridRope | None = None, device: torch.device | str = "cpu", backend: str | None = None
) -> KVCache:
    """A cache that goes on where the saved one stopped, on `device`, with offloaded spans in CPU memory. Its rope comes from the
    file; one that is given must be the same. `backend`: another than it was saved with, for another machine.

    Everything that the file says is checked before memory is taken for it. ConfigError for what the caller gives, CacheFileError
    for the file.
    """
    path, home = Path(path), _device(device)
    with opened(path) as contents:
        state = read_state(contents.state, contents.version)
        check_entries(state, contents.entries)
        if rope is not None and rope != state.rope:
            raise ConfigError(f"the rope given is not the one that {path} was saved with; leave it out, the file has it")
        cache = _empty(path, state, backend)
        _restore_layers(cache, state, contents.read, home)
        rows = None if state.rows is None else restored_rows(state, contents.read)
    cache.resume(state.layout, state.frames_committed, state.spans_due, state.origins, rows)
    return cache


def _device(device: torch.device | str) -> torch.device:
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
            f"{path} was saved with backend {config.backend!r}, which does not run here ({error.reason}); give load_cache "
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
