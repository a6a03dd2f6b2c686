"""The cost model: how far it is from numbers that it was not fitted to, and that what it knows moves it the right way."""

from __future__ import annotations

import json

import pytest
from comfyui_qvg.qvg.bench.gpu.cost_model import CARDS, INSTRUCTIONS, Work, anchors, predicted_ms

from ...helpers import ROOT

SELF_FORCING = Work(12, 4680, 285_480, 2.3)
# The largest miss found (SageAttention 2: 22 %), and a little. A change of the model that is further off is none for the better.
LARGEST_MISS = 0.25


def test_published_numbers_that_it_was_not_fitted_to() -> None:
    found = anchors()
    held_out = [one for one in found if not one.fitted]
    assert len(held_out) >= 8 and len(found) - len(held_out) == 1
    assert all(abs(one.miss) <= LARGEST_MISS for one in held_out), [(one.what, one.miss) for one in held_out]
    # In the middle it is closer: half of them within 15 %.
    assert sorted(abs(one.miss) for one in held_out)[len(held_out) // 2] <= 0.15
    assert all(abs(one.miss) <= 0.02 for one in found if one.fitted)
    assert all(one.source for one in found)


@pytest.mark.parametrize("card", CARDS)
def test_what_it_knows_counts(card: str) -> None:
    plain, exact = (predicted_ms(card, way, SELF_FORCING) or 0 for way in ("bf16", "exact"))
    klt = predicted_ms(card, "exact", SELF_FORCING._replace(codec="klt")) or 0
    assert 0 < plain < exact < klt < 1.2 * plain
    # Host time: where many kernels are started the GPU waits for it.
    many = predicted_ms(card, "exact", SELF_FORCING._replace(launches=13_000)) or 0
    assert many == pytest.approx(377)
    assert (predicted_ms(card, "official", SELF_FORCING) or 0) > 1.15 * exact
    few = SELF_FORCING._replace(queries=64, launches=2)
    assert (predicted_ms(card, "direct", few) or 0) < (predicted_ms(card, "exact", few) or 0)
    assert predicted_ms(f"NVIDIA {card} Laptop", "bf16", SELF_FORCING) == plain


def test_an_unknown_card_gets_no_prediction() -> None:
    assert predicted_ms("cpu", "exact", SELF_FORCING) is None


CASES = {
    "attention": ("attention", "bf16_d128_m128"),
    "attention8": ("attention8", "v8_d128"),
    "attention8, float16 values": ("attention8", "v16_d128"),
    "direct": ("direct", "b2_g64_n1_d128_m128_rotated"),
    "direct_coefficients": ("direct_coefficients", "p34_d128_q64_rotated"),
}


@pytest.mark.parametrize("kernel", CASES)
def test_instructions_are_those_that_the_compile_gate_counts(kernel: str) -> None:
    op, name = CASES[kernel]
    frozen = json.loads((ROOT / "tools" / "compile_budgets" / f"{op}.json").read_text(encoding="utf-8"))
    variants = [targets for case, targets in frozen.items() if case in (name, f"{name}_fence", f"{name}_cdna")]
    counted = {target: one["instructions"] for targets in variants for target, one in targets.items() if "instructions" in one}
    kinds = {card.kind for card in CARDS.values()}  # the gate counts for cards, too, that the model has not
    counted = {target: number for target, number in counted.items() if target in kinds}
    if not counted:
        pytest.skip("the compile gate counts no instructions yet")
    assert {target: INSTRUCTIONS[kernel].get(target) for target in counted} == counted
