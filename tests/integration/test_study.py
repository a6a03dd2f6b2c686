"""`qvg study` on a real ComfyUI server: methods set through QVG KV Cache, pictures, latents and reports fetched."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.harness.plan import read_plan
from comfyui_qvg.qvg.harness.store import Store
from comfyui_qvg.qvg.harness.work import job, unpacked
from comfyui_qvg.qvg.server.connection import Server
from PIL import Image

from .client import ROOT, Client

FRAMES = 24


def test_the_demo_template_on_a_server(client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = {
        "kind": "comfyui",
        "workflow": str(ROOT / "workflows" / "api" / "demo_world.json"),
        "prompt_input": "QVG Camera Path.path",
        "frames_input": "QVG Camera Path.frames",
        "seed_inputs": ["RandomNoise.noise_seed", "Demo World Start.map_seed"],
        "set": {"2.span_frames": 8},
        "given_frames": 4,
    }
    data = {
        "methods": ["balanced", "FLOWCACHE_SOFT_PRUNE_INT4", "NVFP4"],
        "seeds": [7],
        "exploratory": True,
        "frames": [FRAMES],
        "prompts": ["d-4,a-4"],
        "targets": [target],
    }
    (tmp_path / "plan.json").write_text(json.dumps(data))
    saved = set(client.base.glob("output/**/*.mp4"))
    out = tmp_path / "out"
    server = client.url.removeprefix("http://")
    assert main(["study", "run", str(tmp_path / "plan.json"), "--out", str(out), "--server", server]) == 0
    said = capsys.readouterr().out
    assert "4 videos (comfyui: 1 cases x 4 methods); 4 of them to make" in said and "made 4 videos" in said
    plan, store = read_plan(data, tmp_path), Store(out)
    (case, methods) = plan.cases()[0]
    rows = {}
    for name in methods:
        work = job(plan, case, name)
        found = store.row(work.key, work.version)
        assert found is not None, name
        rows[name] = found
    exact = job(plan, case, "exact")
    pictures = unpacked(store.exact(exact.key, exact.version) or b"")
    assert pictures.shape == (FRAMES, 64, 64, 3) and pictures.std() > 10
    assert rows["exact"]["psnr_db"]["all"] == 100 and rows["exact"]["bytes"]["ratio"] == pytest.approx(1, abs=0.05)
    for name in methods[1:]:
        assert 15 < rows[name]["psnr_db"]["all"] < 100, name
        assert rows[name]["bytes"]["ratio"] > 1.2 and rows[name]["bytes"]["components"]["codes"] > 0
        assert len(rows[name]["latents"]) == 64
    assert len({row["latents"] for row in rows.values()}) == 4
    assert np.isfinite(rows["balanced"]["seconds"]["per_generated_frame"])
    assert set(client.base.glob("output/**/*.mp4")) == saved  # nothing that nobody asked for
    assert main(["study", "resume", "--out", str(out), "--server", server]) == 0
    assert "made 0 videos" in capsys.readouterr().out


def test_a_start_picture_reaches_the_server(client: Client, tmp_path: Path) -> None:
    into = io.BytesIO()
    Image.fromarray(np.arange(48 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 48, 3)).save(into, "png")
    server = Server(client.url, 10.0, lambda text: None)
    names = {server.upload("qvg-study-start.png", into.getvalue()) for _ in range(2)}  # the same again takes no second name
    assert names == {"qvg-study-start.png"}
    server.download({"filename": names.pop(), "type": "input"}, tmp_path / "back.png")
    assert (tmp_path / "back.png").read_bytes() == into.getvalue()


def test_a_server_that_is_not_there_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = {"kind": "comfyui", "workflow": str(ROOT / "workflows" / "api" / "demo_world.json"), "seed_inputs": ["5.noise_seed"]}
    data = {"methods": ["balanced"], "seeds": [1, 2, 3], "frames": [8], "prompts": ["x"], "targets": [target]}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    arguments = ["study", "run", str(tmp_path / "plan.json"), "--out", str(tmp_path / "out"), "--server", "127.0.0.1:9"]
    assert main(arguments) == 1
    assert "no server is left for 6 videos (no server answers at http://127.0.0.1:9" in capsys.readouterr().err
