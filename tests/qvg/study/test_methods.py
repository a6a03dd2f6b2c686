"""The study's 33 rows: their ratios, what their integration holds, and every wrong record in one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from comfyui_qvg.qvg import CacheSpec, ConfigError
from comfyui_qvg.qvg.study import STUDY, Coding, Foreground, Retention, StudyMethod, Tier, make_cache, study_method
from comfyui_qvg.qvg.study.bytes import STUDY_FRAMES, STUDY_SPEC, predict, ratio
from comfyui_qvg.qvg.study.importance import profile
from comfyui_qvg.qvg.study.plan import count, levels
from comfyui_qvg.qvg.study.published_plan import held_bytes, published_ratio
from comfyui_qvg.qvg.study.table import DECODING_GIB, DENOISING_GIB, PUBLISHED_PEAKS, decides, study_table

RTN4, RTN2 = Coding("study-rtn", 4), Coding("study-rtn", 2)
# What decides the ratios of the others: how many outliers there are, the layers' budgets out of a profile of the model, and the
# share of positions whose variance is above a threshold.
BY_CONTENT = {
    "QAQ_INT4",
    "QAQ_INT2",
    "TPTQ_INT2",
    *(method.name for method in STUDY if method.name.startswith("FLOWCACHE") and method.name != "FLOWCACHE_NATIVE"),
    "SPATIAL_MIXED_FG_RTN_INT4_BG_RTN_INT2",
}


def test_there_are_33_with_names_of_their_own() -> None:
    names = [method.name for method in STUDY]
    assert len(names) == len(set(names)) == 33
    families = ("BF16", "RTN", "KIVI", "QUAROT", "PRQ", "QAQ", "AGE_TIER", "TPTQ", "FLOWCACHE", "SPATIAL")
    assert [sum(name.startswith(family) for name in names) for family in families] == [1, 5, 4, 4, 2, 2, 2, 1, 8, 4]


@pytest.mark.parametrize("method", STUDY, ids=lambda method: method.name)
def test_published_ratios(method: StudyMethod) -> None:
    """To three digits where the content does not decide; within a twentieth where it does."""
    found = published_ratio(method)
    if method.published_ratio is None:
        expected = {"K2_V4": 4.0, "REFRESH": 3.2}[next(end for end in ("K2_V4", "REFRESH") if method.name.endswith(end))]
        assert found == pytest.approx(expected, rel=4e-3)
    elif method.name in BY_CONTENT:
        assert found == pytest.approx(method.published_ratio, rel=0.05)
    else:
        assert found == pytest.approx(method.published_ratio, abs=1e-3)


@pytest.mark.parametrize(("method", "peak_gib"), [*zip(STUDY, PUBLISHED_PEAKS, strict=True)], ids=[each.name for each in STUDY])
def test_what_the_published_integration_holds_explains_its_peak(method: StudyMethod, peak_gib: float) -> None:
    """In the decoder to 1 %, of which QAQ's and TPTQ's outliers and NATIVE's residuals are missing, others to 0.4 %; of what is
    written back while denoising, where allocations of attention come and go, to 1.5 %."""
    held = held_bytes(method)
    rest = DENOISING_GIB if held.denoising else DECODING_GIB
    assert (held.working > 0) == held.denoising == any(part in method.name for part in ("REFRESH", "RECENT2", "K2_V4"))
    missing = any(part in method.name for part in ("QAQ", "TPTQ", "NATIVE"))
    rel = 0.015 if held.denoising else 0.01 if missing else 0.004
    assert (held.total + held.working) / 2**30 == pytest.approx(peak_gib - rest, rel=rel)


def test_peaks_in_the_decoder_are_explained_to_the_allocators_rounding() -> None:
    """Bytes of the published table, not its GiB: BF16's peak less its cache is what the others have beside theirs."""
    beside = 20_701_900_800 - STUDY_SPEC.exact_bytes(STUDY_FRAMES)
    for name, peak in (("RTN_INT4", 21_456_691_200), ("QUAROT_KV_INT2", 21_456_691_200), ("KIVI_INT4", 21_464_555_520)):
        assert abs(held_bytes(study_method(name)).total + beside - peak) <= 64 * 512, name


def test_soft_prune_reaches_its_ratio_by_count() -> None:
    """5.42 (StoryEval) to 5.49 (MovieGen) published."""
    assert 5.42 <= ratio(study_method("FLOWCACHE_SOFT_PRUNE_INT4")) < 5.5
    assert round(ratio(study_method("FLOWCACHE_SOFT_PRUNE_INT4")), 2) <= 5.49


@pytest.mark.parametrize("method", [m for m in STUDY if m.name not in BY_CONTENT], ids=lambda method: method.name)
def test_corrected_ratios_are_the_published_ones(method: StudyMethod) -> None:
    """Blocks are quantized by themselves, so their last group of 16 tokens is half empty: 0.5 % of a frame's 1,560 tokens. A mask
    has one bit per position and there are no lists of tokens."""
    assert ratio(method) == pytest.approx(published_ratio(method), rel=0.0125)


def test_counts_by_hand() -> None:
    """42 frames, budget 1: a quarter of them is 10.5, and Python rounds halves to even; 3 of 32 old ones are important; of the
    other 29 13.05 are kept."""
    soft = study_method("FLOWCACHE_SOFT_PRUNE_INT4")
    assert count(soft, 42, 1.0, 3) == ((10,), 3, 13, 16)
    assert count(study_method("RTN_INT4_RECENT2"), 42, 1.0, 3) == ((6,), 0, 36, 0)
    assert count(study_method("RTN_INT4_RECENT2"), 4, 1.0, 3) == ((4,), 0, 0, 0)
    assert count(soft, 1, 1.0, 1) == ((1,), 0, 0, 0)


def test_levels_never_rise_and_scores_decide() -> None:
    soft = study_method("FLOWCACHE_SOFT_PRUNE_INT4")
    now = [0] * 12
    for frames in range(12, 40):
        scores = [(frame * 7 % 11) / 11 for frame in range(frames)]
        counts = count(soft, frames, 1.0, 1)
        after = levels(counts, scores, now)
        assert all(new >= old for new, old in zip(after, now, strict=True))
        assert after.count(0) == counts.tiers[0] and after.count(1) <= counts.important and after.count(2) <= counts.kept
        # Who is kept matters at least as much as who is given up now.
        gone = [scores[f] for f in range(frames) if after[f] == 3 > now[f]]
        kept = [scores[f] for f in range(frames) if after[f] in (1, 2)]
        assert not gone or not kept or max(gone) <= max(kept)
        now = [*after, 0]
    assert levels(count(soft, 4, 1.0, 1), [0.9, 0.1, 0.5, 0.5], [0] * 4) == [1, 3, 2, 0]


def test_budgets() -> None:
    method = study_method("FLOWCACHE_HYBRID_INT2")
    assert [round(method.budget(layer, 3), 3) for layer in range(3)] == [0.7, 0.9, 1.1] and method.budget(0, 1) == 1.0
    assert profile([1.0, 3.0, 2.0]) == (0.7, 1.3, 1.0) and profile([2.0, 2.0]) == (1.0, 1.0)
    own = StudyMethod("x", RTN2, (Tier(0.25, RTN4),), budgets=profile([1.0, 3.0, 2.0]))
    assert [own.budget(layer, 3) for layer in range(3)] == [0.7, 1.3, 1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Coding("study-rtn", 3), "bits is 3, but codec 'study-rtn' has 2 or 4 bits"),
        (lambda: Coding("rtn-16", 4), "codec is 'rtn-16'"),
        (lambda: Retention(0.0, True), "a retention of 0.0 leaves nothing"),
        (lambda: Retention(1.5, True), "a retention of 1.5"),
        (lambda: StudyMethod("x", RTN2, (Tier(0.3, RTN4), Tier(0.2, RTN2))), "tiers of x overlap: one reaches back to 0.3"),
        (lambda: StudyMethod("x", RTN2, (Tier(0.3, RTN4), Tier(0.3, RTN2))), "overlap"),
        (lambda: StudyMethod("x", RTN2, (Tier(2, RTN4), Tier(0.5, RTN2))), "overlap"),
        (lambda: StudyMethod("x", RTN2, (Tier(0, RTN4),)), "reaches back to 0"),
        (lambda: StudyMethod("x", RTN2, (Tier(1.5, RTN4),)), "reaches back to 1.5"),
        (lambda: StudyMethod("x", RTN2, important=0.1), "important is 0.1 in x"),
        (lambda: StudyMethod("x", RTN2, budgets=(0.0, 1.0)), "budgets of x are (0.0, 1.0)"),
        (lambda: Foreground(RTN4, share=0.3), "a foreground of 0.3, between 0.45 and 0.85"),
        (lambda: StudyMethod("x", RTN2, (Tier(0.3, RTN4),), foreground=Foreground(RTN4)), "has a foreground and tiers"),
        (lambda: study_method("RTN_INT3"), "method is 'RTN_INT3', but the study has: BF16, RTN_INT4"),
        (lambda: StudyMethod("x", RTN2, budgets=(1.0, 1.0, 1.0)).budget(0, 4), "has budgets for 3 layers, but the model has 4"),
        (lambda: make_cache(study_method("QUAROT_KV_INT2"), CacheSpec(1, 1, 96, 16)), "head_dim 96 is not a power of two"),
        (
            lambda: make_cache(study_method("QUAROT_KV_INT2"), CacheSpec(1, 1, 96, 16), published=True, capacity_frames=4),
            "head_dim 96 is not a power of two",
        ),
        (lambda: make_cache(STUDY[1], CacheSpec(1, 1, 64, 16), published=True), "give capacity_frames"),
    ],
)
def test_wrong_records(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()


def test_predictions_say_every_component() -> None:
    """On the study's shape: soft-pruned frames are one exact token each."""
    sizes = predict(study_method("FLOWCACHE_SOFT_PRUNE_INT4"), STUDY_SPEC, STUDY_FRAMES)
    evicted = sum(count(study_method("FLOWCACHE_SOFT_PRUNE_INT4"), 42, 0.7 + 0.4 * layer / 29, 3).evicted for layer in range(30))
    assert sizes.exact == evicted * 2 * 12 * 128 * 2 and sizes.codes == 4 * sizes.scales


def test_the_table_says_what_decides_and_between_what() -> None:
    """Published ratios that the content decides lie in the range that ours have with it."""
    lines = {line.split("`")[1]: line for line in study_table().splitlines()[2:]}
    assert list(lines) == [method.name for method in STUDY]
    for method in STUDY:
        decided = decides(method)
        assert bool(decided) == (method.name in BY_CONTENT) and lines[method.name].endswith(f"| {decided} |")
        found = re.search(r"([\d.]+) to ([\d.]+)", decided)
        if found is not None and method.published_ratio is not None:
            assert float(found[1]) <= method.published_ratio <= float(found[2])
