"""Every way to read a cache against one of 16 bits read by the fastest attention that torch has, in one run.

    python benchmarks/attention.py --save                the layers of real models, on a GPU; rows go to results/attention.jsonl
    python benchmarks/attention.py --tiny                small shapes, on any machine; a rehearsal, not a result
    python benchmarks/attention.py --only LongCat        models whose name holds the text
    python benchmarks/attention.py --presets balanced    these presets

One layer, one call. Caches are filled by `KVCache` and a preset, block by block, out of a made-up video without cuts. Ratios are
against the faster of cuDNN's and flash attention in the same run; the cost model's prediction stands beside every row. "official"
is the published pack's read path restated in torch: everything decoded twice, copied to [B, S, H, D] and back, all keys rotated
in float64, concatenated, then attention.

A way whose result is further from attention over the decoded cache than it may be gets no row, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import bootstrap_package  # noqa: E402, F401 (makes the repository importable as comfyui_qvg)
from comfyui_qvg.benchmarks.rows import conditions, report  # noqa: E402
from comfyui_qvg.kernels.attention.library import choose_attention  # noqa: E402
from comfyui_qvg.qvg import PRESETS  # noqa: E402
from comfyui_qvg.qvg.bench.gpu.attention_rows import SELF_FORCING, Way, attention_rows  # noqa: E402
from comfyui_qvg.qvg.bench.gpu.layer_run import LayerRun, Shape  # noqa: E402
from comfyui_qvg.qvg.codec import ExactCodec  # noqa: E402
from comfyui_qvg.qvg.codec.span import ExactSpan  # noqa: E402
from comfyui_qvg.qvg.positions.rope import Rotation, rotate  # noqa: E402


class Case(NamedTuple):
    """A layer, and how many latent frames are in its memory."""

    shape: Shape
    frames: tuple[int, ...]


CASES = (
    Case(SELF_FORCING, (24, 90, 180)),
    Case(Shape("Self-Forcing 1.3B, one frame", 12, 30, 52, chunk_frames=1), (180,)),
    Case(Shape("LongCat", 32, 30, 52, chunk_frames=5), (20,)),
    Case(Shape("Krea 14B", 40, 30, 52), (90,)),
    Case(Shape("HY-WorldPlay 5B", 24, 22, 40, chunk_frames=4), (48,)),
    Case(Shape("HY-WorldPlay 8B", 16, 30, 52, chunk_frames=4), (20,)),
)
TINY = (Case(Shape("tiny", 2, 6, 8), (30,)), Case(Shape("tiny, few queries", 2, 6, 8, chunk_frames=1), (27,)))


def official(run: LayerRun, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Way]:
    """The published pack's way, restated, for its own codec."""
    if run.cache.config.codec != "qvg":
        return {}
    codec, exact = run.cache.layers[0].codecs.keys, ExactCodec(run.cache.spec.dtype)

    def call() -> Tensor:
        sides = []
        for which in (0, 1):
            parts = []
            for span in (pair[which] for pair in run.cache.layers[0].state.history):
                shape = (1, run.shape.heads, span.num_tokens, run.shape.channels)
                method = exact if isinstance(span, ExactSpan) else codec
                for _ in range(2):  # each tensor is decoded twice, and one result is thrown away
                    out = torch.empty(shape, dtype=q.dtype, device=q.device)
                    method.decode(span, slice(None), slice(None), out)
                parts.append(out.permute(0, 2, 1, 3).contiguous())
            sides.append(torch.cat(parts, 1).transpose(1, 2))
        assert run.cache.rope is not None
        turn = run.cache.rope.rotation(torch.tensor(run.cache.origins, device=q.device))
        keys = rotate(sides[0].double(), Rotation(turn.cos.double(), turn.sin.double()))
        keys = torch.cat([keys, run.rotated(k).double()], 2).to(q.dtype)
        return choose_attention(q, False).call(run.rotated(q), keys, torch.cat([sides[1], v], 2))[0]

    return {"official": Way(call, lambda: "restated in torch")}


def measure(case: Case, preset: str, device: torch.device, rehearsal: bool, save: bool) -> list[str]:
    """All sizes and ways of one layer; a row each. -> what is wrong: ways whose result is not attention's."""
    common = {"layer": case.shape.__dict__, "rehearsal": rehearsal, **conditions(device)}
    wrong = []
    rows = attention_rows(case.shape, preset, case.frames, device, others=official, repeats=1 if rehearsal else 7)
    for row in rows:
        if "wrong" in row:
            wrong.append(f"{case.shape.name}, {preset}, {row['frames']} frames, {row['wrong']}; no row")
        else:
            report("attention", {**row, **common}, save)
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, or 1 where a way was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes on any machine")
    parser.add_argument("--save", action="store_true", help="append the rows to results/attention.jsonl")
    parser.add_argument("--only", default="", help="models whose name holds this text")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["qvg", "balanced"], help="what keeps the cache")
    options: Any = parser.parse_args(arguments)
    if options.save and options.tiny:
        parser.error("--save keeps measurements of a GPU at full size; leave it out here")
    if not torch.cuda.is_available() and not options.tiny:
        parser.error("there is no GPU here; --tiny is a dry run without one")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wrong = []
    with torch.no_grad():
        for case in (case for case in (TINY if options.tiny else CASES) if options.only in case.shape.name):
            for preset in options.presets:
                wrong += measure(case, preset, device, options.tiny, options.save)
    for fault in wrong:
        print(f"wrong: {fault}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
