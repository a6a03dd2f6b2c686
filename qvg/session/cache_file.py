"""A cache on disk: save a run, resume it later or elsewhere; load it twice to branch.

One safetensors file. Its metadata holds the format's name and version, spec, config, rope and layout; tensors are named
`layer.<i>.<keys|values>.<n>.<part>` in the order of history, codebooks `codebook.<n>` and bases `basis.<n>` once each. The bytes
are the memory format itself (see `codec/span.py`), so nothing is encoded again and a file written on one device is read on any
other. Version 1 had a basis of D directions in every codebook of codec "klt"; it is read.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..attention.exact import Pair
from ..cache import KVCache
from ..cache.policy import Layout
from ..cache.spec import CacheSpec
from ..codec.span import Known, move
from ..config import QVGConfig
from ..errors import CacheFileError, ConfigError
from ..file_names import in_utf8
from ..files import written_whole
from ..positions.rope import GridRope
from ..safetensors_writer import in_memory, write_safetensors
from .span_files import RestoredCodebooks, SavedCodebooks, restore_span

FORMAT = "qvg-cache"
VERSION = 2
READABLE_VERSIONS = (1, 2)


def save_cache(cache: KVCache, path: Path) -> None:
    """Write the committed history. The file appears whole or not at all; the cache is left as it is."""
    cache.check_usable()
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    codebooks = SavedCodebooks()
    used: dict[str, list[str]] = {}
    for layer in cache.layers:
        for number, pair in enumerate(layer.state.history):
            for which, span in zip(("keys", "values"), pair, strict=True):
                prefix = f"layer.{layer.layer}.{which}.{number}"
                codebook = span.codebook
                shared = {} if codebook is None else codebook.tensors()
                if codebook is not None:
                    used[prefix] = codebooks.add(codebook)
                tensors.update({f"{prefix}.{part}": tensor for part, tensor in span.tensors().items() if part not in shared})
    state = {
        "spec": {**asdict(cache.spec), "dtype": str(cache.spec.dtype).removeprefix("torch.")},
        "config": asdict(cache.config),
        "layout": asdict(cache.layout),
        "rope": None if cache.rope is None else asdict(cache.rope),
        "frames_committed": cache.frames_committed,
        "spans_due": cache.spans_due,
        "origins": cache.origins,
        "codebooks": used,
        "planes": codebooks.planes,
        "directions": codebooks.directions,
        "spans_encoded": [layer.state.spans_encoded for layer in cache.layers],
        "encode_calls": [layer.state.encode_calls for layer in cache.layers],
        "group_starts": [layer.state.group_starts for layer in cache.layers],
        "spare_rows": [layer.state.spare_rows for layer in cache.layers],
    }
    try:
        with written_whole(path) as unfinished:
            metadata = {"format": FORMAT, "version": str(VERSION), "state": json.dumps(state)}
            write_safetensors(unfinished, in_memory(tensors | codebooks.tensors), metadata)
    except OSError as error:
        raise CacheFileError(
            f"{path} could not be written ({error.strerror}); the cache in memory is untouched, free space or save elsewhere"
        ) from error


def load_cache(path: Path, rope: GridRope | None = None, device: torch.device | str = "cpu") -> KVCache:
    """A cache that goes on where the saved one stopped, on `device`, with offloaded spans in CPU memory. Its rope comes from the
    file; one that is given must be the same."""
    path = Path(path)
    state, tensors = _read(path, device)
    try:
        spec = CacheSpec(**{**state["spec"], "dtype": getattr(torch, state["spec"]["dtype"])})
        saved_rope = None if state["rope"] is None else _rope(state["rope"])
        if rope is not None and rope != saved_rope:
            raise ConfigError("the rope given is not the one it was saved with")
        cache = KVCache(spec, QVGConfig(**state["config"]), saved_rope)
        hidden = int(state["layout"].get("hidden", 0))
        sink, spans, tail = (tuple(state["layout"][name]) for name in ("sink", "spans", "tail"))
        layout = Layout(sink, spans, tail, hidden)
        origins = [(float(t), float(r), float(c)) for t, r, c in state["origins"]]
        if saved_rope is not None and len(origins) != layout.frames:
            raise ConfigError(f"{len(origins)} positions for {layout.frames} frames")
        _restore_layers(cache, layout, state, tensors, torch.device(device))
        cache.resume(layout, int(state["frames_committed"]), int(state["spans_due"]), origins)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CacheFileError(
            f"{path} says it is a {FORMAT} file, but its contents do not fit together ({error}); update the pack or save it again"
        ) from error
    return cache


def _rope(saved: dict[str, Any]) -> GridRope:
    time, rows, cols = (tuple(float(value) for value in axis) for axis in saved["axis_frequencies"])
    return GridRope(int(saved["grid_rows"]), int(saved["grid_cols"]), (time, rows, cols))


def _read(path: Path, device: torch.device | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a file of ours, or CacheFileError."""
    try:
        with in_utf8(path) as name, safe_open(name, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CacheFileError(
                    f"{path} is a safetensors file, but not a saved cache (no format {FORMAT!r} in it); "
                    "choose one made by save_cache"
                )
            if int(metadata["version"]) not in READABLE_VERSIONS:
                raise CacheFileError(
                    f"{path} has cache format version {metadata['version']}, this version reads "
                    f"{' and '.join(map(str, READABLE_VERSIONS))}; update the pack to open a newer one"
                )
            state = json.loads(metadata["state"])
        place = "cpu" if state["config"].get("offload") == "cpu" else str(device)
        with in_utf8(path) as name, safe_open(name, "pt", device=place) as file:
            return state, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except CacheFileError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheFileError(
            f"{path} cannot be read as a saved cache ({error}); it may be truncated or foreign, save the cache again"
        ) from error


def _restore_layers(
    cache: KVCache, layout: Layout, state: dict[str, Any], tensors: dict[str, Tensor], device: torch.device
) -> None:
    codebooks = RestoredCodebooks(tensors, state, cache.spec, cache.config)
    at_home: Known = {}
    kinds = [(name, frames) for name in ("sink", "spans", "tail") for frames in getattr(layout, name)]
    for layer in cache.layers:
        for number, (kind, frames) in enumerate(kinds):
            pair = []
            for which, part in enumerate(("keys", "values")):
                prefix = f"layer.{layer.layer}.{part}.{number}"
                names, tokens = state["codebooks"].get(prefix), frames * cache.spec.tokens_per_frame
                codebook = None if names is None else codebooks.codebook(names)
                span = restore_span(prefix, tensors, codebook, cache.spec, cache.config, tokens, which)
                if cache.offloader is not None:
                    span = cache.offloader.adopt(span, device, at_home) if kind == "spans" else move([span], device)[0]
                pair.append(span)
            getattr(layer.state, kind).append(Pair(*pair))
        layer.state.spans_encoded = int(state["spans_encoded"][layer.layer])
        layer.state.encode_calls = int(state["encode_calls"][layer.layer])
        layer.state.group_starts = _group_starts(state, layer.layer, cache.config.spans_per_codebook)
        layer.state.spare_rows = [int(rows) for rows in state["spare_rows"][layer.layer]] if "spare_rows" in state else [0, 0]


def _group_starts(state: dict[str, Any], layer: int, spans_per_codebook: int) -> list[int]:
    """With which spans the newest codebooks of keys and values began; in version 1 every so many spans."""
    if "group_starts" not in state:
        newest = max(0, int(state["spans_encoded"][layer]) - 1)
        return [newest // spans_per_codebook * spans_per_codebook] * 2
    keys, values = state["group_starts"][layer]
    return [int(keys), int(values)]
