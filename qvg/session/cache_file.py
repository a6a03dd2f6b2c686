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

from ..cache import KVCache
from ..config import CODECS, COMPARED
from ..errors import CacheFileError, ConfigError
from ..files import written_whole
from ..positions.rope import GridRope
from ..safetensors_writer import checksum, in_memory, write_safetensors
from .contents import CHECKSUMS, FORMAT, STATE, opened
from .restored import restored_cache, usable_device
from .span_files import WHICH, SavedCodebooks, check_entries
from .state import read_state, state_of, version_of
from .tile_files import tile_names


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
    metadata = {"format": FORMAT, "version": str(version_of(cache.config)), STATE: text}
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
    path, there = Path(path), usable_device(device)
    with opened(path) as contents:
        state = read_state(contents.state, contents.version)
        check_entries(state, contents.entries)
        if rope is not None and rope != state.rope:
            raise ConfigError(f"the rope given is not the one that {path} was saved with; leave it out, the file has it")
        return restored_cache(path, state, contents.read, there, backend)
