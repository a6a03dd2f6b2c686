"""The study's rows as a table: what is published, what we count, and what decides."""

from __future__ import annotations

from dataclasses import replace

from ..codec.compared import QAQ_ONE_IN, TPTQ_ONE_IN
from .bytes import STUDY_FRAMES, STUDY_SPEC, predict, ratio
from .method import StudyMethod
from .published_plan import held_bytes, published_ratio
from .registry import STUDY

# GiB at the peak of the published runs (arXiv 2603.27469, MovieGen).
PUBLISHED_PEAKS = (
    *(19.28, 19.98, 19.98, 22.68, 21.37, 22.64, 19.99, 19.99, 22.63, 22.67, 19.98, 19.98, 21.69, 22.82, 20.69, 20.69, 14.42),
    *(14.42, 19.85, 14.38, 14.38, 14.38, 14.38, 11.71, 11.11, 11.71, 11.71, 19.31, 11.74, 14.38, 14.38, 14.38, 14.38),
)
# What is not the cache's: in the VAE's decoder BF16's peak without its cache, and while denoising the most in BF16's trace.
DECODING_GIB, DENOISING_GIB = 19.28 - 11.247, 15.628 - 11.247


def decides(method: StudyMethod) -> str:
    """What a method's bytes depend on beside its settings as published, and the range that corrected ratios have with it."""
    if method.name.startswith("FLOWCACHE") and method.budgets != (1.0, 1.0):
        return f"layers' budgets, {_range(*(replace(method, budgets=(budget, budget)) for budget in (1.3, 0.7)))}"
    if method.name.startswith(("QAQ", "TPTQ")):
        return f"outliers; ours are always one in {QAQ_ONE_IN if method.name.startswith('QAQ') else TPTQ_ONE_IN}"
    front = method.foreground
    if front is not None and front.threshold is not None and front.coding != method.coding:
        ends = (replace(method, foreground=replace(front, share=share)) for share in (front.most, front.least))
        return f"positions that vary, {_range(*ends)}"
    return ""


def _range(low: StudyMethod, high: StudyMethod) -> str:
    return f"{ratio(low):.2f} to {ratio(high):.2f}"


def study_table() -> str:
    """Markdown. Ratios are of 42 latent frames of Self-Forcing 1.3B, 16 bits over what is counted."""
    lines = [
        "| method | published ratio | as published, counted | corrected | corrected, GiB "
        "| held by the published integration, GiB | and at work | its peak less all else, GiB | decided by, and our range |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, peak in zip(STUDY, PUBLISHED_PEAKS, strict=True):
        held = held_bytes(method)
        cells = [
            f"`{method.name}`",
            "–" if method.published_ratio is None else f"{method.published_ratio:.3f}",
            f"{published_ratio(method):.3f}",
            f"{ratio(method):.3f}",
            f"{predict(method, STUDY_SPEC, STUDY_FRAMES).total / 2**30:.2f}",
            f"{held.total / 2**30:.2f}",
            f"{held.working / 2**30:.2f}" if held.denoising else "–",
            f"{peak - (DENOISING_GIB if held.denoising else DECODING_GIB):.2f}",
            decides(method),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
