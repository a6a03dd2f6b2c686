"""Rows of the study: what is walked, what is the same walk, and the command, shortened, not faked."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg import CacheSpec, ConfigError, KVCache, QVGConfig
from comfyui_qvg.qvg.bench.judge import Settings
from comfyui_qvg.qvg.bench.study import FORMS, bench_study, chosen
from comfyui_qvg.qvg.study import STUDY, ReusingDenoiser, study_method
from comfyui_qvg.qvg.study.run import StudyRun
from torch import Tensor


def test_what_is_walked_and_what_is_walked_once() -> None:
    """99 rows and those beside them; corrected, REFRESH and tiers of one coding are other names of plain methods."""
    work = chosen((), FORMS)
    assert len([key for key in work if key[1] != "shipped"]) == 3 * len(STUDY) and ("NVFP4", "shipped") in work

    def same(name: str, form: str) -> Settings:
        run = work[name, form]
        assert isinstance(run, StudyRun)
        return run.same_as

    for one, other in (("RTN_INT4", "RTN_INT4_REFRESH"), ("RTN_INT4", "AGE_TIER_INT4"), ("KIVI_INT4", "KIVI_INT4_REFRESH")):
        assert same(one, "corrected") == same(other, "corrected") and same(one, "published") != same(other, "published")
    for name in ("AGE_TIER_INT2", "FLOWCACHE_NATIVE"):
        assert same(name, "node") == same(name, "corrected")
    set_by_node = work["RTN_INT4", "node"]
    assert isinstance(set_by_node, QVGConfig) and (set_by_node.sink_frames, set_by_node.recent_frames) == (1, 3)
    assert same("FLOWCACHE_SOFT_PRUNE_INT4", "corrected") != same("FLOWCACHE_NATIVE_SOFT_PRUNE_INT4", "corrected")
    assert same("FLOWCACHE_SOFT_PRUNE_INT4", "corrected") != same("FLOWCACHE_PRUNE_INT4", "corrected")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["RTN_INT5"]}, "method is 'RTN_INT5', but the study has"),
        ({"forms": ["mended"]}, "form is 'mended', but must be one of corrected, published, node; leave it out for all"),
        ({"worlds": 0}, "worlds is 0"),
        ({"paths": 3}, "paths is 3, but 1 to 2"),
        ({"model": "photo"}, "model is 'photo', but must be one of world, film"),
        ({"frames": 3}, "frames is 3, but 4 are given"),
        ({"model": "film", "frames": 36}, "frames is 36, but a film gives 36 and goes on by 3; use a multiple of 3 above 36"),
        ({"model": "film", "frames": 61}, "frames is 61"),
    ],
)
def test_refusals(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        bench_study(tmp_path, **changes)  # type: ignore[arg-type]


def test_the_command_walks_writes_and_goes_on(tmp_path: Path) -> None:
    names = ["RTN_INT2", "FLOWCACHE_SOFT_PRUNE_INT4"]
    bench_study(tmp_path, names[:1], ("corrected",), worlds=1, frames=8)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "walks").iterdir()}
    bench_study(tmp_path, names, worlds=1, frames=8)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "walks").iterdir()}.items()
    with (tmp_path / "study.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["method"], row["form"]): row for row in csv.DictReader(file)}
    assert list(rows) == [
        ("RTN_INT2", "corrected"),
        ("RTN_INT2", "published"),
        ("RTN_INT2", "node"),
        ("FLOWCACHE_SOFT_PRUNE_INT4", "corrected"),
        ("FLOWCACHE_SOFT_PRUNE_INT4", "published"),
        ("FLOWCACHE_SOFT_PRUNE_INT4", "node"),
    ]
    # 64 tokens are four whole groups of 16, so corrected ratios are what the core says; everything is counted at the end.
    assert rows["RTN_INT2", "corrected"]["ratio"] == "5.333" and rows["RTN_INT2", "published"]["ratio"] == "5.333"
    assert float(rows["FLOWCACHE_SOFT_PRUNE_INT4", "corrected"]["psnr_db"]) > 20
    # Four of eight frames exact: 16 and 3 bits per value, 9.5 on average.
    assert rows["RTN_INT2", "node"]["bits_per_value"] == "9.5" and float(rows["RTN_INT2", "node"]["psnr_db"]) > 20
    assert len({row["weights"] for row in rows.values()}) == 1 and len(rows["RTN_INT2", "node"]["weights"]) == 12


class _Denoiser:
    """Counts; its prediction is a tenth of what it sees."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.levels: list[float] = []

    def block_shape(self, frames: int) -> tuple[int, ...]:
        return (1, frames, 4)

    def predict_clean(self, x: Tensor, noise_level: float, cache: KVCache) -> Tensor:
        self.levels.append(noise_level)
        return x / 10


def test_velocities_are_reused_while_a_block_drifts_little() -> None:
    """The clean pass is always made, and begins the next block afresh; beyond the threshold a pass is made again."""
    cache = KVCache(CacheSpec(1, 1, 8, 4), QVGConfig.preset("exact"))
    inner = _Denoiser()
    outer = ReusingDenoiser(inner, threshold=0.5)
    x = torch.ones(1, 1, 4)
    assert outer.block_shape(2) == (1, 2, 4)
    first = outer.predict_clean(x, 1.0, cache)
    assert torch.equal(first, x / 10)
    # Velocity (1 - 0.1) / 1; half way along it, 0.45 away, it is used again.
    assert torch.allclose(outer.predict_clean(x * 0.55, 0.5, cache), x * (0.55 - 0.5 * 0.9))
    assert inner.levels == [1.0] and outer.reused == 1
    # 0.45 and 0.27 / 0.55 more are too much.
    outer.predict_clean(x * 0.28, 0.25, cache)
    assert inner.levels == [1.0, 0.25]
    outer.predict_clean(x * 0.01, 0.0, cache)
    outer.predict_clean(x * 0.01, 1.0, cache)
    assert inner.levels == [1.0, 0.25, 0.0, 1.0] and (outer.passes, outer.reused) == (4, 1)
    warm = ReusingDenoiser(_Denoiser(), threshold=100.0, warm_up=2)
    for level in (1.0, 0.75, 0.5, 0.25):
        warm.predict_clean(x, level, cache)
    assert (warm.passes, warm.reused) == (2, 2)
    with pytest.raises(ConfigError, match="threshold 0 must be above 0"):
        ReusingDenoiser(_Denoiser(), threshold=0)


def test_native_rows_change_the_denoiser_alone() -> None:
    for name, reuses in (("FLOWCACHE_NATIVE", True), ("FLOWCACHE_SOFT_PRUNE_INT4", False)):
        assert isinstance(StudyRun(study_method(name)).denoiser(_Denoiser()), ReusingDenoiser) == reuses
