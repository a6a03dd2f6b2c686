"""`qvg convert`: what it says while it works, and when it is done."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from .errors import one_line
from .models.convert import Conversion, check_out, plan_conversion, write_conversion


def convert(
    source: Path, out: Path, variant: str, weights: str, dtype: str | None, lora: Path | None, as_json: bool = False
) -> int:
    """Write `out` and say what it is: to people, or as one JSON object. -> exit code. Raises as `qvg.models.convert` does."""
    check_out(out)
    plan = plan_conversion(source, variant, weights, dtype, lora)
    for remark in plan.remarks:
        print(f"note: {one_line(remark)}", file=sys.stderr)
    began = time.monotonic()
    bar = _bar(sum(tensor.nbytes for tensor in plan.tensors.values()))
    try:
        write_conversion(plan, out, bar.update if bar is not None else lambda size: None)
    finally:
        if bar is not None:
            bar.close()
    result = _result(plan, out, time.monotonic() - began)
    print(json.dumps(result) if as_json else one_line(_sentence(plan, result)))
    return 0


def _result(plan: Conversion, out: Path, seconds: float) -> dict[str, Any]:
    source = plan.source
    return {
        "out": str(out),
        "bytes": plan.nbytes,
        "tensors": len(plan.tensors),
        "dtype": plan.dtype_name,
        "variant": source.variant.name if source.variant else None,
        "known_by": source.found.how,
        "weights": source.weights or None,
        "lora": plan.lora.file_name if plan.lora else None,
        "remarks": list(plan.remarks),
        "seconds": round(seconds, 2),
    }


def _sentence(plan: Conversion, result: dict[str, Any]) -> str:
    parts = [
        f"{result['tensors']} tensors",
        f"{result['bytes'] / 1e9:.2f} GB",
        f"in {result['dtype']}" if result["dtype"] else "as they were",
    ]
    parts += [f"from {result['weights']}"] if result["weights"] else []
    parts += [f"with {plan.lora.said} merged"] if plan.lora else []
    what = result["variant"] or "a causal Wan of unknown variant"
    return f"{result['out']}: {what} (known by {result['known_by']}), {', '.join(parts)}"


def _bar(total_bytes: int) -> Any:
    """On a terminal, where tqdm is."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total_bytes, unit="B", unit_scale=True, file=sys.stderr)
