"""`qvg check-gpu`: is every kernel right on this card, and how fast is it? One row and one page, or a sentence."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ....kernels.dispatch import triton_refusal
from ...errors import QVGError
from ...files import written_whole
from .attention_rows import SELF_FORCING, SIZES, attention_rows
from .coding_rows import coding_rows
from .correctness import FRAMES, Checked, check_kernels
from .layer_run import Shape
from .page import page, send_text
from .timing import conditions

PRESETS = ("balanced", "qvg")
# Sizes of attention that would begin later are left out, so that the rest of the five minutes is enough.
LAST_START_SECONDS = 210
_SMALL = Shape("small", 1, 6, 8)
ROW, PAGE = "gpu_check.json", "gpu_check.html"

Say = Callable[[str], None]


def check_gpu(out: Path, rehearse: bool = False, say: Say = print) -> int:
    """Check, measure, and write ROW and PAGE into `out`. -> exit code: 0, or 1 where a result is wrong: nothing is written then.

    Raises QVGError without a GPU. `rehearse`: small sizes on any device; the row says so.
    """
    device = _device(rehearse)
    refusal = triton_refusal("attention", device)
    backend = "torch" if refusal else "triton"
    began = time.monotonic()
    row = {**_about(device), "rehearsal": rehearse, "backend": f"torch ({refusal})" if refusal else "triton"}
    say(f"{row['device']}: kernels run in {row['backend']}")
    with torch.no_grad(), _same_numbers(device):
        checks = _say_all(check_kernels(device, backend, *((_SMALL, FRAMES, PRESETS) if rehearse else ())), say)
        wrong = [one.text() for one in checks if not one.is_right]
        if not wrong:
            row["checks"] = [{"name": one.name, "error": _short(one.error), "allowed": _short(one.allowed)} for one in checks]
            row["attention"] = list(_said(_attention(device, began, rehearse), say))
            wrong = [found["wrong"] for found in row["attention"] if "wrong" in found]
        if not wrong:
            sizes = (_SMALL, PRESETS, device, 1, 1) if rehearse else (SELF_FORCING, PRESETS, device)
            row["coding"] = list(_said(coding_rows(*sizes), say))
    if wrong:
        for sentence in wrong:
            say(f"wrong: {sentence}")
        say("a result is wrong on this machine, so no row is written; please report the lines above, with your card and versions")
        return 1
    row["seconds"] = round(time.monotonic() - began)
    _write(out, row, say)
    return 0


def _attention(device: torch.device, began: float, rehearse: bool) -> Iterator[dict[str, Any]]:
    shape, sizes = (_SMALL, (30,)) if rehearse else (SELF_FORCING, SIZES)
    for preset in PRESETS:
        yield from attention_rows(shape, preset, sizes, device, began + LAST_START_SECONDS, repeats=1 if rehearse else 7)


def _device(rehearse: bool) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if not rehearse:
        raise QVGError(
            "torch sees no GPU here (torch.cuda.is_available() is False), and a check without one would say nothing; run it "
            "where the card is, with the Python of ComfyUI, or rehearse it with --rehearse"
        )
    return torch.device("cpu")


def _about(device: torch.device) -> dict[str, Any]:
    about: dict[str, Any] = {"check": 1, **conditions(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        about |= {"memory_gb": round(properties.total_memory / 1e9, 1), "multiprocessors": properties.multi_processor_count}
        about["architecture"] = str(getattr(properties, "gcnArchName", "")) or f"sm_{properties.major}{properties.minor}"
    return about


@contextmanager
def _same_numbers(device: torch.device) -> Iterator[None]:
    """Products of float32 in float32 while it is checked, not in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _say_all(checks: Iterator[Checked], say: Say) -> list[Checked]:
    """All of them; said as they come."""
    found = []
    for one in checks:
        found.append(one)
        say(one.text())
    return found


def _said(rows: Iterator[dict[str, Any]], say: Say) -> Iterator[dict[str, Any]]:
    for row in rows:
        say(json.dumps(row))
        yield row


def _short(number: float) -> float:
    return float(f"{number:.2g}")


def _write(out: Path, row: dict[str, Any], say: Say) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, text in ((ROW, json.dumps(row) + "\n"), (PAGE, page(row))):
        with written_whole(out / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    say(f"all is right; written in {row['seconds']} s: {out / ROW} and {out / PAGE}")
    say(send_text())
