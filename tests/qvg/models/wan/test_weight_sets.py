"""Which of a file's sets of weights is taken, whatever stands in front of their names, and what is said of that."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import ConfigError, UnsupportedModelError
from comfyui_qvg.qvg.models import registry
from comfyui_qvg.qvg.models.wan.checkpoint import read_causal_wan
from safetensors.torch import load_file, save_file
from torch import Tensor

from ....bounded import bounded
from ....integration import tiny_wan

A = tiny_wan.state_dict(seed=1)
B = {name: tensor + 1 for name, tensor in A.items()}
LORA = {"base_model.model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(2)}


def named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def diffusers(name: str) -> str:
    """As Diffusers calls Wan's weights."""
    rules = (
        (r"^head\.modulation$", "scale_shift_table"),
        (r"^head\.head\.", "proj_out."),
        (r"^time_projection\.1\.", "condition_embedder.time_proj."),
        (r"^(time|text)_embedding\.0\.", r"condition_embedder.\1_embedder.linear_1."),
        (r"^(time|text)_embedding\.2\.", r"condition_embedder.\1_embedder.linear_2."),
        (r"\.modulation$", ".scale_shift_table"),
        (r"\.norm3\.", ".norm2."),
        (r"\.ffn\.0\.", ".ffn.net.0.proj."),
        (r"\.ffn\.2\.", ".ffn.net.2."),
        (r"\.(self|cross)_attn\.o\.", r".\1_attn.to_out.0."),
        (r"_attn\.([qkv])\.", r"_attn.to_\1."),
        (r"\.self_attn\.", ".attn1."),
        (r"\.cross_attn\.", ".attn2."),
    )
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


class Average:
    """As trainers that keep averages do: an object with a dictionary."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.decay, self.shadow = 0.99, tensors


def saved(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def taken(path: Path, **choice: str) -> tuple[str, tuple[str, ...]]:
    """Which of A and B was taken, and the remarks."""
    found = read_causal_wan(path, **choice)
    (which,) = (name for name, expected in (("A", A), ("B", B)) if all(found.tensors[n].equal(expected[n]) for n in expected))
    assert found.tensors.keys() == A.keys()
    return which, found.remarks


KNOWN = (
    *(
        "",
        "model.",
        "model.model.",
        "model.diffusion_model.",
        "diffusion_model.",
        "module.",
        "net.",
        "transformer.",
        "dit.",
        "unet.",
    ),
    *("pipe.dit.", "student.", "backbone.", "generator.", "generator.model.", "generator_ema.", "generator_ema.model.", "ema."),
    *(
        "model.generator.",
        "_orig_mod.",
        "model._orig_mod.",
        "_orig_mod.model.",
        "module.model._fsdp_wrapped_module.",
        "ema_model.",
    ),
    *("state_dict.", "base_model.model.", "generator._fsdp_wrapped_module.model."),
)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("prefix", KNOWN)
def test_words_in_front_that_are_known(tmp_path: Path, prefix: str, ending: str) -> None:
    which, remarks = taken(saved(tmp_path / f"self_forcing_flat.{ending}", named(A, prefix)))
    raw = "generator" in prefix and "ema" not in prefix
    said = (f"generator_ema is what self-forcing releases, and self_forcing_flat.{ending} has generator alone",) if raw else ()
    assert which == "A" and remarks == said


@pytest.mark.parametrize("prefix", ["foo.", "foo.bar.model.", "my-net.", "G.", "video_model."])
def test_words_in_front_that_nobody_is_known_to_put_there(tmp_path: Path, prefix: str) -> None:
    which, (remark,) = taken(saved(tmp_path / "self_forcing.safetensors", named(A, prefix)))
    assert which == "A"
    assert remark == f"its names begin with '{prefix}', which no trainer that QVG knows puts there; what follows is the model"


def test_diffusers_names(tmp_path: Path) -> None:
    renamed = {diffusers(name): tensor for name, tensor in A.items()}
    assert "blocks.0.attn1.to_out.0.weight" in renamed and len(renamed) == len(A)
    for prefix in ("", "transformer."):
        assert taken(saved(tmp_path / "self_forcing.safetensors", named(renamed, prefix))) == ("A", ())


EMA = "generator_ema was taken, which is what self-forcing releases; generator in the same file was left out"
# What is in a file called self_forcing; what is taken by itself, by "generator" and by "generator_ema" (None: that is refused);
# and what is said.
SETS: dict[str, tuple[Any, str, str | None, str | None, str]] = {
    "nested": ({"generator": A, "generator_ema": B}, "B", "A", "B", EMA),
    "flat": (named(A, "generator.model.") | named(B, "generator_ema.model."), "B", "A", "B", EMA),
    "flat, plain and averaged": (A | named(B, "ema."), "B", "A", "B", "ema was taken, which is what self-forcing releases; "),
    "model and ema": (
        {"model": A, "ema": B, "step": 7},
        *("B", "A", "B"),
        "ema was taken, which is what self-forcing releases; model in the same file was left out",
    ),
    "state_dict and its ema": ({"state_dict": A, "state_dict_ema": B}, "B", "A", "B", "state_dict_ema was taken, which is"),
    "another order": ({"generator": A, "ema_generator": B}, "B", "A", "B", "ema_generator was taken, which is what"),
    "ema first": ({"ema_model": B, "net": A}, "B", "A", "B", "ema_model was taken, which is what"),
    "ema in ema": ({"ema": {"model": B, "decay": 0.99}, "model": A}, "B", "A", "B", "ema was taken, which is what"),
    "average of steps": ({"module": A, "averaged_model": B}, "B", "A", "B", "averaged_model was taken, which is what"),
    "without dots": (
        named(A, "model.") | {f"model_ema.{name.replace('.', '')}": each for name, each in B.items()},
        *("B", "A", "B"),
        "model_ema was taken, which is what self-forcing releases; model in the same file was left out",
    ),
    "without dots, and a wrapper's name": (
        named(A, "model.diffusion_model.")
        | {f"model_ema.diffusion_model{name.replace('.', '')}": each for name, each in B.items()}
        | {"model_ema.decay": torch.ones(())},
        *("B", "A", "B"),
        "model_ema was taken, which is what self-forcing releases; ",
    ),
    "an average without names": (
        {"model": A, "ema": {"decay": 0.99, "shadow_params": [torch.zeros(2)]}},
        *("A", "A", "A"),
        "an average of its weights (ema) has no names of this network and was left out",
    ),
    "an average as an object": (
        {"model": A, "ema": Average(B)},
        "B",
        "A",
        "B",
        "was taken, which is what self-forcing releases; model",
    ),
    "a critic": ({"generator_ema": B, "critic": A, "step": 600}, "B", None, "B", ""),
    "a flat critic": (named(B, "generator_ema.") | named(A, "critic.model."), "B", None, "B", ""),
    "a teacher and scores": ({"student": B, "teacher": A, "fake_score": A, "real_score": A}, "B", "B", "B", ""),
    "an optimizer": (
        {"model": B, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}},
        *("B", "B", "B", ""),
    ),
    "an optimizer by names": ({"model": B, "optimizer": {"state": {n: {"exp_avg": t} for n, t in A.items()}}}, "B", "B", "B", ""),
    "a flat optimizer": (named(B, "model.") | named(A, "optimizer.exp_avg.") | named(A, "exp_avg_sq."), "B", "B", "B", ""),
    "lightning": (
        {
            "state_dict": named(B, "generator.") | named(A, "critic."),
            "epoch": 3,
            "optimizer_states": [{"state": {}}],
            "callbacks": {},
        },
        *("B", "B", None),
        "generator_ema is what self-forcing releases, and self_forcing.pt has generator alone",
    ),
    "deepspeed": (
        {"module": named(B, "module."), "buffer_names": [], "param_shapes": [{}], "ds_version": "0.16"},
        "B",
        "B",
        "B",
        "",
    ),
    "a text encoder and a VAE": (
        named(B, "model.diffusion_model.")
        | {"vae.decoder.conv1.weight": torch.zeros(2), "text_encoders.t5.shared.weight": torch.zeros(2)},
        *("B", "B", "B", ""),
    ),
    "a LoRA": (
        {"generator_ema": B, "generator_lora": LORA},
        "B",
        None,
        "B",
        "a LoRA in it (generator_lora) was left out; give it as",
    ),
    "a flat LoRA": (named(B, "ema.") | named(LORA, "lora."), "B", None, "B", "a LoRA in it (lora.base_model.model.blocks.0"),
}


@pytest.mark.parametrize("kind", SETS)
def test_sets_of_weights(tmp_path: Path, kind: str) -> None:
    content, by_itself, raw, averaged, said = SETS[kind]
    file = saved(tmp_path / "self_forcing.pt", content)
    which, remarks = taken(file)
    assert which == by_itself and (any(said in each for each in remarks) if said else not remarks), remarks
    for choice, expected in (("generator", raw), ("generator_ema", averaged)):
        if expected is None:
            with pytest.raises(ConfigError, match=f"self_forcing.pt has no {choice}; it has "):
                taken(file, weights=choice)
        else:
            assert taken(file, weights=choice)[0] == expected
    if all(isinstance(each, Tensor) for each in content.values()):
        assert taken(saved(tmp_path / "self_forcing.safetensors", content))[0] == by_itself


def test_another_variant_another_set(tmp_path: Path) -> None:
    which, (remark,) = taken(saved(tmp_path / "causvid.pt", {"generator": A, "generator_ema": B}))
    assert which == "A"
    assert remark == "generator was taken, which is what causvid releases; generator_ema in the same file was left out"


TWICE = "names (its|some) weights twice, wrapped and plain.*and nothing says which are meant; use the file as it was published"
UNDECIDED: dict[str, tuple[Any, str]] = {
    "wrapped and plain": (named(A, "model.") | B, TWICE),
    "compiled and plain": (named(A, "_orig_mod.") | B, TWICE),
    "wrapped in the middle and plain": (
        A | {n.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): t for n, t in B.items()},
        TWICE,
    ),
    "in one set": ({"generator_ema": named(A, "model.") | B}, TWICE),
    "two names": ({"model": A, "state_dict": B}, r"has 2 sets of weights of this network \(model, state_dict\) and nothing says"),
    "two strangers": (
        named(A, "video_model.") | named(B, "audio_model."),
        r"has 2 sets .*\(video_model, audio_model\) and nothing",
    ),
    "two averages": ({"ema_1": A, "ema_2": B}, r"has 2 sets .*\(ema_1, ema_2\) and nothing says"),
}


@pytest.mark.parametrize("kind", UNDECIDED)
def test_what_nothing_decides_is_refused(tmp_path: Path, kind: str) -> None:
    content, said = UNDECIDED[kind]
    with pytest.raises(UnsupportedModelError, match=said):
        read_causal_wan(saved(tmp_path / "self_forcing.pt", content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"model": torch.nn.Linear(2, 2)},
            "holds torch.nn.modules.linear.Linear as an object, not weights by name; save its state_dict",
        ),
        ({"critic": A}, "holds no weights that are known .critic."),
        (named(A, "critic.model."), "holds no weights that are known .critic.model.."),
        ({"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{}]}, "holds an optimizer's state and no model; give the"),
        (A | {"blocks.0.self_attn.q.lora_A.weight": torch.zeros(2)}, "is a model with a LoRA's layers in it, not merged"),
        (
            {n.replace("self_attn.q.", "self_attn.q.base_layer."): t for n, t in A.items()} | LORA,
            "is a model with a LoRA's layers in it, not merged; merge them where it was made",
        ),
    ],
)
def test_no_model_is_said_to_be_none(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        read_causal_wan(saved(tmp_path / "self_forcing.pt", content))


@pytest.mark.parametrize(
    "buffer",
    [
        *("freqs", "blocks.0.self_attn.freqs", "blocks.1.self_attn.rope.inv_freq", "blocks.0.freqs_cis", "block_mask"),
        *(
            "blocks.0.self_attn.k_cache",
            "num_batches_tracked",
            "blocks.0.self_attn.q._extra_state",
            "blocks.0.cross_attn.attn_mask",
        ),
    ],
)
def test_buffers_that_were_left_over(tmp_path: Path, buffer: str) -> None:
    file = saved(tmp_path / "self_forcing.pt", named(A | {buffer: torch.zeros(3)}, "model."))
    assert taken(file) == ("A", (f"of no use to the network and left out: {buffer}",))


def test_layers_of_others_are_no_buffers(tmp_path: Path) -> None:
    for name, said in (
        ("blocks.0.self_attn.gate.weight", "which Wan's text-to-video network does not have"),
        ("blocks.0.cam_encoder.weight", "such as camera controls"),
    ):
        with pytest.raises(UnsupportedModelError, match=f"a Wan with 1 more tensors in its blocks .{name}., {said}; ComfyUI's"):
            read_causal_wan(saved(tmp_path / "self_forcing.pt", A | {name: torch.zeros(3)}))
    for name, said in (
        ("fps_embedding.weight", "is SkyReels-V2"),
        ("patch_embedding_wancamctrl.weight", "is LingBot-World"),
        ("blocks.0.cam_self_attn.q_proj.weight", "is DreamX-World"),
    ):
        with pytest.raises(UnsupportedModelError, match=said):
            read_causal_wan(saved(tmp_path / "self_forcing.pt", A | {name: torch.zeros(3)}))


def test_convert_takes_the_same_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from comfyui_qvg.qvg.cli import main

    source = saved(tmp_path / "self_forcing.safetensors", named(A, "generator.") | named(B, "generator_ema."))
    assert main(["convert", str(source), str(tmp_path / "out.safetensors"), "--dtype", "fp32"]) == 0
    said = capsys.readouterr()
    assert EMA in said.err and "from generator_ema" in said.out
    written = load_file(tmp_path / "out.safetensors")
    assert written.keys() == B.keys() and all(written[name].equal(B[name]) for name in B)


def test_long_prefixes_and_many_averages_without_dots(tmp_path: Path) -> None:
    long = {f"{'a.' * (400 + at)}head.modulation": torch.ones(1) for at in range(20)}
    save_file(long | {f"ema.x{at}": torch.ones(1) for at in range(20_000)}, tmp_path / "self_forcing.safetensors")
    with bounded(10, 200), pytest.raises(UnsupportedModelError):
        registry.read(tmp_path / "self_forcing.safetensors")
