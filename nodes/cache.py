"""The node between model and sampler that says how the KV cache is kept."""

from __future__ import annotations

from typing import Any

from ..qvg import PRESETS, QVGConfig
from ..qvg.attention.prompt import RULES
from ..qvg.config import MERGE_KEYS, OFFLOADS, TRANSFORMS, require_bits
from ..qvg.errors import ConfigError
from ..qvg.study.registry import study_method
from ..qvg.study.shipped import SHIPPED
from ..qvg.study.verdict import MENU, UNKNOWN, VERDICTS, by_verdict, with_bits
from .api import CATEGORY, io
from .widgets import Node, number, unknown_mode

# What people see first is what most of them want.
CHOICES = ("preset", "custom", "exact", "klt", "kivi", "quarot", "rtn", "study")
_DEFAULT = QVGConfig()


class QVGKVCache(Node):
    """MODEL to MODEL. Bypassed, the model keeps its exact cache."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="QVGKVCache",
            display_name="QVG KV Cache",
            category=CATEGORY,
            description="Keeps the memory (KV cache) of an autoregressive video model in about 2 bits per value. Put it between "
            "the model's loader and the sampler. Bypass it for the exact memory. Models without a KV cache are refused.",
            search_aliases=["qvg", "quantize kv cache", "long video memory"],
            inputs=[
                io.Model.Input("model", lazy=True, tooltip="An autoregressive video model, such as the demo world."),
                io.DynamicCombo.Input(
                    "cache",
                    options=[
                        io.DynamicCombo.Option("preset", [_preset_input()]),
                        io.DynamicCombo.Option("custom", _custom_inputs()),
                        io.DynamicCombo.Option("exact", []),
                        io.DynamicCombo.Option("klt", _klt_inputs()),
                        *(io.DynamicCombo.Option(codec, _plain_inputs()) for codec in ("kivi", "quarot", "rtn")),
                        io.DynamicCombo.Option("study", [_study_input()]),
                    ],
                    tooltip="preset: settings that work. custom: Quant VideoGen by hand. exact: 16 bits per value, as "
                    "without this node. klt: our own method by hand. kivi, quarot, rtn: to compare with. "
                    "study: 30 methods of a study and what others ship.",
                ),
                *advanced_inputs(),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The same model; it remembers as chosen here.")],
        )

    @classmethod
    def validate_inputs(cls, cache: dict[str, Any] | None = None) -> bool | str:
        # A workflow of a newer version, and what a program sends. Ranges stay with ComfyUI, which looks at `cache.*` by itself.
        mode = (cache or {}).get("cache")
        # A list that is no link ComfyUI refuses by itself.
        return isinstance(mode, list) or unknown_mode("cache", CHOICES, mode) or True

    @classmethod
    def execute(
        cls,
        model: Any,
        cache: dict[str, Any],
        sink_frames: int = _DEFAULT.sink_frames,
        recent_frames: int = _DEFAULT.recent_frames,
        window_frames: int = 0,
        span_frames: int = 0,
        seed: int = _DEFAULT.seed,
        backend: str = _DEFAULT.backend,
        read: str = "auto",
        offload: str = _DEFAULT.offload,
        merge_padding: bool = False,
        merge: float = _DEFAULT.merge,
        merge_key: str = _DEFAULT.merge_key,
        sparse: float = _DEFAULT.sparse,
        prompt_rows: str = RULES[0],
    ) -> io.NodeOutput:
        from .comfy.attach import with_cache

        config = make_config(
            cache,
            sink_frames=sink_frames,
            recent_frames=recent_frames,
            window_frames=window_frames or None,
            **({"span_frames": span_frames} if span_frames else {}),
            seed=seed,
            backend=backend,
            read=read,
            offload=offload,
            merge=merge,
            merge_key=merge_key,
            sparse=sparse,
        )
        return io.NodeOutput(with_cache(model, config, merge_padding, study_of(cache), prompt_rows))


def make_config(cache: dict[str, Any], **advanced: Any) -> QVGConfig:
    """What the widgets say. Raises ConfigError where they break a rule."""
    if cache["cache"] == "exact":
        base = PRESETS["exact"]
        if advanced["window_frames"] is None and not advanced.get("merge") and not advanced.get("sparse"):
            # Nothing is encoded, merged, skipped or forgotten, so other widgets mean nothing; but other pieces of frames would
            # round differently, and exact is to be what a bypassed node gives, bit for bit.
            return base
    elif cache["cache"] == "preset":
        base = QVGConfig.preset(cache["preset"])
    elif cache["cache"] == "klt":
        # By the widget's name; the config's is another.
        require_bits("bits_k", cache["bits_k"], "klt")
        base = QVGConfig.preset("balanced").with_changes(
            bits=cache["bits_k"],
            bits_v=cache["bits_v"],
            clusters=cache["clusters"] or "auto",
            transform=cache["transform"],
            spans_per_codebook=cache["spans_per_codebook"],
        )
    elif cache["cache"] == "custom":
        base = QVGConfig(
            bits=int(cache["bits"]),
            num_stages=cache["num_stages"],
            clusters=cache["clusters"] or "auto",
            group_size=int(cache["group_size"]),
        )
    elif cache["cache"] == "study":
        return _study_config(cache["method"], advanced)
    else:
        # With zero points, the way these methods are at their best.
        base = QVGConfig(cache["cache"], int(cache["bits"]), group_size=int(cache["group_size"]), symmetric=False)
    return base.with_changes(**advanced)


def study_of(cache: dict[str, Any]) -> str:
    """The study's method whose frames are not all kept alike, for which a config is not enough; otherwise empty."""
    name = cache.get("method", "") if cache["cache"] == "study" else ""
    return name if name and name not in SHIPPED and not study_method(name).plain else ""


def _study_config(name: str, advanced: dict[str, Any]) -> QVGConfig:
    """Of a method by its name. One with tiers, a retention or a foreground decides itself what is exact and what is forgotten."""
    if name in SHIPPED:
        return SHIPPED[name].with_changes(**advanced)
    method = study_method(name)
    if method.plain:
        return method.coding.config().with_changes(**advanced)
    for widget, unchanged in (("window_frames", None), ("merge", 0), ("sparse", 0)):
        value = advanced.get(widget, unchanged)
        if value != unchanged:
            raise ConfigError(
                f"{widget} is {value}, but {name} decides itself what is forgotten, merged and read; use 0, or another method"
            )
    return method.coding.config().with_changes(seed=advanced["seed"])


def _study_input() -> Any:
    return io.Combo.Input(
        "method",
        options=list(MENU),
        default="FLOWCACHE_SOFT_PRUNE_INT4",
        tooltip="To compare with; names of arXiv 2603.27469, corrected, and what others ship. Bits per value (exact: 16), by how "
        f"near to exact the demo world came: {_verdicts()}. Methods that reuse steps are in the library only.",
    )


def _verdicts() -> str:
    """Of all methods in the menu, out of rows."""
    least = dict(VERDICTS)
    said = {words: f"{words} ({least[words]:.0f} dB)" if least.get(words) else words for words in by_verdict()}
    known = [f"{said[words]}: {with_bits(names)}" for words, names in by_verdict().items() if words != UNKNOWN]
    return "; ".join(known) + (f"; the others were {UNKNOWN}" if UNKNOWN in said else "")


def _preset_input() -> Any:
    return io.Combo.Input(
        "preset",
        options=[name for name in PRESETS if name != "exact"],
        default="balanced",
        tooltip="balanced: nearer to exact than qvg in fewer bytes. fewest-bytes: smaller still. near-exact: when pictures "
        "should hardly differ. qvg, qvg-pro: Quant VideoGen as published, 2 bits in one or four stages.",
    )


def _custom_inputs() -> list[Any]:
    bits, group_size = _plain_inputs()
    stages = io.Int.Input(
        "num_stages", default=1, min=1, max=4, tooltip="Rounds of clustering before what is left is rounded to codes."
    )
    return [bits, stages, _clusters_input(), group_size]


def _plain_inputs() -> list[Any]:
    return [
        io.Combo.Input("bits", options=["2", "3", "4", "8"], default="2", tooltip="Bits per value, before scales and centroids."),
        io.Combo.Input(
            "group_size",
            options=["16", "32", "64", "128"],
            default="64",
            tooltip="Channels (for keys with kivi: tokens) that share one scale. Smaller is nearer to exact and takes more "
            "memory. Must divide the head size.",
        ),
    ]


def _clusters_input() -> Any:
    return io.Int.Input(
        "clusters",
        default=0,
        min=0,
        max=256,
        tooltip="Centroids per stage; with klt those that a codebook begins with. 0: as many as the length of a span pays for.",
    )


def _klt_inputs() -> list[Any]:
    def bits(name: str, default: float, tooltip: str) -> Any:
        return io.Float.Input(name, default=default, tooltip=tooltip, **number(0.25, 6.0, 0.25, 1 / 16))

    return [
        bits("bits_k", 1.5, "Bits per value of keys, on average over channels."),
        bits("bits_v", 2.0, "Bits per value of values, on average over channels."),
        _clusters_input(),
        io.Combo.Input(
            "transform",
            options=list(TRANSFORMS),
            default="klt",
            tooltip="klt: a basis learned from the frames, and anew where scenes change; the nearest to exact. hadamard: a fixed "
            "one that takes hardly any memory.",
        ),
        io.Int.Input(
            "spans_per_codebook",
            default=PRESETS["balanced"].spans_per_codebook,
            min=1,
            max=1024,
            tooltip="Spans that share centroids and basis; each adds some centroids of its own. Then a new codebook begins.",
        ),
    ]


def advanced_inputs() -> list[Any]:
    """What a preset leaves open."""
    # Optional, so that a program may leave them out, as one does that was written before they were there.
    advanced = {"advanced": True, "optional": True}
    frames = {"max": 100_000, **advanced}
    return [
        io.Int.Input(
            "sink_frames",
            default=_DEFAULT.sink_frames,
            min=0,
            tooltip="First latent frames, kept exactly and never forgotten.",
            **frames,
        ),
        io.Int.Input(
            "recent_frames", default=_DEFAULT.recent_frames, min=0, tooltip="Newest latent frames, kept exactly.", **frames
        ),
        io.Int.Input(
            "window_frames",
            default=0,
            min=0,
            tooltip="Latent frames that the model may look back on, the current ones included; older ones are forgotten. 0: all.",
            **frames,
        ),
        io.Int.Input(
            "span_frames",
            default=0,
            min=0,
            tooltip="Latent frames encoded together; until so many wait, they are kept exactly. 0: what the method asks for.",
            **frames,
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFF,
            control_after_generate=False,
            tooltip="Of the clustering's first centroids only; the picture's noise has its own seed.",
            **advanced,
        ),
        io.Combo.Input(
            "backend",
            options=["auto", "torch", "triton"],
            default="auto",
            tooltip="What computes. auto: Triton on a GPU where it works, else torch; a forced triton runs or says why not.",
            **advanced,
        ),
        io.Combo.Input(
            "read",
            options=["auto", "exact", "fast", "direct"],
            default="auto",
            tooltip="How attention reads the memory. exact: through a workspace of fixed size. fast: the same in 8 bits, a "
            "little less exact. direct: the codes themselves, no workspace. auto: exact, or direct for few queries on a GPU.",
            **advanced,
        ),
        io.Combo.Input(
            "offload",
            options=list(OFFLOADS),
            default=_DEFAULT.offload,
            tooltip="Where encoded frames are kept. gpu: on the card. cpu: in the computer's memory; a layer's come to the card "
            "while the layer before computes. For cards with little memory. Exact frames stay on the card.",
            **advanced,
        ),
        io.Boolean.Input(
            "merge_padding",
            default=False,
            tooltip="Causal Wan: the empty tokens that fill the prompt up to 512 are all alike; read them once. The result is "
            "the same up to rounding. No effect with exact.",
            **advanced,
        ),
        io.Float.Input(
            "merge",
            default=_DEFAULT.merge,
            tooltip="Experimental. What looks like the token remembered at its place is counted, not stored: 0.99 is how alike "
            "(cosine, 0.5 to 1). Memory stops growing where nothing new is seen. 0: off. Not with a window or several videos.",
            **number(0.0, 1.0, 0.01),
            **advanced,
        ),
        io.Combo.Input(
            "merge_key",
            options=list(MERGE_KEYS),
            default=_DEFAULT.merge_key,
            tooltip="What merged tokens are remembered as: their mean, the last one (as FAST-AR), or the first, which keeps a "
            "place as it was. No effect with merge 0.",
            **advanced,
        ),
        io.Float.Input(
            "sparse",
            default=_DEFAULT.sparse,
            tooltip="Experimental. The share of old frames' tokens that attention reads, those that matter most (0.08 to 1; "
            "start with 0.15); the others are seen as averages. Faster with long memories. 0: off. Not with merge or offload.",
            **number(0.0, 1.0, 0.01),
            **advanced,
        ),
        io.Combo.Input(
            "prompt_rows",
            options=list(RULES),
            default=RULES[0],
            tooltip="Experimental, with merge_padding only: which words of the prompt are read. all; mass: those that matter to "
            "any part of the picture, the others as one; buckets: as FAST-AR publishes it. To compare: neither has made a video "
            "faster.",
            **advanced,
        ),
    ]
