"""The four files of HY-WorldPlay on HunyuanVideo 1.5, told apart, refused and converted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg import ConfigError, UnsupportedModelError
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models.common.weight_files import open_weights
from comfyui_qvg.qvg.models.common.world_schedule import timesteps
from comfyui_qvg.qvg.models.convert import plan_conversion
from comfyui_qvg.qvg.models.worldplay_hunyuan.checkpoint import find_stage, is_worldplay_hunyuan, read_worldplay_hunyuan
from comfyui_qvg.qvg.models.worldplay_hunyuan.network import load_worldplay_hunyuan
from comfyui_qvg.qvg.models.worldplay_hunyuan.variants import WORLDPLAY_8B
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ....golden_worldplay_hunyuan import LAYERS, WIDTH, weights


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return weights()


@pytest.fixture
def source(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    """As it is released."""
    folder = tmp_path / "ar_distilled_action_model"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("ar_distilled_action_model/diffusion_pytorch_model.safetensors", "worldplay-8b-distilled"),
        ("ar_distilled_action_model/model.safetensors", "worldplay-8b-distilled"),
        ("diffusion_models/model.safetensors", "worldplay-8b-distilled"),
        ("ar_model/diffusion_pytorch_model.safetensors", "worldplay-8b"),
        ("ar_rl_model/diffusion_pytorch_model.safetensors", "worldplay-8b-rl"),
        ("bidirectional_model/diffusion_pytorch_model.safetensors", "worldplay-8b-bidirectional"),
        ("diffusion_models/HY-WorldPlay_8B_distilled_bf16.safetensors", "worldplay-8b-distilled"),
        ("ar_model/worldplay_8b_ar_rl_model.safetensors", "worldplay-8b-rl"),
    ],
)
def test_stages_by_name(name: str, stage: str) -> None:
    assert find_stage(Path(name)).variant is WORLDPLAY_8B[stage]


def test_stages_by_choice_and_metadata() -> None:
    nameless = Path("diffusion_models/diffusion_pytorch_model.safetensors")
    with pytest.raises(ConfigError, match="does not say of which stage; choose one of worldplay-8b-distilled"):
        find_stage(nameless)
    assert find_stage(nameless, "worldplay-8b-rl").how == "your choice"
    assert find_stage(Path("ar_model/x.safetensors"), metadata={"qvg_variant": "worldplay-8b-rl"}).how == "its metadata"
    with pytest.raises(ConfigError, match="variant is 'self-forcing', but .* is HY-WorldPlay on HunyuanVideo 1.5"):
        find_stage(nameless, "self-forcing")


def test_how_they_are_run() -> None:
    """The scheduler's own timesteps, shift 5."""
    distilled, full = WORLDPLAY_8B["worldplay-8b-distilled"], WORLDPLAY_8B["worldplay-8b"]
    assert [1000 * sigma for sigma in distilled.sigmas] == pytest.approx(timesteps(4, 5.0))
    assert [1000 * sigma for sigma in full.sigmas] == pytest.approx(timesteps(50, 5.0))
    assert (distilled.guidance, full.guidance) == (1.0, 6.0)


@pytest.mark.parametrize("dtype", [None, "fp32"])
def test_convert(
    source: Path, tmp_path: Path, state: dict[str, Tensor], dtype: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every tensor by ComfyUI's name, rounded once; queries, keys, values merged in that order; read back as the same model."""
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(source), str(out), *(["--dtype", dtype] if dtype else []), "--json"]) == 0
    written = load_file(out)
    wanted = torch.float32 if dtype else torch.bfloat16
    assert {tensor.dtype for tensor in written.values()} == {wanted}
    merged = written["double_blocks.1.txt_attn.qkv.weight"]
    apart = [state[f"double_blocks.1.txt_attn_{which}.weight"] for which in "qkv"]
    assert torch.equal(merged, torch.cat(apart).to(wanted))
    assert torch.equal(written["action_in.out_layer.bias"], state["action_in.mlp.2.bias"].to(wanted))
    assert torch.equal(
        written["double_blocks.2.img_attn_prope_proj.weight"], state["double_blocks.2.img_attn_prope_proj.weight"].to(wanted)
    )
    result = json.loads(capsys.readouterr().out)
    assert (result["variant"], result["tensors"], result["known_by"]) == ("worldplay-8b-distilled", 26 * LAYERS + 69, "its name")
    assert result["bytes"] == out.stat().st_size and result["dtype"] == (dtype or "bf16")
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"qvg_variant": "worldplay-8b-distilled"}
    again = read_worldplay_hunyuan(out)
    assert again.found.how == "its metadata" and not again.joined and len(again.tensors) == 26 * LAYERS + 69
    ours, theirs = (load_worldplay_hunyuan(x).network.state_dict() for x in (written, state))
    assert all(torch.equal(ours[name], weight.to(wanted).float()) for name, weight in theirs.items())


def test_a_converted_file_is_converted_again(source: Path, tmp_path: Path) -> None:
    """Nothing is left to be merged; to another type, say."""
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    assert main(["convert", str(source), str(first), "--dtype", "fp32"]) == 0
    assert main(["convert", str(first), str(second), "--dtype", "fp32"]) == 0
    assert first.read_bytes() == second.read_bytes()


def test_the_bidirectional_one_is_said_not_to_run(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", str(source), str(tmp_path / "out.safetensors"), "--variant", "worldplay-8b-bidirectional"]
    assert main(arguments) == 0
    assert "QVG does not run it" in capsys.readouterr().err


def test_no_lora_is_merged(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="merge no LoRA here"):
        plan_conversion(source, lora=tmp_path / "lora.safetensors")


def _base(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight for name, weight in state.items() if "prope" not in name and "action" not in name}


def _wrong_shape(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "double_blocks.0.txt_attn_k.weight": torch.zeros(WIDTH - 1, WIDTH)}


def _a_number(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "double_blocks.0.txt_attn_proj.bias": torch.zeros(())}


def _keys_of_another_width(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "double_blocks.0.txt_attn_k.weight": torch.zeros(WIDTH, WIDTH - 1)}


def _a_side_of_nothing(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "byt5_in.fc1.weight": torch.zeros(0, 0)}


def _one_missing(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight for name, weight in state.items() if name != "double_blocks.1.txt_mod.linear.bias"}


def _other_channels(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        **state,
        "img_in.proj.weight": torch.zeros(WIDTH, 33, 1, 1, 1),
        "final_layer.linear.weight": torch.zeros(16, WIDTH),
    } | {"final_layer.linear.bias": torch.zeros(16)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_base, "model.safetensors: .*HunyuanVideo without HY-WorldPlay's layers .*get the file in ar_distilled_action_model"),
        (_wrong_shape, r"double_blocks.0.txt_attn.qkv.weight is \[767, 256\], but \[768, 256\]"),
        (_a_number, r"double_blocks.0.txt_attn.proj.bias is \[\], but \[256\]"),
        (_keys_of_another_width, r"txt_attn.qkv.weight is \[\[256, 256\], \[256, 255\], \[256, 256\]\], but \[768, 256\]"),
        (_a_side_of_nothing, "its first weights are of no HunyuanVideo's shape .one of their sides is 0."),
        (_one_missing, r"holds 146 weights, but .* has 147 \(it lacks double_blocks.1.txt_mod.lin.bias\)"),
        (_other_channels, "16 latent channels, but HunyuanVideo 1.5 32"),
    ],
)
def test_files_that_are_refused(
    source: Path, tmp_path: Path, state: dict[str, Tensor], change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str
) -> None:
    """By convert, in one sentence, before anything is written."""
    save_file(change(state), source)
    assert is_worldplay_hunyuan(open_weights(source))
    with pytest.raises(UnsupportedModelError, match=said) as refused:
        plan_conversion(source)
    assert "\n" not in str(refused.value)
    assert main(["convert", str(source), str(tmp_path / "out.safetensors")]) == 2
    assert not (tmp_path / "out.safetensors").exists()
