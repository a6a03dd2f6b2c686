"""`qvg bench codecs`: the numbers mean what they say, and a broken-off run goes on."""

from __future__ import annotations

import csv
import itertools
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg import PRESETS, CacheError, ConfigError, QVGConfig
from comfyui_qvg.qvg.bench import codecs, judge, openings
from comfyui_qvg.qvg.bench.judge import WalkResult
from comfyui_qvg.qvg.bench.methods import METHODS, QUICK, REFERENCE, choose
from comfyui_qvg.qvg.bench.probes import probe
from comfyui_qvg.qvg.bench.rows import amortised_bits, bits_per_value, windows
from comfyui_qvg.qvg.bench.statistics import bootstrap_mean
from comfyui_qvg.qvg.bench.synthetic import make_keys_values, measure_statistics
from comfyui_qvg.qvg.bench.walks import Case, Walker
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models.demo_world import DemoWorld, load_demo_world

from ...helpers import ROOT

REQUIRED = {
    "codec",
    "preset",
    "bits_k",
    "bits_v",
    "stages",
    "clusters",
    "group_size",
    "bits_per_value",
    "bits_per_value_amortised",
    "cache_bytes",
    "worlds",
    "psnr_db",
    "psnr_db_low",
    "psnr_db_high",
    "ssim",
    "attention_error",
    "logit_slope",
    "encode_ms",
    "decode_ms",
}


def result(errors: list[float], sizes: dict[str, int] | None = None, tokens: int = 1024) -> WalkResult:
    return WalkResult(errors, [1.0] * len(errors), sizes or {"codes": 1}, 1, tokens, None, 0.1)


def test_bootstrap_interval() -> None:
    """An interval holds the mean, shrinks with more cases, and is the same every time."""
    few, many = bootstrap_mean([1.0, 3.0]), bootstrap_mean([1.0, 3.0] * 50)
    assert few.low <= few.mean == 2.0 <= few.high and many.high - many.low < few.high - few.low
    assert bootstrap_mean([1.0, 3.0]) == few and bootstrap_mean([5.0]) == (5.0, 5.0, 5.0)
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean([1.0, float("nan")])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_synthetic_tensors_have_the_statistics_of_real_ones(seed: int) -> None:
    """docs/quality.md, "Synthetic keys and values"; the ranges are a little wider than the three models that were measured."""
    keys, values = (measure_statistics(x) for x in make_keys_values(seed, frames=5, heads=2))
    assert 5 <= keys.channel_contrast <= 13 and 1.03 <= keys.norm_spread <= 1.6 and 20 <= keys.rank_80 <= 36
    assert 1.4 <= values.channel_contrast <= 3.2 and 3.5 <= values.norm_spread <= 5.6 and 40 <= values.rank_80 <= 56
    assert 0.4 <= keys.top_4 <= 0.6 and 0.4 <= values.top_4 <= 0.6


def test_outliers_are_as_many_and_as_loud_as_said() -> None:
    plain, loud = make_keys_values(0).values[0], make_keys_values(0, outliers=0.01).values[0]
    ratios = loud.norm(dim=-1) / plain.norm(dim=-1)
    changed = (ratios[0] - 1).abs() > 1e-3
    assert changed.sum() == round(0.01 * plain.shape[1]) and ratios[0][changed].min() >= 3 and ratios[0][changed].max() <= 8.001


def test_probe_of_the_exact_cache_finds_nothing() -> None:
    found = probe(QVGConfig(codec="none"), seeds=(0,), frames=2, heads=1)
    assert found.attention_error < 0.01 and abs(found.logit_slope - 1) < 1e-3 and abs(found.mass_moved) < 1e-3


def test_probe_sees_that_more_bits_are_better() -> None:
    errors = [probe(QVGConfig("rtn", bits, symmetric=False), (0,), 2, 1).attention_error for bits in (2, 3, 4, 8)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 5 * errors[-1]


def test_psnr_is_of_the_pooled_error_and_leaves_the_given_frames_out() -> None:
    walk = result([0.5] * 4 + [1e-4, 1e-4, 1e-2, 1e-2])
    assert walk.psnr_db() == pytest.approx(22.967, abs=1e-3) and walk.psnr_db(4, 6) == pytest.approx(40)
    assert walk.first_divergent_frame() == 0 and result([0.0] * 8).first_divergent_frame() == 8
    assert result([0.0] * 8).psnr_db() == 100


def test_bits_per_value() -> None:
    """One span of 1,024 tokens: 5 layers x 2 heads x 128 channels, keys and values; sink and tail are not in it."""
    walk = result([0.0] * 8, {"codes": 655_360, "exact": 10**6})
    assert bits_per_value([walk]) == pytest.approx(2.0)


def test_amortised_bits_are_the_published_ones() -> None:
    """arXiv 2602.02958, section 3: Self-Forcing at 256 clusters, one and four stages."""
    walk = result([0.0] * 8)
    qvg = QVGConfig(clusters=256, span_frames=16)
    assert amortised_bits(qvg, walk) == pytest.approx(2.2969, abs=1e-4)
    assert amortised_bits(qvg.with_changes(num_stages=4, group_size=16), walk) == pytest.approx(3.188, abs=1e-3)


SHIPPED_CODECS = {"lightx2v-kivi", "nvfp4", "fp8", "bf16-int8", "pca"}


def test_methods_are_told_apart_and_the_reference_comes_along() -> None:
    assert len({method.name for method in METHODS}) == len({method.config for method in METHODS}) == len(METHODS)
    assert choose(["balanced"])[0].name == REFERENCE and {"fewest-bytes", "balanced", "near-exact"} < set(QUICK)
    assert {method.config.codec for method in METHODS} == {"qvg", "klt", "rtn", "kivi", "quarot", *SHIPPED_CODECS}
    with pytest.raises(ConfigError, match="'balance'"):
        choose(["balance"])


def test_windows_cover_the_generated_frames() -> None:
    edges = windows(70)
    assert edges[0][0] == 4 and edges[-1][1] == 70 and all(a[1] == b[0] for a, b in itertools.pairwise(edges))


def test_a_codec_that_was_never_called_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="nothing was encoded"):
        Walker(tmp_path).compare(Case(1, "d-4", 8), PRESETS["qvg"])


def test_other_code_or_settings_are_other_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walker, case = Walker(tmp_path), Case(1, "d-4", 8)
    before = walker._key(case, PRESETS["qvg"])
    assert walker._key(case, PRESETS["qvg-pro"]) != before != walker._key(Case(2, "d-4", 8), PRESETS["qvg"])
    monkeypatch.setattr(judge, "source_digest", lambda: "another")
    assert walker._key(case, PRESETS["qvg"]) != before


def test_the_command_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Shortened, not faked: two methods, one world, enough frames for one span. Again, nothing is walked a second time."""
    monkeypatch.setattr(codecs, "QUICK_FRAMES", 24)
    arguments = ["bench", "codecs", "--out", str(tmp_path), "--quick", "--worlds", "1", "--methods", "balanced"]
    arguments += ["--parts", "walks"]
    assert main(arguments) == 0
    with (tmp_path / "codecs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["preset"] for row in rows] == [REFERENCE, "balanced"] and set(rows[0]) >= REQUIRED
    ours, theirs = rows[1], rows[0]
    assert float(ours["gain_db"]) == pytest.approx(float(ours["psnr_db"]) - float(theirs["psnr_db"]), abs=1e-3)
    assert float(ours["attention_error"]) < float(theirs["attention_error"])
    parts = sum(int(value) for name, value in ours.items() if name.startswith("bytes_"))
    assert parts == int(ours["cache_bytes"])
    page = (tmp_path / "codecs.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3 and "balanced" in page and "http" not in page
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "walks").iterdir()}
    assert main(arguments) == 0
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "walks").iterdir()}
    capsys.readouterr()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--worlds", "0"], "worlds is 0"),
        (["--worlds", "1000000000000"], "worlds is 1000000000000, but 1 to 1000 can be walked through"),
        (["--jobs", "0"], "jobs is 0"),
        (["--methods", "x"], "'x'"),
    ],
)
def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], words: str) -> None:
    assert main(["bench", "codecs", "--out", str(tmp_path), *extra]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["bench", "codecs", "--out", str(tmp_path / "file" / "x"), "--quick"]) == 1
    assert "cannot be made" in capsys.readouterr().err


@cache
def _model() -> DemoWorld:
    return load_demo_world()


@pytest.mark.parametrize("scenario", openings.SCENARIOS)
def test_scenes_show_the_place_and_come_back_to_it(scenario: str) -> None:
    """The given frames lie on the map, the generated ones look at what was given, and only the opening differs."""
    for path in openings.PATHS:
        plain = openings.Scene(0, "ordinary", path)
        given = {tuple(place) for place in plain.plan.positions[: plain.given_frames].tolist()}
        assert {tuple(place) for place in plain.plan.positions[plain.given_frames :].tolist()} <= given
    path, model = openings.PATHS[list(openings.SCENARIOS).index(scenario) % len(openings.PATHS)], _model()
    scene, plain = openings.Scene(1, scenario, path), openings.Scene(1, "ordinary", path)
    frames, ordinary = (torch.cat([*x.given(model)]) for x in (scene, plain))
    shown = slice(scene.opening_frames, None)
    assert frames.shape == (36, 1, 3, 64, 64) and scene.frames == 56 == len(scene.plan.positions)
    if scenario != "loud":
        assert torch.equal(frames[shown], ordinary[shown]) and frames.abs().max() <= 1
    assert scenario == "ordinary" or not torch.equal(frames, ordinary)


def test_openings_are_what_they_are_called() -> None:
    def opening(name: str) -> torch.Tensor:
        return torch.cat(openings.Scene(3, name, openings.PATHS[0]).given(_model()))[:18, 0]

    assert bool((opening("black") == -1).all()) and float(opening("fade").max()) <= -0.9
    assert all(len(opening(name).unique(dim=0)) == 1 for name in ("black", "gradient", "title", "freeze"))
    assert all(len(opening(name).unique(dim=0)) > 10 for name in ("ordinary", "fade", "noise", "cut"))
    with pytest.raises(ConfigError, match="'snow'"):
        openings.Scene(3, "snow", openings.PATHS[0])


@pytest.mark.skipif(os.name == "nt", reason="limits file sizes the POSIX way")
def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import bootstrap_package, resource, signal\n"
        "from comfyui_qvg.qvg.cli import main\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "    raise SystemExit(main(sys.argv[1:]))\n"
    )
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    arguments = ["bench", "codecs", "--out", str(tmp_path / "out"), "--quick", "--methods", "qvg", "--parts", "openings"]
    command = [sys.executable, str(tmp_path / "program.py"), *arguments, "--scenarios", "ordinary"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert (
        done.returncode == 1 and "could not be written to (File too large); free space, the walks so far are kept" in done.stderr
    )
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
