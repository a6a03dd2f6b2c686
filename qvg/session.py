"""A cache on disk: save a run, resume it later or elsewhere, branch it.

One safetensors file. Its metadata holds the format's name and version, the spec, the config and the layout; tensors are named
`layer.<i>.<keys|values>.<n>.<part>` in the order of history, codebooks `codebook.<n>` once each. The bytes are the memory format
itself (see `span.py`), so nothing is encoded again and a file written on one device is read on any other.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .attention import Pair
from .cache import KVCache
from .config import QVGConfig
from .errors import CacheFileError, ConfigError
from .policy import Layout
from .rope import GridRope
from .span import Codebook, ExactSpan, QuantizedSpan, Span
from .spec import CacheSpec

FORMAT = "qvg-cache"
VERSION = 1


def save_cache(cache: KVCache, path: Path) -> None:
    """Write the committed history. The file appears whole or not at all; the cache is left as it is."""
    tensors: dict[str, Tensor] = {}
    books: dict[int, str] = {}
    used: dict[str, str] = {}
    for layer in cache.layers:
        for number, pair in enumerate(layer.state.history):
            for which, span in zip(("keys", "values"), pair, strict=True):
                prefix = f"layer.{layer.layer}.{which}.{number}"
                parts = dict(span.tensors())
                centroids = parts.pop("centroids", None)
                if centroids is not None and isinstance(span, QuantizedSpan):
                    used[prefix] = name = books.setdefault(id(span.codebook), f"codebook.{len(books)}")
                    tensors[name] = centroids
                tensors.update({f"{prefix}.{part}": tensor for part, tensor in parts.items()})
    state = {
        "spec": {**asdict(cache.spec), "dtype": str(cache.spec.dtype).removeprefix("torch.")},
        "config": asdict(cache.config),
        "layout": asdict(cache.layout),
        "frames_committed": cache.frames_committed,
        "origins": cache.origins,
        "codebooks": used,
        "spans_encoded": [layer.state.spans_encoded for layer in cache.layers],
        "encode_calls": [layer.state.encode_calls for layer in cache.layers],
    }
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        save_file(tensors, unfinished, {"format": FORMAT, "version": str(VERSION), "state": json.dumps(state)})
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        raise CacheFileError(
            f"{path} could not be written ({error}); the cache in memory is untouched, free space or save elsewhere"
        ) from error


def load_cache(path: Path, rope: GridRope | None = None, device: torch.device | str = "cpu") -> KVCache:
    """A cache that goes on where the saved one stopped. `rope` is the model's, as for `KVCache`."""
    state, tensors = _read(path, device)
    try:
        spec = CacheSpec(**{**state["spec"], "dtype": getattr(torch, state["spec"]["dtype"])})
        config = QVGConfig(**state["config"])
        cache = KVCache(spec, config, rope)
        layout = Layout(**{name: tuple(frames) for name, frames in state["layout"].items()})
        _restore_layers(cache, layout, state, tensors)
        cache.resume(layout, state["frames_committed"], [tuple(origin) for origin in state["origins"]])
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CacheFileError(
            f"{path} says it is a {FORMAT} file, but its contents do not fit together ({error}); save the cache again"
        ) from error
    return cache


def _read(path: Path, device: torch.device | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a file of ours, or CacheFileError."""
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CacheFileError(
                    f"{path} is a safetensors file, but not a saved cache (no format {FORMAT!r} in it); "
                    "choose one made by save_cache"
                )
            if int(metadata.get("version", 0)) > VERSION:
                raise CacheFileError(
                    f"{path} has cache format version {metadata['version']}, this version reads up to {VERSION}; "
                    "update the pack to open it"
                )
            return json.loads(metadata["state"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except CacheFileError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CacheFileError(
            f"{path} cannot be read as a saved cache ({error}); it may be truncated or foreign, save the cache again"
        ) from error


def _restore_layers(cache: KVCache, layout: Layout, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    books = {name: Codebook(tensors[name]) for name in set(state["codebooks"].values())}

    def span(prefix: str) -> Span:
        parts = {name: tensors.get(f"{prefix}.{name}") for name in ("exact", "codes", "scales", "zero_points", "ids")}
        if parts["exact"] is not None:
            return ExactSpan(parts["exact"])
        codes, scales, ids = (tensors[f"{prefix}.{name}"] for name in ("codes", "scales", "ids"))
        book = books[state["codebooks"][prefix]]
        return QuantizedSpan(codes, scales, parts["zero_points"], ids, book, cache.config.bits, cache.config.group_size)

    ends = (len(layout.sink), len(layout.sink) + len(layout.spans))
    for layer in cache.layers:
        count = ends[1] + len(layout.tail)
        pairs = [Pair(*(span(f"layer.{layer.layer}.{which}.{n}") for which in ("keys", "values"))) for n in range(count)]
        layer.state.sink, layer.state.spans, layer.state.tail = pairs[: ends[0]], pairs[ends[0] : ends[1]], pairs[ends[1] :]
        layer.state.spans_encoded = state["spans_encoded"][layer.layer]
        layer.state.encode_calls = state["encode_calls"][layer.layer]
