"""Members whose settings differ are told apart by their names, or something is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg import UnsupportedModelError
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models import registry
from comfyui_qvg.qvg.models.common.world_schedule import timesteps
from comfyui_qvg.qvg.models.wan.checkpoint import read_causal_wan
from comfyui_qvg.qvg.models.wan.variants import VARIANTS

from ....integration import tiny_wan

CONTENT = {"generator": tiny_wan.state_dict(seed=1)}
CONTENT["generator_ema"] = CONTENT["generator"]


def saved(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(CONTENT, path)
    return path


def doubts(path: Path) -> list[str]:
    """What is said of its name."""
    return [remark for remark in registry.read(path)[1].remarks if remark.startswith("its name says")]


def test_causvids_four_steps_are_warped() -> None:
    """1000, 750, 500, 250 bent by a shift of 8, as its configuration says."""
    variant = VARIANTS["causvid-4step"]
    assert [1000 * sigma for sigma in variant.sigmas] == pytest.approx(timesteps(4, 8.0))
    assert (variant.shift, variant.frames_per_block, variant.weights_key) == (8.0, 3, "generator")
    assert VARIANTS["causvid"].sigmas == (1.0, 0.757, 0.522, 0.0)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("CausVid/autoregressive_checkpoint_warp_4step_cfg2/model.pt", "causvid-4step"),
        ("autoregressive_checkpoint_warp_4step_cfg2/model.pt", "causvid-4step"),
        ("wan_causal_dmd_warp_4step_cfg2/model.pt", "causvid-4step"),
        ("causvid_warp_4step.pt", "causvid-4step"),
        ("CausVid-1.3B-4steps.pt", "causvid-4step"),
        ("4step_causvid.pt", "causvid-4step"),
        ("autoregressive_checkpoint/model.pt", "causvid"),
        ("causvid.pt", "causvid"),
        ("causvid_3step.pt", "causvid"),
        ("self_forcing_dmd.pt", "self-forcing"),
        ("self_forcing_sid_v2.pt", "self-forcing"),
        ("self_forcing_gan.pt", "self-forcing"),
        ("Self-Forcing-1.3B-4step.pt", "self-forcing"),
        ("self_forcing_5s.pt", "self-forcing"),
        ("chunkwise/causal_forcing.pt", "causal-forcing-chunkwise"),
        ("causal_forcing-framewise.pt", "causal-forcing-framewise"),
        ("causal-forcing++/framewise-2step.pt", "causal-forcing++-2step"),
        ("causal-forcing++_1step.pt", "causal-forcing++-1step"),
        ("longlive_base.pt", "longlive"),
        ("LongLive-1.3B.pt", "longlive"),
        ("self_forcing_dmd/model_ema.pt", "self-forcing"),
        ("self_forcing_dmd/diffusion_pytorch_model.bf16.pt", "self-forcing"),
        ("self_forcing_dmd/generator_ema_fp8_e4m3fn.pt", "self-forcing"),
        ("self_forcing_dmd/transformer/diffusion_pytorch_model.pt", "self-forcing"),
        ("self_forcing_dmd/checkpoint_model_000600/model.pt", "self-forcing"),
        ("wan_causal_dmd_warp_4step_cfg2/checkpoint_model_001000/model.pt", "causvid-4step"),
        ("krea-realtime-4step.pt", "krea-realtime-4step"),
    ],
)
def test_names_that_say_it_all(tmp_path: Path, name: str, variant: str) -> None:
    file = saved(tmp_path / name)
    found = registry.read(file)[1].variant
    assert found and found.name == variant and doubts(file) == []


@pytest.mark.parametrize(
    ("name", "variant", "words"),
    [
        ("self_forcing_10s.pt", "self-forcing", "'10s'"),
        ("self-forcing-30sec.pt", "self-forcing", "'30sec'"),
        ("self_forcing_1min.pt", "self-forcing", "'1min'"),
        ("self-forcing++.pt", "self-forcing", "'++'"),
        ("Self_Forcing_Plus_Plus_1.3B.pt", "self-forcing", "'plus_plus'"),
        ("self_forcing_framewise.pt", "self-forcing", "'framewise'"),
        ("self_forcing_2step.pt", "self-forcing", "'2step'"),
        ("self_forcing_i2v.pt", "self-forcing", "'i2v'"),
        ("reward-self-forcing.pt", "self-forcing", "'reward'"),
        ("self_forcing_long_rolling.pt", "self-forcing", "'long', 'rolling'"),
        ("causvid_8steps.pt", "causvid", "'8steps'"),
        ("wan_causal_dmd_warp_4step_cfg2/autoregressive_checkpoint/model.pt", "causvid", "'4step'"),
        ("longlive_60s.pt", "longlive", "'60s'"),
        ("longlive-infinity.pt", "longlive", "'infinity'"),
        ("krea_realtime_6step.pt", "krea-realtime", "'6step'"),
        ("causal-forcing++/causal_forcing_framewise_4step.pt", "causal-forcing-framewise", None),
    ],
)
def test_names_that_say_more_get_a_remark(tmp_path: Path, name: str, variant: str, words: str | None) -> None:
    file = saved(tmp_path / name)
    found = registry.read(file)[1].variant
    assert found and found.name == variant
    if words is None:  # said by a folder, of which only nameless files take anything
        assert doubts(file) == []
        return
    (said,) = doubts(file)
    assert said.startswith(
        f"its name says {words}, and QVG knows no settings for such a {variant}: sigmas, block size and window are"
    )
    # Who chooses by hand knows.
    assert not [remark for remark in registry.read(file, variant)[1].remarks if "its name says" in remark]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("Self-Forcing-Plus-1.3B.pt", "a Self-Forcing-Plus model, which denoises all frames at once"),
        ("LongLive-2.0.pt", "a LongLive 2, which is of another network"),
        ("longlive2.pt", "a LongLive 2, which is of another network"),
        ("LongLive-2.0-5B.pt", "a LongLive 2, which is of another network"),
        ("Causal_rCM_Wan2.1_T2V_1.3B_480p_TF-dCM_c3-3.pt", "a Causal-rCM model, which has other noise levels"),
        ("rolling_forcing_dmd.pt", "a Rolling-Forcing model"),
        ("reward_forcing.pt", "a relative of Self-Forcing"),
        ("memflow_1.3b.pt", "a relative of Self-Forcing"),
        ("infinity-rope.safetensors", "a relative of Self-Forcing"),
        ("rolling_sink.pt", "a relative of Self-Forcing"),
        ("SFWan2.2-T2V-A14B.safetensors", "an SFWan 2.2"),
        ("minwm_wan.pt", "a minWM"),
        ("helios_14b.safetensors", "a Helios"),
        ("matrix_game_3.safetensors", "a Matrix-Game 3"),
        ("wan_causal_ode_checkpoint_model_003000/model.pt", "an early stage of training"),
    ],
)
def test_relatives_that_are_run_otherwise(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"is named like {what}.*choose its variant by hand"):
        read_causal_wan(saved(tmp_path / name))


def test_a_flat_patch_embedding_is_causal_rcms(tmp_path: Path) -> None:
    network = {**CONTENT["generator"], "patch_embedding.weight": torch.zeros(256, 64)}
    torch.save({f"net.{name}": tensor for name, tensor in network.items()}, tmp_path / "rcm.pt")
    with pytest.raises(
        UnsupportedModelError, match=r"has a patch_embedding of \[256, 64\].*it is Causal-rCM's, or another model"
    ):
        read_causal_wan(tmp_path / "rcm.pt")


def test_convert_does_not_hide_the_doubt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, again = saved(tmp_path / "self_forcing_10s.pt"), tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    assert main(["convert", str(source), str(out)]) == 0
    assert "its name says '10s'" in capsys.readouterr().err
    assert main(["convert", str(out), str(again)]) == 0
    assert "its name says '10s'" in capsys.readouterr().err and len(doubts(again)) == 1
    chosen = tmp_path / "chosen.safetensors"
    assert main(["convert", str(out), str(chosen), "--variant", "self-forcing"]) == 0
    assert "its name" not in capsys.readouterr().err and doubts(chosen) == []
