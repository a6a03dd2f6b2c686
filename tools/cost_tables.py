"""Tables of the cost model for docs/kernels.md: what it predicts for real layers, and how far it is from published numbers."""

from __future__ import annotations

import bootstrap_package  # noqa: F401
import launch_gate
from comfyui_qvg.qvg import PRESETS
from comfyui_qvg.qvg.bench.gpu.cost_model import Work, anchors, predicted_ms
from launch_cases import LAYOUTS, Layout

CARDS = ("RTX 3090", "RTX 4090", "RTX 5090", "H100", "MI300X")
# Preset and way to read.
WAYS = (("exact", "exact"), ("qvg", "exact"), ("balanced", "exact"), ("balanced", "fast"), ("balanced", "direct"))


def costs() -> str:
    """One layer's call in milliseconds, by card and layout."""
    frozen = launch_gate.read_frozen()
    heads = [f"`{preset}`, {read}" for preset, read in WAYS]
    lines = [f"| card | layer | bf16, no cache of ours | {' | '.join(heads)} |", "|---|---|" + "---|" * (len(WAYS) + 1)]
    for card in CARDS:
        for name, layout in LAYOUTS.items():
            plain = _predicted(card, "bf16", layout, _work(layout, "exact", 0))
            cells = [_cell(plain)]
            for preset, read in WAYS:
                numbers = frozen.get(f"{name}/{preset}/{read}")
                launches = numbers["then"]["launches"] if numbers else 0
                cells.append(_cell(_predicted(card, read, layout, _work(layout, preset, launches))))
            lines.append(f"| {card} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def launches() -> str:
    """Kernels that one layer's call starts, and encoding keys and values of a span, by layout and preset; as they are frozen."""
    frozen = launch_gate.read_frozen()
    lines = [
        "| layer | preset | exact | fast | direct | first span | next span | exact, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for layout in LAYOUTS:
        for preset in PRESETS:
            reads = [frozen.get(f"{layout}/{preset}/{read}", {}).get("then") for read in launch_gate.READS]
            commit = frozen.get(f"{layout}/{preset}/commit", {})
            cells = [_launches(row) for row in (*reads, commit.get("first span"), commit.get("next span"))]
            moved = "" if reads[0] is None else f"{(reads[0]['read'] + reads[0]['written']) / 1e9:.2f}"
            lines.append(f"| {layout} | `{preset}` | {' | '.join(cells)} | {moved} |")
    return "\n".join(lines)


def _launches(row: dict[str, int] | None) -> str:
    return "" if row is None else str(row["launches"])


def anchor_table() -> str:
    """Every published number beside the model's."""
    lines = ["| what | published | model | miss | |", "|---|---|---|---|---|"]
    for one in anchors():
        miss = f"{one.miss:+.0%}".replace("-", "−")
        lines.append(
            f"| {one.what} | {_short(one.published)} | {_short(one.predicted)} | {miss} | "
            f"{'fitted' if one.fitted else 'held out'}; {one.source} |"
        )
    return "\n".join(lines)


def _predicted(card: str, way: str, layout: Layout, work: Work) -> float:
    """A world's layer attends twice."""
    times = 2 if layout.cameras else 1
    found = predicted_ms(card, way, work._replace(launches=work.launches // times))
    assert found is not None
    return times * found


def _work(layout: Layout, preset: str, launches: int) -> Work:
    spec, config = layout.spec(), PRESETS[preset]
    per_frame, codec = spec.tokens_per_frame, config.codec
    stored = spec.predict(config, layout.frames).total
    bits = 8 * stored / (2 * spec.heads * spec.head_dim * per_frame * layout.frames)
    queries = spec.chunk_frames * per_frame
    return Work(spec.heads, queries, layout.frames * per_frame + queries + layout.text, bits, codec, launches)


def _cell(ms: float) -> str:
    return f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def _short(number: float) -> str:
    return f"{number:.1f}" if number < 10 else f"{number:.0f}"
