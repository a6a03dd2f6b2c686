"""How a cache is kept: one frozen record, checked once, and the presets that users pick from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from ..kernels import BACKENDS
from ..kernels.kmeans import MAX_CLUSTERS
from ..kernels.lloyd_max import MAX_BITS
from ..kernels.packing import BITS
from .errors import ConfigError, quoted

CODECS = ("none", "qvg", "klt", "rtn", "kivi", "quarot")
# Codecs to compare with, and the bits that each has: what others ship, and the cores of the 33-method study (arXiv 2603.27469).
# Caches of theirs are read like any other and not saved.
COMPARED = {
    "fp8": (8,),
    "nvfp4": (4,),
    "bf16-int8": (8,),
    "pca": (2,),
    "lightx2v-kivi": (2, 4, 8),
    "study-rtn": (2, 4),
    "study-kivi": (2, 4),
    "study-quarot": (2, 4),
    "study-prq": (2, 4),
    "study-qaq": (2, 4),
    "study-tptq": (2,),
}
READS = ("auto", "exact", "fast", "direct")
OFFLOADS = ("gpu", "cpu")
KEY_STORAGE = ("before_rope", "after_rope")
TRANSFORMS = ("klt", "hadamard")
MERGE_KEYS = ("mean", "last", "first")
# Below it tokens that look nothing alike would be merged.
LEAST_MERGE = 0.5
# A smaller share of the tiles loses pictures (docs/memory.md).
LEAST_SPARSE = 0.08
GROUP_SIZES = (16, 32, 64, 128)
MAX_STAGES = 4
# `clusters="auto"` spends at most this many bits per value on centroids.
AUTO_CENTROID_BITS = 0.15
# `span_frames="auto"` waits for so many tokens: enough to learn from, and little is kept exact meanwhile.
AUTO_SPAN_TOKENS = 1024


@dataclass(frozen=True)
class QVGConfig:
    """Settings of one cache. Frames are latent frames. Wrong values raise ConfigError here, misfits to a model in `CacheSpec`.

    codec               "none" keeps history in 16 bits; "qvg" is Quant VideoGen (arXiv 2602.02958); "klt" is ours; "rtn", "kivi"
                        and "quarot" are the field's baselines; those of COMPARED are what others have (`codec/compared.py`)
    bits                bits per residual code: 2, 3, 4 or 8; "klt": multiples of 1/16 from 1/4 to 6, on average
    bits_v              the same for values; None: as `bits`
    num_stages          k-means passes before the residual is quantized, 1 to 4
    clusters            centroids per stage, 1 to 256, or "auto": as many as cost at most 0.15 bit per value ("klt": one for 16
                        tokens of a codebook's first span)
    clusters_added      "klt": centroids that each later span of a codebook adds, up to 256 in all, or "auto"
    transform           "klt": "klt" learns a basis, "hadamard" takes a fixed one
    group_size          channels that share one scale: 16, 32, 64 or 128; tokens, of "study-" codecs, "lightx2v-kivi" and "pca";
                        not for "klt", which has one gain per token
    symmetric           True: as published (2**bits - 1 levels around zero). False: all levels from min to max ("kivi": always)
    keys                "before_rope" or "after_rope": how keys are kept; before, they are smoother and rotated on the way into
                        attention
    iterations          k-means iterations; later codebooks start from the one before
    sink_frames         first frames, kept exact and never evicted
    recent_frames       newest frames kept exact
    span_frames         frames encoded together, rounded up to whole chunks, cut to what the window leaves room for; "auto": 1,024
                        tokens or one chunk, at most half of the window's room, for codecs whose spans share codebooks
    spans_per_codebook  consecutive spans that share one codebook; the first of them trains it
    window_frames       frames attention may see, the current ones included; None: all of them
    seed                of k-means' first centroids; the global generators are never touched
    backend             "auto", "torch" or "triton"; forced means forced
    read                how attention reads the cache: "exact" decodes into a workspace, "fast" does so in 8 bits, "direct" reads
                        the codes; "auto" takes exact, or direct for few queries on a GPU
    workspace_mb        upper bound of the memory that attention takes beside the cache, in MiB; 0: none, read directly
    offload             where packed spans are kept: "gpu", the device that attends, or "cpu", from which a layer's come as it
                        attends; codec "none" packs nothing
    merge               TempCache (arXiv 2602.01801): a token that leaves the recent frames is counted instead of stored where
                        its key and the one kept at its place have at least this cosine in every head of every layer; 0: off
    merge_key           what stands for merged tokens until it is encoded: their "mean" key, the "last" (as published) or the
                        "first"; values are averaged
    sparse              AnnSA (the same paper): the share of encoded tokens, in tiles of 16, that a block of queries reads; of the
                        others it sees the means. 0.08 to 1; 0: off, all are read
    """

    codec: str = "qvg"
    bits: int | float = 2
    bits_v: int | float | None = None
    num_stages: int = 1
    clusters: int | Literal["auto"] = 256
    clusters_added: int | Literal["auto"] = "auto"
    transform: str = "klt"
    group_size: int = 64
    symmetric: bool = True
    keys: str = "before_rope"
    iterations: int = 6
    sink_frames: int = 1
    recent_frames: int = 3
    span_frames: int | Literal["auto"] = 24
    spans_per_codebook: int = 1
    window_frames: int | None = None
    seed: int = 0
    backend: str = "auto"
    read: str = "auto"
    workspace_mb: int = 512
    offload: str = "gpu"
    merge: float = 0.0
    merge_key: str = "mean"
    sparse: float = 0.0

    def __post_init__(self) -> None:
        _require_choice("codec", self.codec, (*CODECS, *COMPARED))
        _require_choice("backend", self.backend, BACKENDS)
        _require_choice("read", self.read, READS)
        _require_choice("offload", self.offload, OFFLOADS)
        for name, bits in (("bits", self.bits), ("bits_v", self.bits if self.bits_v is None else self.bits_v)):
            require_bits(name, bits, self.codec)
        _require_choice("keys", self.keys, KEY_STORAGE)
        _require_choice("transform", self.transform, TRANSFORMS)
        _require_choice("group_size", self.group_size, GROUP_SIZES)
        _require_between("num_stages", self.num_stages, 1, MAX_STAGES)
        _require_choice("symmetric", self.symmetric, (True, False))
        if self.clusters != "auto":
            _require_between("clusters", self.clusters, 1, MAX_CLUSTERS, "cluster ids are stored in one byte")
        if self.span_frames != "auto":
            _require_between("span_frames", self.span_frames, 1, 1 << 20)
        if self.clusters_added != "auto":
            _require_between("clusters_added", self.clusters_added, 0, MAX_CLUSTERS, "cluster ids are stored in one byte")
        for name, low in (
            ("iterations", 1),
            ("sink_frames", 0),
            ("recent_frames", 0),
            ("spans_per_codebook", 1),
        ):
            _require_between(name, getattr(self, name), low, 1 << 20)
        _require_between("workspace_mb", self.workspace_mb, 0, 1 << 20)
        if self.workspace_mb == 0 and self.read in ("exact", "fast"):
            raise ConfigError(
                f"workspace_mb is 0, but read {self.read!r} decodes into a workspace; use read 'direct', or at least 1"
            )
        _require_between("seed", self.seed, 0, (1 << 63) - 1)
        if self.window_frames is not None:
            _require_between("window_frames", self.window_frames, 1, 1 << 30)
        _require_choice("merge_key", self.merge_key, MERGE_KEYS)
        _require_merge(self)
        _require_sparse(self)

    @property
    def whole_bits(self) -> int:
        """`bits` of the codecs that give every channel the same."""
        return int(self.bits)

    @property
    def merges(self) -> bool:
        """Whether tokens that are there already are counted instead of stored."""
        return self.merge > 0

    @property
    def skips(self) -> bool:
        """Whether attention reads only tiles that matter."""
        return self.sparse > 0

    @property
    def offloads(self) -> bool:
        """Whether spans are kept in CPU memory."""
        return self.offload == "cpu" and self.codec != "none"

    def with_changes(self, **changes: Any) -> QVGConfig:
        """A copy with some fields changed; an unknown name raises ConfigError."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in changes:
            _require_choice("setting", name, tuple(known))
        return QVGConfig(**{**known, **changes})

    @staticmethod
    def preset(name: str) -> QVGConfig:
        """One of PRESETS by name."""
        _require_choice("preset", name, tuple(PRESETS))
        return PRESETS[name]


def require_bits(name: str, bits: float, codec: str) -> None:
    """Raise ConfigError where `codec` cannot keep a value in so many bits; `name` is what the user calls the setting."""
    if codec in COMPARED:
        if type(bits) is not int or bits not in COMPARED[codec]:
            raise ConfigError(f"{name} is {quoted(bits)}, but codec {codec!r} has {_or(COMPARED[codec])} bits; choose of these")
    elif codec != "klt":
        _require_choice(name, bits, BITS)
    elif isinstance(bits, bool) or not isinstance(bits, int | float) or not 0.25 <= bits <= MAX_BITS or bits * 16 % 1:
        raise ConfigError(
            f"{name} is {quoted(bits)}, but codec 'klt' takes multiples of 1/16 from 0.25 to {MAX_BITS}; start with 2"
        )


def _require_merge(config: QVGConfig) -> None:
    """Raise ConfigError for a threshold that is none, and for settings that rows of merged tokens do not go with."""
    merge = config.merge
    if isinstance(merge, bool) or not isinstance(merge, int | float) or not (merge == 0 or LEAST_MERGE <= merge <= 1):
        raise ConfigError(f"merge is {quoted(merge)}, but must be 0 (off) or a cosine from {LEAST_MERGE} to 1; start with 0.99")
    if merge == 0:
        return
    reasons = (
        (
            config.window_frames is not None,
            f"window_frames {config.window_frames}: a row stands for tokens of several frames, "
            "which would leave a window at different times; leave out window_frames",
        ),
        (
            config.keys == "after_rope",
            "keys 'after_rope': rotated keys of one place look alike at one time only; use 'before_rope'",
        ),
    )
    for wrong, reason in reasons:
        if wrong:
            raise ConfigError(f"merge {merge:g} does not go with {reason}, or merge 0")


def _require_sparse(config: QVGConfig) -> None:
    """Raise ConfigError for a share that is none, and for settings that tiles do not go with."""
    share = config.sparse
    if isinstance(share, bool) or not isinstance(share, int | float) or not (share == 0 or LEAST_SPARSE <= share <= 1):
        raise ConfigError(
            f"sparse is {quoted(share)}, but must be 0 (off) or a share of the tokens from {LEAST_SPARSE} to 1; start with 0.15"
        )
    if share == 0:
        return
    reasons = (
        (
            config.merges,
            f"merge {config.merge:g}: what could be skipped is what merging has counted, and half of the rows that are left "
            "would have to be read; use merge 0",
        ),
        (
            config.offload == "cpu",
            "offload 'cpu': whole spans would come to the card for every read, however little of them is read; use 'gpu'",
        ),
        (
            config.read in ("fast", "direct"),
            f"read {config.read!r}: tiles are read in full precision through the workspace; use 'auto' or 'exact'",
        ),
    )
    for wrong, reason in reasons:
        if wrong:
            raise ConfigError(f"sparse {share:g} does not go with {reason}, or sparse 0")


def _or(values: tuple[int, ...]) -> str:
    return " or ".join(filter(None, (", ".join(map(str, values[:-1])), str(values[-1]))))


def _require_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        raise ConfigError(f"{name} is {quoted(value)}, but must be one of {', '.join(map(repr, allowed))}; choose one of these")


def _require_between(name: str, value: object, low: int, high: int, why: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        reason = f" ({why})" if why else ""
        raise ConfigError(
            f"{name} is {quoted(value)}, but must be a whole number from {low} to {high}{reason}; choose one in that range"
        )


def _klt(bits: float, bits_v: float) -> QVGConfig:
    return QVGConfig("klt", bits, bits_v, clusters="auto", iterations=4, span_frames="auto", spans_per_codebook=8)


# Names are for ever: workflows store them. Append, never rename. Where the last three stand: `qvg bench codecs`. Keys before RoPE
# are smoother than values, so they get the smaller share of the bits.
PRESETS: dict[str, QVGConfig] = {
    "exact": QVGConfig(codec="none"),
    "qvg": QVGConfig(clusters="auto"),
    "qvg-pro": QVGConfig(clusters="auto", num_stages=4, group_size=16),
    "fewest-bytes": _klt(1, 1.5),
    "balanced": _klt(1.5, 2),
    "near-exact": _klt(3, 3.5),
}
