"""`qvg study`: plans, rows that are made once, engines, what is wrong said in a sentence."""

from __future__ import annotations

import csv
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_qvg.qvg.bench.study import bench_study
from comfyui_qvg.qvg.bench.walks import FIRST_SEED, PATHS
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.errors import ConfigError, MediaError, ServerError
from comfyui_qvg.qvg.harness import store as stores
from comfyui_qvg.qvg.harness.choices import choices, groups
from comfyui_qvg.qvg.harness.defaults import BUILT_IN
from comfyui_qvg.qvg.harness.engine import run_local
from comfyui_qvg.qvg.harness.metrics import cautions, front
from comfyui_qvg.qvg.harness.page_data import sets_of, videos_of
from comfyui_qvg.qvg.harness.phases import PhaseWatch
from comfyui_qvg.qvg.harness.plan import StudyPlan, load_plan, read_plan
from comfyui_qvg.qvg.harness.published import read_published
from comfyui_qvg.qvg.harness.statistics import paired, sign_test
from comfyui_qvg.qvg.harness.store import Store
from comfyui_qvg.qvg.harness.table import write_table
from comfyui_qvg.qvg.harness.videos import closeness, drift
from comfyui_qvg.qvg.harness.walks import TAKEN
from comfyui_qvg.qvg.harness.work import batches, check, counted, job, perform

HERE = Path(__file__).parent
REHEARSAL: dict[str, Any] = {
    "methods": ["balanced", "RTN_INT4", "RTN_INT4_REFRESH"],
    "seeds": [1, 2, 3],
    "frames": [12],
    "prompts": ["a", "b"],
    "targets": [{"kind": "rehearsal"}],
}


def plan(**changes: Any) -> StudyPlan:
    return read_plan({**REHEARSAL, **changes}, HERE)


def run(asked: StudyPlan, store: Store, **more: Any) -> Any:
    store.prepare(asked)
    return run_local(batches(asked, store), store, lambda job, failure="": None, **more)


def test_built_in_plans_can_be_read_and_made() -> None:
    assert set(BUILT_IN) == {"quick", "full"}
    for name in BUILT_IN:
        found = load_plan(name)
        check(found)
        assert StudyPlan.from_json(found.to_json()) == found
    assert all(len(target.seeds) >= 3 for target in load_plan("full").targets if "," in target.name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ["best"]}, "method 'best' is not known; use @presets"),
        ({"metrics": ["psnr", "fvd"]}, "metric 'fvd' is not known; use some of psnr, ssim, lpips, vbench"),
        ({"targets": [{"kind": "sora"}]}, "target 'sora' is not known; kind is one of world, film"),
        ({"sedes": [1]}, "the plan has a key 'sedes', but its keys are name"),
        ({"targets": [{"kind": "world", "server": "x"}]}, "target world has a key 'server'"),
        ({"seeds": [1, 2]}, "has 2 seeds, but a comparison needs 3 or more"),
        ({"seeds": [1, 2, -3]}, "seeds is .*, but must be whole numbers from 0"),
        ({"seeds": [1, 2, True]}, "seeds is .*, but must be whole numbers"),
        ({"frames": []}, "target 'rehearsal' has no frames"),
        ({"frames": [1.5]}, "frames is .*, but must be whole numbers"),
        ({"prompts": [3]}, "prompts is .*, but must be a list of texts"),
        ({"baseline": "qvg"}, "baseline 'qvg' is none of the plan's methods"),
        ({"window_frames": 0}, "window_frames is 0"),
        ({"targets": []}, "the plan has no targets"),
        ({"targets": [{"kind": "rehearsal"}, {"kind": "rehearsal"}]}, "two targets are called 'rehearsal'"),
        ({"targets": [{"kind": "film"}], "methods": ["FLOWCACHE_NATIVE"]}, "changes the denoiser"),
        ({"targets": [{"kind": "comfyui"}], "methods": ["RTN_INT4 (published)"]}, "QVG KV Cache cannot set it"),
    ],
)
def test_what_is_wrong_in_a_plan_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": [{"kind": "world"}]}, "path|key"),
        ({"targets": [{"kind": "film"}]}, "prompt 'a' is none of the film's"),
        ({"targets": [{"kind": "longcat"}]}, "73 condition pictures"),
        ({"targets": [{"kind": "network"}]}, "a network needs a checkpoint's file"),
        ({"targets": [{"kind": "comfyui"}]}, "has no workflow"),
        ({"targets": [{"kind": "rehearsal", "seconds": -1}]}, "seconds is -1"),
    ],
)
def test_what_no_target_can_make_is_said_before_anything_is_made(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(plan(**changes))


def test_a_plan_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text, said in (
        ("none.toml", None, "cannot be read"),
        ("bad.toml", "a = [", "is not TOML"),
        ("bad.json", "{", "is not JSON"),
        ("list.json", "[]", "must be a table"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        assert main(["study", "run", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_finished_rows_are_never_made_again(tmp_path: Path) -> None:
    asked, store, made = plan(), Store(tmp_path), list[str]()

    def counting(work: Any, exact: Any, server: str) -> Any:
        made.append(work.key)
        if len(made) == 5:
            raise KeyboardInterrupt
        return perform(work, exact, server)

    with pytest.raises(KeyboardInterrupt):
        run(asked, store, perform=counting)
    assert len(list((tmp_path / "rows").iterdir())) == 4
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    report = run(asked, store, perform=counting)
    # REFRESH, corrected, is the same as the method without it: one row for two names.
    assert len(set(made)) == 3 * 2 * 3 and report.made == 14 and not report.failed
    assert len(list((tmp_path / "rows").iterdir())) == 18
    assert all(path.stat().st_mtime_ns == when for path, when in times.items())
    assert counted(batches(asked, store), store) == 0 and run(asked, store, perform=counting).made == 0
    (found,) = sets_of(asked, store)
    assert {each["name"]: each["cases"] for each in found["methods"]} == dict.fromkeys(
        ("exact", "balanced", "RTN_INT4", "RTN_INT4_REFRESH"), 6
    )
    write_table([found], tmp_path / "methods.csv")
    with (tmp_path / "methods.csv").open(newline="") as file:
        lines = {line["method"]: line for line in csv.DictReader(file)}
    cases = [float(value) for value in lines["balanced"]["psnr_by_case"].split()]
    exact = [float(value) for value in lines["exact"]["psnr_by_case"].split()]
    assert exact == [100.0] * 6 and float(lines["balanced"]["psnr"]) == pytest.approx(np.mean(cases), abs=1e-3)
    assert lines["balanced"]["baseline"] == "exact" and lines["balanced"]["lpips"] == ""
    assert float(lines["balanced"]["over_mean"]) == pytest.approx(np.mean(cases) - 100, abs=0.01)
    videos, left = videos_of(asked, store, 10**9)
    assert len(videos) == 24 and left == 0 and videos_of(asked, store, 10)[0] == {}


def test_shards_are_the_whole_and_do_not_meet(tmp_path: Path) -> None:
    asked, store = plan(), Store(tmp_path)
    parts = [{batch.exact.key for batch in batches(asked, store, (i, 4))} for i in (1, 2, 3, 4)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 6


def test_one_that_fails_does_not_take_the_others_along(tmp_path: Path) -> None:
    def failing(work: Any, exact: Any, server: str) -> Any:
        if work.case.prompt == "a" and work.method == "exact":
            raise ConfigError("no such thing")
        return perform(work, exact, server)

    report = run(plan(), Store(tmp_path), perform=failing)
    assert report.made == 9 and len(report.failed) == 9
    assert sum("its exact video could not be made: no such thing" in why for _, why in report.failed) == 6


def test_a_full_disk_ends_it_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, store, written = plan(), Store(tmp_path), stores._write

    def full(path: Path, content: bytes) -> None:
        if len(list((tmp_path / "rows").iterdir())) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written(path, content)

    monkeypatch.setattr(stores, "_write", full)
    with pytest.raises(
        MediaError, match="No space left on device.*finished rows are kept: free space there, then `qvg study resume`"
    ):
        run(asked, store)
    assert len(list((tmp_path / "rows").iterdir())) == 3
    monkeypatch.undo()
    assert run(asked, store).made == 15


def test_rows_of_another_version_are_said_and_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, store = plan(), Store(tmp_path)
    monkeypatch.setattr("comfyui_qvg.qvg.harness.work.version", lambda kind: "0123456789ab")
    run(asked, store)
    monkeypatch.undo()
    assert counted(batches(asked, store), store) == 18 and sets_of(asked, store) == []
    run(plan(prompts=["a"]), store)
    (found,) = sets_of(asked, store)
    assert all(each["cases"] == 3 for each in found["methods"])
    assert (
        "24 rows of another version lie in the folder" in " ".join(found["notes"])
        and "12 of 24 videos are there" in found["notes"]
    )


def test_a_damaged_row_is_made_again_by_hand_only(tmp_path: Path) -> None:
    asked, store = plan(prompts=["a"]), Store(tmp_path)
    run(asked, store)
    victim = sorted((tmp_path / "rows").iterdir())[0]
    victim.write_text("{")
    key, version = victim.stem.split("-")
    assert store.row(key, version) is None
    victim.unlink()
    assert run(asked, store).made == 1


def test_walks_of_the_benchmark_are_the_same_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames, method = 6, "FLOWCACHE_SOFT_PRUNE_INT4"
    bench_study(tmp_path / "bench", [method], ["corrected"], worlds=1, frames=frames)
    target = {"kind": "world", "prompts": [PATHS[0]], "seeds": [FIRST_SEED], "frames": frames}
    data = {"methods": [method], "targets": [target], "exploratory": True, "window_frames": 1}
    (tmp_path / "p.json").write_text(json.dumps(data))
    arguments = ["study", "run", str(tmp_path / "p.json"), "--out"]
    walks = ["--walks", str(tmp_path / "bench" / "walks")]
    assert main([*arguments, str(tmp_path / "taken"), *walks]) == 0 and main([*arguments, str(tmp_path / "made")]) == 0
    asked = read_plan(data, tmp_path)
    ((case, _),) = asked.cases()
    work = job(asked, case, method)
    taken, made = (Store(tmp_path / name).row(work.key, work.version) or {} for name in ("taken", "made"))
    assert taken["remarks"] == [TAKEN] and TAKEN not in made["remarks"]
    for name in ("psnr_db", "ssim", "drift", "first_divergent_frame", "visits_db", "given_frames", "pictures"):
        assert taken[name] == made[name], name
    assert taken["curves"]["psnr_db"] == made["curves"]["psnr_db"] and made["psnr_db"]["all"] < 100
    for name in ("components", "cache", "peak_cache", "exact", "ratio"):
        assert taken["bytes"][name] == made["bytes"][name], name
    (found,) = sets_of(asked, Store(tmp_path / "taken"))
    assert "seconds are left out: 1 of 2 methods have none" in found["notes"]
    # Walks that were compared with other pictures are not taken.
    (exact,) = (tmp_path / "bench" / "walks").glob("exact-*.npz")
    np.savez_compressed(exact, pictures=np.zeros((frames, 64, 64, 3), np.uint8))
    Store(tmp_path / "taken").row_path(work.key, work.version).unlink()
    capsys.readouterr()
    assert main([*arguments, str(tmp_path / "taken"), *walks]) == 1
    assert "or not the one made here" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "other"), "--walks", str(tmp_path)]) == 2
    assert "has no walks (walk-*.json)" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "other"), *walks, "--engine", "ray"]) == 2


def test_a_second_result_is_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare(plan())
    assert store.put("k", "v", {"format": 1, "a": 1}, b"", None)
    assert not store.put("k", "v", {"format": 1, "a": 2}, b"", None)
    assert store.row("k", "v") == {"format": 1, "a": 1}


class Servers:
    """Videos as servers would make them; `dies` after so many."""

    def __init__(self, dies: dict[str, int]):
        self.dies, self.made = dies, dict[str, int]()

    def __call__(self, work: Any, exact: Any, server: str) -> Any:
        self.made[server] = self.made.get(server, 0) + 1
        if self.made[server] > self.dies.get(server, 10**6):
            raise ServerError(f"{server} is gone")
        from dataclasses import replace

        return perform(replace(work, target=replace(work.target, kind="rehearsal", options={"seconds": 0.05})), exact, "")


def workflow_plan(tmp_path: Path) -> StudyPlan:
    (tmp_path / "w.json").write_text("{}")
    target = {"kind": "comfyui", "workflow": "w.json", "seed_inputs": ["1.seed"]}
    return read_plan({**REHEARSAL, "methods": ["balanced", "qvg"], "targets": [target]}, tmp_path)


def test_a_server_that_dies_gives_its_video_to_another(tmp_path: Path) -> None:
    asked, store, made_by = workflow_plan(tmp_path), Store(tmp_path / "out"), Servers({"b": 2})
    report = run(asked, store, servers=["a", "b"], perform=made_by)
    assert report.made == 18 and not report.failed and made_by.made["b"] == 3
    with pytest.raises(ServerError, match="no server is left for 18 videos .*b is gone"):
        run(asked, Store(tmp_path / "other"), servers=["b"], perform=Servers({"b": 0}))
    assert main(["study", "resume", "--out", str(tmp_path / "out")]) == 2  # no server was named


def test_three_numbers_drift_and_slope() -> None:
    exact = np.full((30, 16, 16, 3), 128, np.uint8)
    made = exact.copy()
    for index in range(10, 30):
        made[index] += np.uint8(index - 9)
    found = closeness(exact, made, given=4, window_frames=5)
    psnr = found["psnr_db"]
    assert psnr["first_frame"] == 100 and found["first_divergent_frame"] == 18
    assert psnr["first_divergent"] == pytest.approx(-20 * np.log10(9 / 255))
    errors = [0.0] * 6 + [((i + 1) / 255) ** 2 for i in range(20)]
    assert psnr["all"] == pytest.approx(-10 * np.log10(np.mean(errors)))
    windows = found["drift"]["windows"]
    assert [(each["first"], each["last"]) for each in windows] == [(4, 8), (9, 13), (14, 18), (19, 23), (24, 28)]
    assert found["drift"]["slope_psnr_db_per_100"] < -100
    assert closeness(exact, exact, 4, 5)["first_divergent_frame"] is None
    assert drift([0.0] * 5, [1.0] * 5, 1, 12)["slope_psnr_db_per_100"] is None


def test_the_sign_test_against_scipy() -> None:
    from scipy.stats import binomtest

    for better in range(9):
        for worse in range(9):
            expected = binomtest(better, better + worse).pvalue if better + worse else 1.0
            assert sign_test(better, worse) == pytest.approx(expected)
    found = paired([3.0, 4.0, 5.0], [1.0, 4.0, 3.0])
    assert found.difference.mean == pytest.approx(4 / 3) and (found.better, found.worse) == (2, 0)


def test_fronts_and_cautions() -> None:
    rows: list[dict[str, float | None]] = [
        {"ssim": 1.0, "compression": 1.0},
        {"ssim": 0.9, "compression": 4.0},
        {"ssim": 0.8, "compression": 4.0},
        {"ssim": 0.9, "compression": 4.0},
        {"ssim": None, "compression": 9.0},
    ]
    assert front(rows, ("ssim", "lpips", "compression")) == {0, 1, 3}
    found = cautions(
        {"ssim": 0.9, "compression": 1.05, "peak": 5.0, "runtime": 3.0}, {"ssim": 1.0, "peak": 4.0, "runtime": 1.0}, 2
    )
    assert len(found) == 5 and any("peak is above exact's" in each for each in found)


def test_phases_count_the_innermost_and_say_how() -> None:
    with PhaseWatch() as watch, watch.phase("denoise"):
        kept = np.ones(20_000_000)
        with watch.phase("encode"):
            sum(range(300_000))
        kept[0] = 2
    assert watch.seconds["encode"] > 0 and watch.seconds["denoise"] > 0 and watch.seconds["decode"] == 0
    memory = watch.memory()
    assert memory["how"].startswith(("stand-in", "bytes that torch", "not measured"))
    if "denoise" in memory:
        assert memory["denoise"]["peak_bytes"] >= 150_000_000 >= 0 and "decode" not in memory


def test_every_method_has_a_name_and_groups_know_them() -> None:
    known = choices()
    assert {name for names in groups().values() for name in names} <= set(known)
    assert known["RTN_INT4 (published)"].published and known["balanced"].node == {"cache": "preset", "cache.preset": "balanced"}
    assert known["NVFP4"].node == {"cache": "study", "cache.method": "NVFP4"}


def test_the_studys_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["method", "ssim", "psnr", "peak_vram_gb"], ["BF16", "1.0", "inf", "2"], ["X", "0.5", "nan", "3"]])
    found = read_published(path)
    values = {each["name"]: each["values"] for each in found["methods"]}
    assert values["X"]["psnr"] is None and values["BF16"]["peak"] == pytest.approx(2147.5)
    for text, said in (("a,b\n1,2\n", "has no columns method and ssim"), ("", "has no columns")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_published(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is no CSV"):
        read_published(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_published(tmp_path / "none.csv")


def test_the_command_runs_resumes_and_says_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.json").write_text(json.dumps({**REHEARSAL, "prompts": ["a"], "seeds": [1, 2, 3]}))
    out = str(tmp_path / "out")
    assert main(["study", "run", str(tmp_path / "p.json"), "--out", out]) == 0
    assert "12 videos (rehearsal: 3 cases x 4 methods); 9 of them to make" in capsys.readouterr().out
    assert main(["study", "resume", "--out", out]) == 0 and "made 0 videos" in capsys.readouterr().out
    assert main(["study", "size", "quick"]) == 0 and "videos (demo world" in capsys.readouterr().out
    for arguments, said in (
        (["run", "quick", "--out", out, "--engine", "slurm"], "engine is 'slurm', but must be local or ray"),
        (["run", "quick", "--out", out, "--shard", "3/2"], "shard is '3/2'"),
        (["resume", "--out", str(tmp_path / "nothing")], "begin with `qvg study run PLAN"),
        (["page", "--out", str(tmp_path / "nothing")], "begin with `qvg study run PLAN"),
    ):
        assert main(["study", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_ray_that_is_missing_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    (tmp_path / "p.json").write_text(json.dumps(REHEARSAL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        assert main(["study", "run", str(tmp_path / "p.json"), "--out", str(tmp_path / "out"), "--engine", "ray"]) == 2
    assert "needs Ray, which is not installed here; `pip install ray`, or use --engine local" in capsys.readouterr().err
