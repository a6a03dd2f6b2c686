"""`qvg demo --film`: results, bad arguments, and a film that was ended. The model has learned nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import av
import pytest
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.demo import film
from PIL import Image

from ...untrained_film import untrained

FRAMES = 45


@pytest.fixture(scope="module", autouse=True)
def weights(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(film, "WEIGHTS", untrained(tmp_path_factory.mktemp("film") / "demo_film.safetensors"))
        yield


def results(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    return found


def test_writes_what_it_promises_and_goes_on_where_it_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended, whole = tmp_path / "ended", tmp_path / "whole"
    real, made = film.decoded, []

    def end(*args: object) -> object:
        """Ctrl-C in the second film: one call decodes the real one, then each block has one."""
        made.append(args)
        if len(made) == 1 + FRAMES // 3 + 14:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(film, "decoded", end)
    assert main(["demo", "--out", str(ended), "--film", "--frames", str(FRAMES)]) == 130
    monkeypatch.setattr(film, "decoded", real)
    said = capsys.readouterr().out
    assert said.startswith("the demo film is a causal Wan: unlike the demo world") and "the same command goes on behind" in said
    assert (ended / "film.mp4").is_file() and (ended / "unfinished").is_dir()
    for out in (ended, whole):
        assert main(["demo", "--out", str(out), "--film", "--frames", str(FRAMES)]) == 0
        assert not (out / "unfinished").exists()
    assert "going on behind 29 finished" in capsys.readouterr().out
    first, second = ([{**run, "seconds_per_frame": 0} for run in results(out)["runs"]] for out in (ended, whole))  # type: ignore[attr-defined]
    assert first == second
    exact, qvg, balanced, window = second
    assert exact["frames"] == FRAMES and exact["psnr_db"] is None and "codes" in qvg["bytes"]
    assert balanced["codec"] == "klt" and "codes" in balanced["bytes"]
    assert window["cache_bytes"] <= balanced["cache_bytes"]
    # A film this short is hardly longer than the codebooks and the basis that it pays for.
    assert max(qvg["cache_bytes"], balanced["cache_bytes"]) < exact["cache_bytes"]
    assert all(run["truth_psnr_db"] > 0 for run in second)
    with av.open(os.fspath(whole / "film.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == FRAMES
        assert video.streams.video[0].width > 5 * 256  # the real film, and four more
    assert Image.open(whole / "demo.png").size[0] >= 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "36"], "frames is 36, but a film has a multiple of 3 from 39"),
        (["--frames", "40"], "frames is 40, but a film has a multiple of 3 from 39"),
        (["--frames", "3000"], "to 2160, of which 36 are given; leave it out for 108"),
        (["--seed", "-1"], "seed is -1"),
        (["--path", "d-9"], "path is 'd-9', but a film has no camera path; leave --path or --film out"),
    ],
)
def test_bad_arguments_get_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "out"), "--film", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_without_the_file_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(film, "WEIGHTS", tmp_path / "demo_film.safetensors")
    assert main(["demo", "--out", str(tmp_path / "out"), "--film"]) == 2
    assert "demo_film.safetensors is not there, but holds the demo film's weights" in capsys.readouterr().err
