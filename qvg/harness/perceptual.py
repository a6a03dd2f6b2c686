"""LPIPS and VBench, where their packages and weights are on this machine. Nothing is downloaded: what is missing is the reason
why a column is empty."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .videos import Pictures

# What torchvision's AlexNet is kept as by torch.hub.
_ALEXNET = "alexnet-owt-*.pth"
VBENCH_DIMENSIONS = ("background_consistency", "imaging_quality", "subject_consistency", "aesthetic_quality")
# What each dimension loads, below VBench's cache folder.
_VBENCH_FILES = {
    "background_consistency": "clip_model/ViT-B-32.pt",
    "imaging_quality": "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
    "subject_consistency": "dino_model/dino_vitbase16_pretrain.pth",
    "aesthetic_quality": "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
}
_AT_ONCE = 16


def lpips_missing() -> str:
    """Why LPIPS cannot be measured here; "" where it can."""
    if importlib.util.find_spec("lpips") is None:
        return "package lpips is not installed"
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not list(folder.glob(_ALEXNET)):
        return f"AlexNet's weights ({_ALEXNET}) are not in torch.hub's checkpoints"
    return ""


def vbench_missing(dimension: str) -> str:
    """Why a dimension of VBench cannot be measured here; "" where it can."""
    if importlib.util.find_spec("vbench") is None:
        return "package vbench is not installed"
    folder = Path(os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")
    wanted = _VBENCH_FILES[dimension]
    return "" if (folder / wanted).is_file() else f"its weights {wanted} are not in VBench's cache folder"


def perceptual(exact: Pictures, made: Pictures, given: int, video: Path | None, metrics: tuple[str, ...]) -> dict[str, Any]:
    """{"lpips": {...}, "vbench": {dimension: value}, "missing": {name: reason}} as far as it was asked for. LPIPS is AlexNet's,
    inputs in -1..1, on the pictures before encoding; VBench reads the video file, in its mode for inputs of one's own."""
    found: dict[str, Any] = {"missing": {}}
    if "lpips" in metrics:
        why = lpips_missing()
        if why:
            found["missing"]["lpips"] = why
        else:
            curve = lpips_curve(exact, made)
            found["lpips"] = {"first_frame": curve[given], "all": float(np.mean(curve[given:])), "curve": curve}
    if "vbench" in metrics:
        for dimension in VBENCH_DIMENSIONS:
            why = vbench_missing(dimension) or ("no video file was written" if video is None else "")
            if why:
                found["missing"][dimension] = why
            else:
                assert video is not None
                found.setdefault("vbench", {})[dimension] = vbench_value(dimension, video)
    return found


@lru_cache(maxsize=1)
def _lpips_network() -> Any:
    import lpips

    return lpips.LPIPS(net="alex", verbose=False).eval()


def lpips_curve(exact: Pictures, made: Pictures) -> list[float]:
    """Of every picture."""
    network, curve = _lpips_network(), list[float]()
    with torch.inference_mode():
        for first in range(0, len(exact), _AT_ONCE):
            pair = [
                torch.from_numpy(np.ascontiguousarray(each[first : first + _AT_ONCE])).movedim(-1, 1).float() / 127.5 - 1
                for each in (exact, made)
            ]
            curve += network(*pair).flatten().tolist()
    return curve


def vbench_value(dimension: str, video: Path) -> float:
    """One dimension of one video, by VBench's own code."""
    from vbench import VBench

    with tempfile.TemporaryDirectory(prefix="qvg-vbench-") as folder:
        judge = VBench(torch.device("cuda" if torch.cuda.is_available() else "cpu"), None, folder)
        judge.evaluate(videos_path=str(video), name="one", dimension_list=[dimension], local=True, mode="custom_input")
        results = sorted(Path(folder).glob("*_eval_results.json"))
        return float(json.loads(results[-1].read_text(encoding="utf-8"))[dimension][0])
