"""Krea Realtime: its file is told from its relatives', and its schedules are those of its own sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import UnsupportedModelError
from comfyui_qvg.qvg.models import registry
from comfyui_qvg.qvg.models.convert import plan_conversion
from comfyui_qvg.qvg.models.krea.family import FAMILY, VARIANTS
from comfyui_qvg.qvg.models.wan import WanDenoiser
from comfyui_qvg.qvg.sampling.renoise import check_levels
from safetensors.torch import save_file
from torch import Tensor

from ....integration import tiny_wan
from ....sparse_files import wan, write_sparse


def _file(path: Path, name: str, metadata: dict[str, str] | None = None, width: int | None = None) -> Path:
    if width is not None:
        return write_sparse(path / name, {f"model.{key}": tensor for key, tensor in wan(width // 128).items()}, metadata)
    save_file({f"model.{key}": tensor for key, tensor in tiny_wan.state_dict(seed=1).items()}, path / name, metadata)
    return path / name


@pytest.mark.parametrize("name", ["krea-realtime-video-14b.safetensors", "Krea_Realtime_14B_fp8.safetensors"])
def test_known_by_its_name(tmp_path: Path, name: str) -> None:
    family, read = registry.read(_file(tmp_path, name, width=5120))
    assert family is FAMILY and read.variant is VARIANTS["krea-realtime"] and read.found.how == "its name"


def test_known_by_choice_and_by_metadata(tmp_path: Path) -> None:
    file = _file(tmp_path, "model14b.safetensors")
    with pytest.raises(UnsupportedModelError, match="nothing says that it is causal.*krea-realtime-4step"):
        registry.read(file)
    assert registry.read(file, "krea-realtime-4step", node="Load Causal Wan")[1].variant is VARIANTS["krea-realtime-4step"]
    metadata = plan_conversion(file, "krea-realtime").metadata
    again = _file(tmp_path, "again.safetensors", metadata)
    assert registry.read(again)[0] is FAMILY and registry.read(again)[1].found.how == "its metadata"


def test_five_steps_and_four(tmp_path: Path) -> None:
    table = [5 * s / (1 + 4 * s) for s in torch.linspace(1, 0, 1001, dtype=torch.float64).tolist()]  # shift 5
    for name, steps in (("krea-realtime", 5), ("krea-realtime-4step", 4)):
        variant = VARIANTS[name]
        check_levels(variant.sigmas)
        # Its sampler takes steps 1000 - linspace(1000, 0, n) of the table, the last of which is beyond its end.
        indices = [1000 - int(each) for each in torch.linspace(1000, 0, steps).tolist()]
        expected = [table[min(index, 999)] for index in indices]
        assert variant.sigmas == pytest.approx([*expected, 0], abs=1e-9)
        assert variant.told_zero_sigma == variant.sigmas[-2] and len(variant.sigmas) == steps + 1


def test_the_last_step_is_told_zero() -> None:
    told: list[float] = []

    class Network:
        patch_embedding = torch.nn.Conv3d(1, 1, 1)

        def __call__(self, x: Tensor, t: Tensor, prompt: Any, attend: Any) -> Tensor:
            told.append(float(t[0, 0]))
            return torch.ones_like(x)

    class Prompt:
        def check(self, cache: Any) -> None:
            """Fits everything."""

    sigma = VARIANTS["krea-realtime"].told_zero_sigma
    denoiser = WanDenoiser(Network(), Prompt(), 2, 2, told_zero_sigma=sigma)  # type: ignore[arg-type]
    x = torch.zeros(1, 1, 1, 2, 2)
    clean = [denoiser.predict_clean(x, level, None) for level in (0.625, sigma)]  # type: ignore[arg-type]
    assert told == [625.0, 0.0]
    assert torch.equal(clean[1], x - sigma)  # what is taken away is what is there
