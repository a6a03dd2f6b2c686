"""HY-WorldPlay's files: as released, as converted, and those that are something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import ConfigError, UnsupportedModelError
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models import registry
from comfyui_qvg.qvg.models.common.weight_files import open_weights
from comfyui_qvg.qvg.models.common.world_schedule import timesteps
from comfyui_qvg.qvg.models.wan.variants import VARIANTS
from comfyui_qvg.qvg.models.worldplay_wan.checkpoint import is_worldplay, read_worldplay
from comfyui_qvg.qvg.models.worldplay_wan.names import AROUND, PER_BLOCK, wan_names
from comfyui_qvg.qvg.models.worldplay_wan.variants import WORLDPLAY_5B
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ....golden_worldplay import LAYERS, weights

COUNT = PER_BLOCK * LAYERS + AROUND
GET = "get wan_distilled_model/model.pt of tencent/HY-WorldPlay"


def released(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """As its trainer saved it: two sets of weights, names wrapped by FSDP, both ways that the official clean-up knows."""
    wrapped = {
        f"model._fsdp_wrapped_module.{name.replace('attn1', '_fsdp_wrapped_module.attn1')}": weight
        for name, weight in tensors.items()
    }
    return {"generator": wrapped, "generator_ema": {name: weight + 1 for name, weight in wrapped.items()}}


@pytest.fixture
def pickle(tmp_path: Path) -> Path:
    torch.save(released(weights()), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_the_whole_model_has_889_weights() -> None:
    assert PER_BLOCK * 30 + AROUND == 889


def test_sigmas_are_four_steps_of_shift_8() -> None:
    assert WORLDPLAY_5B.sigmas == pytest.approx([t / 1000 for t in timesteps(4, 8.0)], abs=1e-12)
    assert WORLDPLAY_5B.name not in VARIANTS


def test_a_released_file_is_read_by_comfyui_s_names(pickle: Path) -> None:
    read = read_worldplay(pickle)
    expected = wan_names(weights())
    assert is_worldplay(open_weights(pickle)) and read.weights == "generator" and read.variant is WORLDPLAY_5B
    assert read.tensors.keys() == expected.keys() and len(expected) == COUNT
    assert all(torch.equal(read.tensors[name], weight) for name, weight in expected.items())


def test_the_other_set_of_weights_by_choice(pickle: Path) -> None:
    read = read_worldplay(pickle, "generator_ema")
    assert torch.equal(read.tensors["head.modulation"], wan_names(weights())["head.modulation"] + 1)


def test_converted_and_read_again(pickle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "worldplay.safetensors"
    assert main(["convert", str(pickle), str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["variant"], said["known_by"], said["weights"]) == ("worldplay-5b", "its layers", "generator")
    assert said["tensors"] == COUNT and said["dtype"] == "bf16"
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"qvg_variant": "worldplay-5b"}
    again = read_worldplay(out)
    assert again.found.how == "its metadata" and again.weights == ""
    for name, weight in wan_names(weights()).items():
        kept = weight if name.startswith("patch_embedding") else weight.to(torch.bfloat16)
        assert torch.equal(again.tensors[name], kept), name


def _without_its_layers() -> dict[str, Tensor]:
    return {name: weight for name, weight in weights().items() if "prope" not in name and "action" not in name}


def _of_another_shape() -> dict[str, Tensor]:
    return weights() | {"blocks.1.attn1.to_out_prope.0.weight": torch.zeros(256, 128)}


BAD: dict[str, tuple[dict[str, Tensor], str]] = {
    "base, diffusers names": (
        _without_its_layers(),
        f"is a Wan without HY-WorldPlay's layers (it lacks 'action_embedding.0.weight'); {GET}",
    ),
    "a layer less": (
        {n: w for n, w in weights().items() if n != "blocks.1.attn1.to_out_prope.0.bias"},
        "it lacks 'blocks.1.self_attn.o_prope.bias'",
    ),
    "another one": (
        weights() | {"blocks.0.extra.weight": torch.zeros(1)},
        f"holds {COUNT + 1} weights, but HY-WorldPlay of 2 blocks has {COUNT}",
    ),
    "a wrong one": (
        {**{n: w for n, w in weights().items() if n != "proj_out.bias"}, "proj_in.bias": torch.zeros(1)},
        "lacks 'head.head.bias'",
    ),
    "of another shape": (_of_another_shape(), "blocks.1.self_attn.o_prope.weight is [256, 128], but [256, 256]"),
    "a flat embedding": (weights() | {"patch_embedding.weight": torch.zeros(4)}, "are of no Wan's shape"),
    "8B": (
        {"double_blocks.0.img_attn_prope_proj.weight": torch.zeros(2)},
        f"is HY-WorldPlay on HunyuanVideo 1.5 (8B), and this is the place of HY-WorldPlay on Wan 2.2 (5B): {GET}",
    ),
    "HunyuanVideo": ({"img_in.proj.weight": torch.zeros(2)}, "is a HunyuanVideo without HY-WorldPlay's layers"),
    "something else": ({"layer.weight": torch.zeros(2)}, "the checkpoint is no Wan at all"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_files_are_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    tensors, sentence = BAD[name]
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(UnsupportedModelError) as caught:
        read_worldplay(tmp_path / "file.safetensors")
    assert "file.safetensors" in str(caught.value) and sentence in str(caught.value)


def test_the_base_is_no_worldplay(tmp_path: Path) -> None:
    """Other families are made of Wan 2.2 5B, too: its 48 channels say nothing."""
    for name, tensors in (("diffusers", _without_its_layers()), ("comfyui", wan_names(weights()))):
        base = {key: weight for key, weight in tensors.items() if "prope" not in key and "action" not in key}
        save_file(base, tmp_path / f"{name}.safetensors")
        file = open_weights(tmp_path / f"{name}.safetensors")
        assert not is_worldplay(file)
        with pytest.raises(UnsupportedModelError, match=f"{name}.safetensors is Wan 2.2 5B without HY-WorldPlay's layers; {GET}"):
            registry.read(file, node="Load WorldPlay")


def test_convert_sends_a_base_to_the_right_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(_without_its_layers(), tmp_path / "base.safetensors")
    assert main(["convert", str(tmp_path / "base.safetensors"), str(tmp_path / "out.safetensors")]) == 2
    assert GET in capsys.readouterr().err and not (tmp_path / "out.safetensors").exists()


def test_another_variant_is_refused(pickle: Path, tmp_path: Path) -> None:
    from comfyui_qvg.qvg.models.convert import plan_conversion

    with pytest.raises(ConfigError, match="variant is 'self-forcing', but the file holds worldplay-5b"):
        plan_conversion(pickle, "self-forcing")


def test_the_causal_family_s_reader_names_its_loader(pickle: Path) -> None:
    from comfyui_qvg.qvg.models.wan.checkpoint import read_causal_wan

    with pytest.raises(UnsupportedModelError, match="is HY-WorldPlay, which walks through worlds; load it with 'Load WorldPlay'"):
        read_causal_wan(pickle)
