"""What a saved cache says of itself, beside its tensors: read into a record, and checked against its own rules before anything
is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from ...kernels.bitplanes import check_planes, packed_width
from ...kernels.lloyd_max import MAX_BITS
from ..cache import KVCache
from ..cache.policy import CachePolicy, Layout
from ..cache.spec import CacheSpec
from ..config import CODECS, COMPARED, QVGConfig
from ..errors import quoted, shown
from ..json_text import read_json
from ..positions.frames import Origin
from ..positions.rope import GridRope
from .checked import (
    MOST,
    Getter,
    MisfitError,
    as_equal,
    as_finite,
    as_it_is,
    as_list,
    as_object,
    as_pair,
    as_position,
    as_text,
    as_whole,
    each_layer,
)

Planes = tuple[tuple[int, ...], ...]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
_MOST_CHANNELS = 1 << 16
_SECTIONS = ("sink", "spans", "tail")
# From this version on there are checksums.
CHECKED_VERSION = 3
# Of caches that merge tokens: what came before knows no rows.
ROWS_VERSION = 4
# Of caches of which a share is read.
TILES_VERSION = 5
# What files know that were written before, and caches that do not merge or skip: these settings have the values that change
# nothing.
_MERGING, _SKIPPING = ("merge", "merge_key"), ("sparse",)


@dataclass(frozen=True)
class SavedState:
    """A saved cache without its tensors. Of each stretch that has a codebook, by the beginning of its tensors' names,
    `codebooks` names the parts; `planes` and `directions` are those of each basis. `rows`: of a cache that merges tokens, how
    many rows there are."""

    spec: CacheSpec
    config: QVGConfig
    rope: GridRope | None
    layout: Layout
    origins: tuple[Origin, ...]
    frames_committed: int
    spans_due: int
    codebooks: Mapping[str, tuple[str, ...]]
    planes: Mapping[str, Planes]
    directions: Mapping[str, int]
    group_starts: tuple[tuple[int, ...], ...]
    spare_rows: tuple[tuple[int, ...], ...]
    rows: int | None = None

    def stretches(self) -> list[tuple[str, int]]:
        """Every stretch of a layer, oldest first: its section, and its tokens (or rows)."""
        tokens, layout = self.spec.tokens_per_frame, self.layout
        sink, tail = ([(name, frames * tokens) for frames in getattr(layout, name)] for name in ("sink", "tail"))
        if self.rows is None:
            return [*sink, *(("spans", frames * tokens) for frames in layout.spans), *tail]
        span = self.spec.span_tokens(self.config)
        whole, waiting = divmod(self.rows, span)
        return [*sink, *[("spans", span)] * whole, *([("waiting", waiting)] if waiting else []), *tail]


def state_of(cache: KVCache) -> dict[str, Any]:
    """What the file says of a cache, but for its codebooks."""
    layout = {name: x for name, x in _record(cache.layout).items() if name != "merged" or cache.merged_rows is not None}
    return fixed_state(cache) | {"layout": layout, "origins": cache.origins}


def version_of(config: QVGConfig) -> int:
    """Of the state of a cache with these settings."""
    return TILES_VERSION if config.skips else ROWS_VERSION if config.merges else CHECKED_VERSION


def fixed_state(cache: KVCache) -> dict[str, Any]:
    """What does not get longer while the cache grows: all but its layout and its frames' positions."""
    merges = cache.merged_rows is not None
    # As files were before there was such a thing.
    unknown = (() if merges else _MERGING) + (() if cache.config.skips else _SKIPPING)
    return ({"rows": cache.merged_rows} if merges else {}) | {
        "spec": {**_record(cache.spec), "dtype": str(cache.spec.dtype).removeprefix("torch.")},
        "config": {name: x for name, x in _record(cache.config).items() if name not in unknown},
        "rope": None if cache.rope is None else _record(cache.rope),
        "frames_committed": cache.frames_committed,
        "spans_due": cache.spans_due,
        "spans_encoded": [layer.state.spans_encoded for layer in cache.layers],
        "encode_calls": [layer.state.encode_calls for layer in cache.layers],
        "group_starts": [layer.state.group_starts for layer in cache.layers],
        "spare_rows": [layer.state.spare_rows for layer in cache.layers],
    }


def read_state(text: str, version: int) -> SavedState:
    """The record of a file's state. MisfitError; the work is bounded by the length of the text."""
    try:
        saved = read_json(text)
    except ValueError as error:
        raise MisfitError(f"its state is no JSON: {error}") from None
    try:
        return _record_of(saved, version)
    except MisfitError:
        raise
    except ValueError as error:  # settings that break a rule, planes that do not fall
        raise MisfitError(str(error)) from error


def _record_of(saved: Any, version: int) -> SavedState:
    if version == 1:
        saved = _of_version_1(as_object(saved, "the state"))
    get = Getter("the state", saved)
    spec, config = spec_of(get("spec")), config_of(get("config"))
    if config.merges != (version == ROWS_VERSION):
        raise MisfitError(f"it is of version {version}, but its merge is {config.merge:g}")
    if config.skips != (version == TILES_VERSION):
        raise MisfitError(f"it is of version {version}, but its sparse is {config.sparse:g}")
    layout = _layout(get("layout"), config.merges)
    policy = spec.check(config)
    due = as_whole(get("spans_due"), "spans_due")
    committed = as_whole(get("frames_committed"), "frames_committed")
    _check_history(policy, layout, committed, due)
    rows = _rows(spec, config, layout, due, get("rows")) if config.merges else None
    each_layer(get("spans_encoded"), "spans_encoded", spec.layers, lambda value, name: as_equal(value, due, name))
    each_layer(get("encode_calls"), "encode_calls", spec.layers, lambda value, name: as_equal(value, 2 * due, name))
    rope = _rope(get("rope"), spec)
    origins = as_list(get("origins"), "origins", lambda value, name: as_list(value, name, as_position, 3))
    if len(origins) != (layout.frames if rope is not None else 0) or (config.merges and rope is None):
        raise MisfitError(f"it has {len(origins)} positions for {layout.frames} frames{'' if rope else ' without a rope'}")
    planes, directions = _bases(spec, config, get("planes"), get("directions"))
    return SavedState(
        spec,
        config,
        rope,
        layout,
        tuple((time, row, column) for time, row, column in origins),
        committed,
        due,
        _codebooks(spec, config, layout, due if config.merges else len(layout.spans), get("codebooks")),
        planes,
        directions,
        each_layer(get("group_starts"), "group_starts", spec.layers, lambda pair, name: as_pair(pair, name, 0, max(0, due - 1))),
        each_layer(get("spare_rows"), "spare_rows", spec.layers, lambda pair, name: as_pair(pair, name, -MOST, MOST)),
        rows,
    )


def _of_version_1(saved: dict[str, Any]) -> dict[str, Any]:
    """The state of a file of version 1 as version 2 would have it."""
    get = Getter("the state", saved)
    spec, config = spec_of(get("spec")), config_of(get("config"))
    facts = as_object(saved.get("codebook_facts", {}), "codebook_facts")
    planes = {name: rows for name, rows in facts.items() if rows is not None}
    names = as_object(get("codebooks"), "codebooks")
    every = spec.head_dim if config.transform == "klt" else 0
    ended = each_layer(get("spans_encoded"), "spans_encoded", spec.layers, as_whole)
    group = config.spans_per_codebook
    return saved | {
        "codebooks": {prefix: [name] * (2 if config.codec == "klt" else 1) for prefix, name in names.items()},
        "planes": planes,
        "directions": dict.fromkeys(planes, every),
        # A codebook began with every so many spans.
        "group_starts": [[max(0, count - 1) // group * group] * 2 for count in ended],
        "spare_rows": [[0, 0]] * spec.layers,
        "layout": {**as_object(get("layout"), "layout"), "hidden": 0},
    }


def _check_history(policy: CachePolicy, layout: Layout, committed: int, due: int) -> None:
    """Whether a cache can have come to this layout with so many frames and spans."""
    chunk, held, window = policy.chunk_frames, layout.frames + layout.hidden, policy.window_frames
    sink, spans = sum(layout.sink), len(layout.spans)
    counts = f"{committed} frames and {due} spans were made, and it holds {held} and {spans}"
    if max((*layout.sink, *layout.tail), default=0) > chunk:
        raise MisfitError(f"a block of its layout has more than the {chunk} frames of chunk_frames")
    if layout.hidden >= (layout.spans[0] if layout.spans else 1):
        raise MisfitError(f"{layout.hidden} frames are hidden, but the oldest span has {sum(layout.spans[:1])}")
    full = next((at for at in range(len(layout.sink) + 1) if sum(layout.sink[:at]) >= policy.sink_frames), len(layout.sink))
    too_many = len(layout.sink) - full > (0 if policy.merges else 1)  # behind it one block may be pinned
    if too_many or (sink < policy.sink_frames and (layout.spans or layout.tail or layout.merged)):
        raise MisfitError(f"its sink has {sink} frames in {len(layout.sink)} blocks, for sink_frames {policy.sink_frames}")
    if committed < held or not spans <= due <= committed:
        raise MisfitError(counts)
    if policy.merges and (layout.spans or layout.hidden or committed != held):
        raise MisfitError(f"{counts}, but what leaves the recent frames becomes rows, and nothing leaves")
    if window is None and not policy.merges and (layout.hidden or (committed, due) != (held, spans)):
        raise MisfitError(f"{counts}, but without a window nothing leaves")
    if window is not None and layout.frames > window - chunk and (layout.spans or layout.tail):
        raise MisfitError(f"it holds {layout.frames} frames, but a window of {window} leaves room for {window - chunk}")


def spec_of(value: object) -> CacheSpec:
    """A model's shape. MisfitError."""
    get = Getter("spec", value)
    names = [field.name for field in fields(CacheSpec) if field.name != "dtype"]
    sizes = {name: as_whole(get(name), name, 1, _MOST_CHANNELS if name == "head_dim" else MOST) for name in names}
    dtype = get("dtype")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise MisfitError(f"dtype is {quoted(dtype)}, but must be one of {', '.join(_DTYPES)}")
    return CacheSpec(**sizes, dtype=_DTYPES[dtype])


def config_of(value: object) -> QVGConfig:
    """Settings that are not there are those that a version did not have yet. MisfitError, or ConfigError for those that break a
    rule."""
    saved = as_object(value, "config")
    known = {field.name for field in fields(QVGConfig)}
    for name in saved:
        if name not in known:
            raise MisfitError(f"it has a setting {shown(name)!r}, which this version does not know")
    config = QVGConfig(**saved)
    if config.codec in COMPARED:
        raise MisfitError(f"its codec is {config.codec!r}, but files hold only {', '.join(CODECS)}")
    return config


def _layout(value: object, merges: bool) -> Layout:
    get = Getter("layout", value)
    sink, spans, tail = (
        tuple(as_list(get(section), section, lambda value, name: as_whole(value, name, 1))) for section in _SECTIONS
    )
    return Layout(sink, spans, tail, as_whole(get("hidden"), "hidden"), as_whole(get("merged"), "merged") if merges else 0)


def _rope(value: object, spec: CacheSpec) -> GridRope | None:
    if value is None:
        return None
    get = Getter("rope", value)
    rows, cols = (as_whole(get(name), name, 1) for name in ("grid_rows", "grid_cols"))
    axes = as_list(get("axis_frequencies"), "axis_frequencies", lambda axis, name: tuple(as_list(axis, name, as_finite)), 3)
    rope = GridRope(rows, cols, (axes[0], axes[1], axes[2]))
    if (rope.tokens_per_frame, rope.head_dim) != (spec.tokens_per_frame, spec.head_dim):
        raise MisfitError(
            f"its rope turns {rope.tokens_per_frame} tokens of {rope.head_dim} channels, but a frame has "
            f"{spec.tokens_per_frame} of {spec.head_dim}"
        )
    return rope


def _rows(spec: CacheSpec, config: QVGConfig, layout: Layout, due: int, value: object) -> int:
    """How many rows there are, of a cache that merges tokens."""
    rows, span = as_whole(value, "rows"), spec.span_tokens(config)
    most = layout.merged * spec.tokens_per_frame
    if not (rows > 0) == (most > 0) or rows > most or rows // span != due:
        raise MisfitError(f"it has {rows} rows and {due} spans of {span}, but {most} tokens were merged")
    return rows


def _codebooks(spec: CacheSpec, config: QVGConfig, layout: Layout, spans: int, value: object) -> dict[str, tuple[str, ...]]:
    """Names of the parts of every encoded stretch's codebook: none too few, none too many."""
    saved, parts = as_object(value, "codebooks"), {"qvg": 1, "klt": 2}.get(config.codec, 0)
    wanted = 2 * spec.layers * spans if parts else 0
    if len(saved) != wanted:
        raise MisfitError(f"{len(saved)} stretches have codebooks, but {wanted} must")
    first = len(layout.sink)
    for layer in range(spec.layers if wanted else 0):
        for which in ("keys", "values"):
            for number in range(first, first + spans):
                if (prefix := f"layer.{layer}.{which}.{number}") not in saved:
                    raise MisfitError(f"{prefix} has no codebook")
    return {prefix: tuple(as_list(names, f"codebooks.{prefix}", as_text, parts)) for prefix, names in saved.items()}


def _bases(spec: CacheSpec, config: QVGConfig, planes: object, directions: object) -> tuple[dict[str, Planes], dict[str, int]]:
    rows = {
        name: tuple(
            tuple(as_list(row, f"planes.{name}", as_whole)) for row in as_list(each, f"planes.{name}", as_it_is, spec.batch)
        )
        for name, each in as_object(planes, "planes").items()
    }
    counts = {
        name: as_whole(count, f"directions.{name}", 0, spec.head_dim)
        for name, count in as_object(directions, "directions").items()
    }
    if rows.keys() != counts.keys():
        raise MisfitError(f"{len(rows)} bases have planes and {len(counts)} directions, and not the same")
    for name, each in rows.items():
        for row in each:
            check_planes(row, counts[name] or spec.head_dim, MAX_BITS)
        if len({packed_width(row) for row in each}) != 1:
            raise MisfitError(f"planes of {shown(name)} are of several widths in one batch")
    if rows and config.codec != "klt":
        raise MisfitError(f"it has bases, but codec {config.codec!r} has none")
    return rows, counts


def _record(record: Any) -> dict[str, Any]:
    """A record's fields by name."""
    return {field.name: getattr(record, field.name) for field in fields(record)}
