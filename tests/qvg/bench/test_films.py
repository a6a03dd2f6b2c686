"""`qvg bench codecs --model film`: what is compared with what, and that a broken-off run goes on. The model is untrained."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from comfyui_qvg.qvg import ConfigError, QVGConfig
from comfyui_qvg.qvg.bench import codecs, films
from comfyui_qvg.qvg.bench.films import FILM, FilmCase, FilmJudge, film_cases
from comfyui_qvg.qvg.bench.methods import METHODS, REFERENCE
from comfyui_qvg.qvg.bench.rows import span_tokens
from comfyui_qvg.qvg.bench.walks import DEMO_WORLD
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models.demo_film.directions import follow
from comfyui_qvg.qvg.study import study_method
from comfyui_qvg.qvg.study.bytes import predict
from comfyui_qvg.qvg.study.run import StudyRun

from ...untrained_film import untrained


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("film") / "demo_film.safetensors")


@pytest.fixture
def film(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FilmJudge, "weights_file", weights)
    monkeypatch.setattr(codecs, "QUICK_FILM_FRAMES", 48)


def test_all_that_is_generated_was_given_and_half_of_it_not_a_turn_ago() -> None:
    cases = film_cases(8, 72)
    assert len({case.plan for case in cases}) == 8 and {case.light for case in cases} == {"day", "night"}
    for case in cases:
        headings = case.plan.track.headings
        seen = {int(heading + column) % 36 for heading in headings[:36] for column in range(8)}
        assert seen == set(range(36)), "one whole turn is given"
        turned_on = (headings[36:] == headings[:36]).all()
        assert turned_on == (case.path == "on")
    assert [case.path for case in cases].count("back") == 4
    track, _ = follow(cases[0].plan.start, cases[0].plan.directions)
    assert (track.daylight == 1).all(), "the light is what the prompt says from the start"


def test_spans_hold_about_as_much_as_the_demo_world_s() -> None:
    """18 frames of 64 tokens for 16, as blocks are of three; nothing else of the settings changes."""
    for method in METHODS:
        assert span_tokens(method.config, FILM.spec) == 1152 and span_tokens(method.config, DEMO_WORLD.spec) == 1024


@pytest.mark.usefixtures("film")
def test_the_command_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shortened, not faked: two methods, one film. Again, nothing is made a second time."""
    arguments = [
        "bench",
        "codecs",
        "--out",
        str(tmp_path),
        "--model",
        "film",
        "--quick",
        "--worlds",
        "1",
        "--methods",
        "balanced",
    ]
    assert main(arguments) == 0
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "films").iterdir()}
    with (tmp_path / "films.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["preset"] for row in rows] == [REFERENCE, "balanced"] and rows[0]["films"] == "1"
    for each in rows:
        assert sum(int(value) for name, value in each.items() if name.startswith("bytes_")) == int(each["cache_bytes"])
        assert float(each["bits_per_value"]) < 4 and each["frames"] == "48"
    assert float(rows[1]["gain_db"]) == pytest.approx(float(rows[1]["psnr_db"]) - float(rows[0]["psnr_db"]), abs=1e-3)
    assert "dB from the real films" in capsys.readouterr().out and len(made) == 3
    assert main(arguments) == 0 and made == {path: path.stat().st_mtime_ns for path in (tmp_path / "films").iterdir()}


@pytest.mark.usefixtures("film")
def test_other_films_and_settings_are_other_results(tmp_path: Path) -> None:
    judge, config = FilmJudge(tmp_path), QVGConfig.preset("qvg")
    keys = {judge._key(FilmCase(1, "on", 48, light, noise), config) for light in ("day", "night") for noise in (0, 1)}
    assert len({*keys, judge._key(FilmCase(1, "on", 48, "day"), QVGConfig.preset("qvg-pro"))}) == 5


def test_without_the_file_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(films.FilmJudge, "weights_file", tmp_path / "demo_film.safetensors")
    assert main(["bench", "codecs", "--out", str(tmp_path / "out"), "--model", "film", "--quick"]) == 2
    error = capsys.readouterr().err
    assert "demo_film.safetensors is not there, but holds the demo film's weights" in error and error.count("\n") == 1


def test_parts_of_the_demo_world_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "codecs", "--out", str(tmp_path), "--model", "film", "--parts", "openings"]) == 2
    assert "parts and scenarios are of the demo world, but model is film" in capsys.readouterr().err


def test_a_method_of_the_study_is_judged_by_films_too(film: None, tmp_path: Path) -> None:
    """Frame by frame in blocks of three; `make` fails where bytes are not those that were predicted."""
    judge, case = FilmJudge(tmp_path), FilmCase(5001, "on", 39, "day")
    result = judge.measure(case, StudyRun(study_method("FLOWCACHE_SOFT_PRUNE_INT4")))
    assert sum(result.bytes.values()) == predict(study_method("FLOWCACHE_SOFT_PRUNE_INT4"), FILM.spec, 39).total
    assert len(result.errors) == 39 and all(error == 0 for error in result.errors[:36])
    with pytest.raises(ConfigError, match="FLOWCACHE_NATIVE changes the denoiser"):
        judge.measure(case, StudyRun(study_method("FLOWCACHE_NATIVE")))
