"""LoRA files of all the trainers whose files people have: names, kinds, and by how much they are scaled."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import UnsupportedModelError
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models.common.lora import Lora, read_lora
from comfyui_qvg.qvg.models.common.lora_changes import added
from comfyui_qvg.qvg.models.common.lora_fit import FittedLora, fitted
from comfyui_qvg.qvg.models.wan.diffusers_names import diffusers_names
from comfyui_qvg.qvg.models.worldplay_wan.names import _renamed as worldplay_name
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ....bounded import bounded
from ....integration import tiny_wan

NETWORK = tiny_wan.state_dict(seed=1)
Tensors = dict[str, Tensor]
# Layers that Diffusers calls otherwise, one of each kind.
LAYERS = {
    "blocks.0.self_attn.q": "blocks.0.attn1.to_q",
    "blocks.1.self_attn.o": "blocks.1.attn1.to_out.0",
    "blocks.1.cross_attn.v": "blocks.1.attn2.to_v",
    "blocks.0.ffn.0": "blocks.0.ffn.net.0.proj",
    "blocks.0.ffn.2": "blocks.0.ffn.net.2",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
RANK = 4


def matrices(layer: str) -> tuple[Tensor, Tensor]:
    """down, up"""
    out, into = NETWORK[f"{layer}.weight"].shape
    generator = torch.Generator().manual_seed(sum(layer.encode()))
    return torch.randn(RANK, into, generator=generator) * 0.1, torch.randn(out, RANK, generator=generator) * 0.1


def written(tmp_path: Path, tensors: Any, metadata: dict[str, str] | None = None, name: str = "lora.safetensors") -> Path:
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, metadata)
    else:
        torch.save(tensors, path)
    return path


def on_network(path: Path) -> FittedLora:
    return fitted(read_lora(path), NETWORK, diffusers_names)


def named(layer: Callable[[str], str], down: str, up: str) -> Tensors:
    """All layers, by what a trainer calls them."""
    found = {}
    for own in LAYERS:
        first, second = matrices(own)
        found |= {layer(own) + down: first, layer(own) + up: second}
    return found


def plain(own: str) -> str:
    return own


def diffusers(own: str) -> str:
    return LAYERS[own]


def under(names: Callable[[str], str], prefix: str) -> Callable[[str], str]:
    return lambda own: prefix + names(own).replace(".", "_")


def behind(names: Callable[[str], str], prefix: str) -> Callable[[str], str]:
    return lambda own: prefix + names(own)


PEFT = (".lora_A.weight", ".lora_B.weight")
KOHYA = (".lora_down.weight", ".lora_up.weight")
NAMES: dict[str, tuple[Callable[[str], str], str, str]] = {
    "bare": (plain, *PEFT),
    "diffusion-pipe, ai-toolkit": (behind(plain, "diffusion_model."), *PEFT),
    "ComfyUI's LoraSave": (behind(plain, "diffusion_model."), *KOHYA),
    "musubi, kohya": (under(plain, "lora_unet_"), *KOHYA),
    "Wan Fun": (under(plain, "lora_unet__"), *KOHYA),
    "PEFT": (behind(plain, "base_model.model."), *PEFT),
    "PEFT behind a wrapper": (behind(plain, "base_model.model.model."), *PEFT),
    "FSDP": (behind(plain, "model._fsdp_wrapped_module."), *PEFT),
    "DiffSynth": (plain, ".lora_A.default.weight", ".lora_B.default.weight"),
    "DiffSynth's pipe": (behind(plain, "pipe.dit."), ".lora_A.default.weight", ".lora_B.default.weight"),
    "an adapter's name": (plain, ".lora_A.longlive.weight", ".lora_B.longlive.weight"),
    "an adapter's name alone": (plain, ".lora_A.longlive", ".lora_B.longlive"),
    "Mochi": (plain, ".lora_A", ".lora_B"),
    "transformer": (behind(plain, "transformer."), *PEFT),
    "Diffusers": (behind(diffusers, "transformer."), *PEFT),
    "Diffusers, bare": (diffusers, *PEFT),
    "Diffusers in PEFT": (behind(diffusers, "base_model.model."), *PEFT),
    "Diffusers of old": (behind(diffusers, "unet."), "_lora.down.weight", "_lora.up.weight"),
    "Diffusers' processors": (
        lambda own: diffusers(own).replace(".to_", ".processor.to_"),
        "_lora.down.weight",
        "_lora.up.weight",
    ),
    "dots": (behind(plain, "diffusion_model."), ".lora.down.weight", ".lora.up.weight"),
    "transformers": (behind(plain, "diffusion_model."), ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    "OneTrainer": (under(diffusers, "lora_transformer_"), *KOHYA),
    "LyCORIS": (under(plain, "lycoris_"), *KOHYA),
    "LyCORIS of Diffusers": (under(diffusers, "lycoris_"), *KOHYA),
    "a generator's": (behind(plain, "generator_lora.base_model.model."), *PEFT),
}


@pytest.mark.parametrize("how", NAMES)
def test_every_trainer_s_names(tmp_path: Path, how: str) -> None:
    found = on_network(written(tmp_path, named(*NAMES[how])))
    assert found.changes.keys() == {f"{layer}.weight" for layer in LAYERS} and found.remarks == ()
    for layer in LAYERS:
        down, up = matrices(layer)
        weight = NETWORK[f"{layer}.weight"]
        assert torch.equal(added(found.changes[f"{layer}.weight"], weight), weight + up @ down)


def test_a_prefix_of_nobody_s_is_named(tmp_path: Path) -> None:
    found = on_network(written(tmp_path, named(behind(plain, "my.trainer."), *PEFT)))
    assert len(found.changes) == len(LAYERS)
    assert found.remarks == (
        "lora.safetensors has 'my.trainer.' in front of its names, which no trainer that QVG knows puts there; what follows fits",
    )


def test_diffusers_names_are_those_that_worldplay_s_file_has() -> None:
    """Its reader knows them the other way round."""
    others = [*LAYERS.values(), *(f"condition_embedder.action_embedder.linear_{one}" for one in "12"), "scale_shift_table"]
    others += [
        f"blocks.1.{layer}" for layer in ("attn1.to_out_prope.0", "scale_shift_table", "norm2", "attn2.norm_q", "attn1.norm_k")
    ]
    for other in others:
        own = worldplay_name(f"{other}.weight" if other[-5:] != "table" else other).removesuffix(".weight")
        assert own != other and other in diffusers_names(own)


def test_a_trainer_s_pickle(tmp_path: Path) -> None:
    tensors = named(behind(plain, "base_model.model."), *PEFT)
    others = {f"critic.{name}": tensor for name, tensor in tensors.items()}
    for content in (
        {"generator_lora": tensors, "critic_lora": tensors, "step": 7},
        {"lora": tensors, "config": {"r": 4}, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}},
        {"state_dict": {"step": torch.tensor(3), **tensors}},
        {**tensors, **others},
    ):
        found = on_network(written(tmp_path, content, name="lora.pt"))
        assert len(found.changes) == len(LAYERS)
    assert "critic" in found.remarks[0] and "that part was left out" in found.remarks[0]
    with pytest.raises(UnsupportedModelError, match=r"holds several sets of tensors \(style, motion\)"):
        read_lora(written(tmp_path, {"style": tensors, "motion": tensors}, name="lora.pt"))


# --------------------------------------------------------------------------------------------------------------------- kinds


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


LAYER, WIDTH = "blocks.0.self_attn.q", 256
PATCH = "patch_embedding"


def kinds() -> dict[str, tuple[Tensors, dict[str, Tensor]]]:
    """What stands in the file, and what is added to which tensor."""
    at, four = f"diffusion_model.{LAYER}", (random(WIDTH, RANK, seed=1), random(RANK, WIDTH, seed=2))
    a2, b2 = random(WIDTH, RANK, seed=3), random(RANK, WIDTH, seed=4)
    small, large = random(4, 8, seed=5), random(64, 32, seed=6)
    halves = random(64, 2, seed=7), random(2, 32, seed=8)
    row, conv_down, conv_up = random(WIDTH, seed=9), random(RANK, 16, 1, 2, 2, seed=10), random(WIDTH, RANK, 1, 1, 1, seed=11)
    alpha = {f"{at}.alpha": torch.tensor(2.0)}
    lora = {f"{at}.lora_A.weight": four[1], f"{at}.lora_B.weight": four[0]}
    loha = {f"{at}.hada_w1_a": four[0], f"{at}.hada_w1_b": four[1], f"{at}.hada_w2_a": a2, f"{at}.hada_w2_b": b2}
    weight, bias = f"{LAYER}.weight", f"{LAYER}.bias"
    return {
        "LoRA": (lora | alpha, {weight: 0.5 * four[0] @ four[1]}),
        "LoRA with a bias": ({**lora, **alpha, f"{at}.lora_B.bias": row}, {weight: 0.5 * four[0] @ four[1], bias: 0.5 * row}),
        "LoRA of a convolution": (
            {f"diffusion_model.{PATCH}.lora_down.weight": conv_down, f"diffusion_model.{PATCH}.lora_up.weight": conv_up},
            {f"{PATCH}.weight": (conv_up.flatten(1) @ conv_down.flatten(1)).reshape(WIDTH, 16, 1, 2, 2)},
        ),
        "LoHa": (loha | alpha, {weight: 0.5 * (four[0] @ four[1]) * (a2 @ b2)}),
        "LoHa of PEFT": ({f"{name}.default": each for name, each in loha.items()}, {weight: (four[0] @ four[1]) * (a2 @ b2)}),
        # Of whole factors alpha means nothing.
        "LoKr": ({f"{at}.lokr_w1": small, f"{at}.lokr_w2": large, **alpha}, {weight: torch.kron(small, large)}),
        "LoKr in halves": (
            {f"{at}.lokr_w1": small, f"{at}.lokr_w2_a": halves[0], f"{at}.lokr_w2_b": halves[1], **alpha},
            {weight: torch.kron(small, halves[0] @ halves[1])},
        ),
        "difference": (
            {f"{at}.diff": random(WIDTH, WIDTH, seed=12), f"{at}.diff_b": row},
            {weight: random(WIDTH, WIDTH, seed=12), bias: row},
        ),
        "difference of a norm": (
            {"diffusion_model.blocks.1.self_attn.norm_k.diff": row},
            {"blocks.1.self_attn.norm_k.weight": row},
        ),
        "norms": (
            {"diffusion_model.blocks.0.norm3.w_norm": row, "diffusion_model.blocks.0.norm3.b_norm": row},
            {"blocks.0.norm3.weight": row, "blocks.0.norm3.bias": row},
        ),
        "difference of a parameter": (
            {"diffusion_model.blocks.0.modulation.diff": random(1, 6, WIDTH, seed=13)},
            {"blocks.0.modulation": random(1, 6, WIDTH, seed=13)},
        ),
        "lightx2v's": (
            {"diffusion_model.blocks.1.diff_m": random(1, 6, WIDTH, seed=14), "diffusion_model.head.diff_m": random(1, 2, WIDTH)},
            {"blocks.1.modulation": random(1, 6, WIDTH, seed=14), "head.modulation": random(1, 2, WIDTH)},
        ),
        "LoRA and a difference of the bias": ({**lora, f"{at}.diff_b": row}, {weight: four[0] @ four[1], bias: row}),
    }


@pytest.mark.parametrize("kind", kinds())
def test_kinds_that_are_added(tmp_path: Path, kind: str) -> None:
    tensors, expected = kinds()[kind]
    found = on_network(written(tmp_path, tensors))
    assert found.changes.keys() == expected.keys()
    for name, difference in expected.items():
        made = added(found.changes[name], NETWORK[name].bfloat16())
        assert made.dtype == torch.float32 and torch.allclose(made, NETWORK[name].bfloat16().float() + difference, atol=1e-6)


@pytest.mark.parametrize("kind", kinds())
def test_they_are_merged_for_good(tmp_path: Path, kind: str) -> None:
    tensors, expected = kinds()[kind]
    save_file(NETWORK, tmp_path / "self_forcing.safetensors")
    out, lora = tmp_path / "out.safetensors", written(tmp_path, tensors)
    assert main(["convert", str(tmp_path / "self_forcing.safetensors"), str(out), "--lora", str(lora), "--dtype", "fp32"]) == 0
    for name, tensor in load_file(out).items():
        wanted = NETWORK[name] + expected[name] if name in expected else NETWORK[name]
        assert torch.allclose(tensor, wanted, atol=1e-6) and torch.equal(tensor, NETWORK[name]) == (name not in expected)


BOTH = {
    f"diffusion_model.{LAYER}.lora_A.weight": torch.ones(RANK, WIDTH),
    f"diffusion_model.{LAYER}.lora_B.weight": torch.ones(WIDTH, RANK),
}
AT = f"diffusion_model.{LAYER}"
OTHERS: dict[str, tuple[Tensors, str]] = {
    "DoRA": ({**BOTH, f"{AT}.dora_scale": torch.ones(WIDTH, 1)}, "is a DoRA, which scales weights anew"),
    "DoRA of PEFT": (
        {**BOTH, f"{AT}.lora_magnitude_vector.default.weight": torch.ones(WIDTH)},
        f"is a DoRA, which scales weights anew ({AT}.lora_magnitude_vector.default.weight), and merging that is not done here; "
        "leave it out here, and put ComfyUI's 'LoraLoaderModelOnly' with this file behind the model",
    ),
    "Tucker": ({**BOTH, f"{AT}.lora_mid.weight": torch.ones(4, 4, 1, 1)}, "is a LoRA in Tucker's form"),
    "OFT": ({f"{AT}.oft_blocks": torch.ones(8, 32, 32)}, "is an OFT, which turns weights"),
    "GLoRA": ({f"{AT}.{name}.weight": torch.ones(4, 4) for name in ("a1", "a2", "b1", "b2")}, "is a GLoRA"),
    "another tool's DoRA": (
        {f"transformer.{LAYER}.{name}": torch.ones(4, 4) for name in ("lora_A.weight", "lora_B.weight", "dora_scale")},
        "merging that is not done here; have the tool that trained it write a plain LoRA, or merge it there",
    ),
    "set": ({f"{AT}.set_weight": torch.ones(4)}, "is a LoRA that replaces weights or makes them larger"),
    "image to video": (
        {name.replace("self_attn.q", "cross_attn.k_img"): tensor for name, tensor in BOTH.items()},
        "changes blocks.0.cross_attn.k_img, which this model does not have; it was made for an image-to-video Wan",
    ),
    "two adapters": (
        {f"{LAYER}.lora_A.style.weight": torch.ones(4, 4), "blocks.1.self_attn.q.lora_A.motion.weight": torch.ones(4, 4)},
        "holds 2 LoRAs (motion, style); give a file with one of them",
    ),
    "two names for one": (
        {**BOTH, **{name.removeprefix("diffusion_model."): tensor.clone() for name, tensor in BOTH.items()}},
        "changes blocks.0.self_attn.q.weight twice; use the file as it was published",
    ),
    "more": (
        {**BOTH, f"{AT}.mystery": torch.ones(2)},
        "has more in it than a LoRA adds (diffusion_model.blocks.0.self_attn.q.mystery)",
    ),
    "text encoder": (
        {name.replace("diffusion_model.", "text_encoder."): tensor for name, tensor in BOTH.items()},
        "is a LoRA for other networks alone (text_encoder.blocks.0.self_attn.q), and none for the model",
    ),
    "two ways": ({**BOTH, f"{AT}.diff": torch.ones(WIDTH, WIDTH)}, f"changes {AT} in two ways; give a file with one LoRA"),
    "half of a LoKr": ({f"{AT}.lokr_w1": torch.ones(4, 8)}, f"has half of what is added to {AT} (lokr_w1)"),
    "a LoKr of another size": (
        {f"{AT}.lokr_w1": torch.ones(4, 8), f"{AT}.lokr_w2": torch.ones(8, 8)},
        "makes [32, 64] of blocks.0.self_attn.q, which is [256, 256] here",
    ),
    "a bias that is not there": ({"blocks.0.self_attn.norm_q.diff_b": torch.ones(WIDTH)}, "which this model does not have"),
    "VACE": (
        {name.replace("blocks", "vace_blocks"): tensor for name, tensor in BOTH.items()},
        "changes vace_blocks.0.self_attn.q, which this model does not have",
    ),
    "VACE of kohya's": (
        {f"lora_unet_vace_blocks_0_self_attn_q.lora_{way}.weight": torch.ones(4, 4) for way in ("down", "up")},
        "changes lora_unet_vace_blocks_0_self_attn_q, which this model does not have",
    ),
    "textual inversion": ({"emb_params": torch.ones(2, 4)}, "is no LoRA: nothing in it is called lora_A, lora_down"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_added_gets_a_sentence(tmp_path: Path, kind: str) -> None:
    tensors, sentence = OTHERS[kind]
    with pytest.raises(UnsupportedModelError) as refused:
        on_network(written(tmp_path, tensors))
    assert str(refused.value).startswith("lora.safetensors ") and sentence in str(refused.value) and len(str(refused.value)) < 500


def test_layers_for_a_picture_are_left_out(tmp_path: Path) -> None:
    """As ComfyUI leaves them out: LoRAs of image-to-video Wans are used on text-to-video ones."""
    more = {name.replace("self_attn.q", "cross_attn.k_img"): tensor for name, tensor in BOTH.items()}
    more |= {
        "diffusion_model.img_emb.proj.1.diff_b": torch.ones(3),
        "diffusion_model.blocks.0.cross_attn.norm_k_img.diff": torch.ones(3),
    }
    found = on_network(written(tmp_path, BOTH | more))
    assert [*found.changes] == [f"{LAYER}.weight"]
    (said,) = found.remarks
    assert "was made for an image-to-video Wan; 3 of its layers are for a picture (" in said and said.endswith("were left out")


def test_names_of_megabytes_and_terminal_codes_are_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError) as refused:
        read_lora(written(tmp_path, {f"\x1b[31m{'x' * 900}.lora_A.weight": torch.ones(4, 4)}))
    assert len(str(refused.value)) < 300 and "\x1b" not in str(refused.value)


def test_a_text_encoder_s_part_is_left_out(tmp_path: Path) -> None:
    tensors = {
        **BOTH,
        **{f"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_{way}.weight": torch.ones(4, 4) for way in ("down", "up")},
    }
    found = on_network(written(tmp_path, tensors))
    assert [*found.changes] == [f"{LAYER}.weight"]
    assert found.remarks == (
        "lora.safetensors changes other networks, too (lora_te1_text_model_encoder_layers_0_mlp_fc1); that part was left out",
    )


# --------------------------------------------------------------------------------------------------------------------- scales

PATTERN = {"transformer.lora_alpha": 8, "transformer.r": 4, "transformer.alpha_pattern": {"blocks.0.self_attn.q": 64}}
SCALES: dict[str, tuple[dict[str, str], float]] = {
    "nothing": ({}, 1.0),
    "SimpleTuner": ({"transformer.lora_alpha": "64", "transformer.r": "4"}, 16.0),
    "without a name": ({"lora_alpha": "64", "r": "4"}, 16.0),
    "alpha alone": ({"lora_alpha": "2"}, 0.5),
    "another network's name": ({"unet.lora_alpha": "64", "unet.r": "4"}, 16.0),
    "kohya": ({"ss_network_alpha": "2", "ss_network_dim": "4", "ss_network_args": '{"conv_alpha": "1", "conv_dim": "1"}'}, 0.5),
    "network_alpha": ({"network_alpha": "8.0"}, 2.0),
    "alpha and rank": ({"alpha": "8", "rank": "4"}, 2.0),
    "Diffusers": ({"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 64, "transformer.r": 4})}, 16.0),
    "Diffusers, text encoder too": (
        {
            "lora_adapter_metadata": json.dumps(
                {"text_encoder.lora_alpha": 8, "text_encoder.r": 4, **PATTERN, "transformer.alpha_pattern": {}}
            )
        },
        2.0,
    ),
    "by a whole name": (
        {"peft": json.dumps({"lora_alpha": 8, "r": 4, "alpha_pattern": {"^blocks.0.self_attn.q$": 64, "q": 2}})},
        16.0,
    ),
    "by the first of two": ({"peft": json.dumps({"lora_alpha": 8, "r": 4, "alpha_pattern": {"q": 2, "self_attn.q": 64}})}, 0.5),
    "Diffusers, by layer": ({"lora_adapter_metadata": json.dumps(PATTERN)}, 16.0),
    "PEFT's JSON": ({"adapter_config": json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 64, "alpha_pattern": {}})}, 16.0),
    "JSON in JSON": ({"peft": json.dumps({"default": {"r": 4, "lora_alpha": 64}})}, 16.0),
    "rsLoRA": ({"lora_adapter_metadata": json.dumps({"lora_alpha": 8, "r": 4, "use_rslora": True})}, 4.0),
    # Words that mean other things, where they do.
    "a merge's alpha": ({"alpha": "0.5"}, 1.0),
    "tags": ({"ss_tag_frequency": json.dumps({"set": {"alpha": 9, "rank": 3, "lora_alpha": 9}})}, 1.0),
    "an optimizer's": ({"optimizer": json.dumps({"alpha": 0.99})}, 1.0),
    "a text encoder's": ({"text_encoder.lora_alpha": "64", "text_encoder.r": "4"}, 1.0),
}


def scale_of(path: Path) -> float:
    """Of the ones, of which every product is RANK."""
    change = on_network(path).changes[f"{LAYER}.weight"]
    made = change.difference()
    assert torch.equal(made, made[0, 0].expand_as(made))
    return float(made[0, 0]) / RANK


@pytest.mark.parametrize("how", SCALES)
def test_alpha_out_of_the_metadata(tmp_path: Path, how: str) -> None:
    metadata, scale = SCALES[how]
    path = written(tmp_path, BOTH, metadata)
    found = on_network(path)
    assert scale_of(path) == scale and found.remarks == ()
    assert found.said == ("lora.safetensors" if scale == 1 else f"lora.safetensors at scale {scale:g}")


@pytest.mark.parametrize("how", ["SimpleTuner", "Diffusers", "rsLoRA"])
def test_the_names_in_the_file_need_not_be_those_of_the_metadata(tmp_path: Path, how: str) -> None:
    metadata, scale = SCALES[how]
    tensors = {name.replace("diffusion_model.", "transformer."): tensor for name, tensor in BOTH.items()}
    assert scale_of(written(tmp_path, tensors, metadata)) == scale


CONTRADICTIONS: dict[str, tuple[dict[str, str], float, str]] = {
    "no number": (
        {"transformer.lora_alpha": "sixty-four", "transformer.r": "4"},
        1.0,
        "says transformer.lora_alpha sixty-four in its metadata, which is no number to scale it by; it was taken at scale 1",
    ),
    "NaN": ({"lora_alpha": "nan"}, 1.0, "says lora_alpha nan in its metadata, which is no number"),
    "none": ({"ss_network_alpha": "None", "ss_network_dim": "4"}, 1.0, "says ss_network_alpha None in its metadata"),
    "two": (
        {"lora_alpha": "64", "ss_network_alpha": "32"},
        16.0,
        "says lora_alpha 64 in its metadata, and ss_network_alpha 32 in its metadata; 64 was taken",
    ),
    "two networks": (
        {"transformer.lora_alpha": "64", "unet.lora_alpha": "8"},
        16.0,
        "says transformer.lora_alpha 64 in its metadata, and unet.lora_alpha 8 in its metadata; 64 was taken",
    ),
    "another rank": (
        {"lora_alpha": "64", "r": "8"},
        16.0,
        f"says rank 8 in its metadata, and the matrices of {AT} have rank 4; alpha was divided by that of the matrices, which "
        "makes a scale of 16",
    ),
    "broken JSON": (
        {"lora_adapter_metadata": '{"transformer.lora_alpha": 64,'},
        1.0,
        "has lora_adapter_metadata in its metadata, which cannot be read; it was taken at scale 1",
    ),
    "an expression": (
        {"peft": json.dumps({"lora_alpha": 64, "r": 4, "alpha_pattern": {"blocks.*.q": 8, "self_attn.q": 32}})},
        8.0,
        "says another alpha for blocks.*.q in its metadata, and has no layer of such a name; layers that are meant by it "
        "have the alpha of all others",
    ),
    "brackets": ({"lora_adapter_metadata": "[" * 100_000}, 1.0, "which cannot be read; it was taken at scale 1"),
}


@pytest.mark.parametrize("how", CONTRADICTIONS)
def test_contradictions_are_said(tmp_path: Path, how: str) -> None:
    metadata, scale, remark = CONTRADICTIONS[how]
    path = written(tmp_path, BOTH, metadata)
    (said,) = on_network(path).remarks
    assert scale_of(path) == scale and said.startswith("lora.safetensors ") and remark in said


def test_records_that_would_take_all_there_is(tmp_path: Path) -> None:
    """As many exceptions as fit, for many layers; one dictionary, or one text in JSON, under many names."""
    parts = {name: tensor for at in range(8000) for name, tensor in _ones(f"blocks.{at}.q").items()}
    pattern = {f"a{number}": 1 for number in range(30_000)}
    record = {"lora_alpha": 4, "r": 4, "alpha_pattern": pattern, "rank_pattern": pattern}
    many = written(tmp_path, parts, {"peft": json.dumps(record)}, "many.safetensors")
    settings = dict.fromkeys(map(str, range(50_000)), 1)
    same = written(tmp_path, {**{f"s{number}": settings for number in range(50_000)}, "lora": _ones("a")}, name="same.pt")
    text = json.dumps({"a": [0] * 250_000})
    texts = written(tmp_path, {**{f"t{number}": text for number in range(9000)}, **_ones("a")}, name="texts.pt")
    for path in (many, same, texts):
        with bounded(10, 100):
            read_lora(path)


def _ones(layer: str) -> Tensors:
    return {f"{layer}.lora_A.weight": torch.ones(1, 1), f"{layer}.lora_B.weight": torch.ones(1, 1)}


def test_an_alpha_beside_a_layer_counts_most(tmp_path: Path) -> None:
    alpha = {f"{AT}.alpha": torch.tensor(2.0)}
    assert scale_of(written(tmp_path, BOTH | alpha, {"lora_alpha": "2", "r": "4"})) == 0.5
    assert on_network(tmp_path / "lora.safetensors").remarks == ()
    assert scale_of(written(tmp_path, BOTH | alpha, {"lora_alpha": "64", "r": "4", "use_rslora": "True"})) == 0.5
    (said,) = on_network(tmp_path / "lora.safetensors").remarks
    assert said.endswith("says alpha 64 in its metadata, and 2 beside its layers; that beside the layers was taken")
    # kohya's convolutions have an alpha of their own.
    more = {f"{PATCH}.lora_A.weight": torch.ones(2, 16, 1, 2, 2), f"{PATCH}.lora_B.weight": torch.ones(WIDTH, 2, 1, 1, 1)}
    more[f"{PATCH}.alpha"] = torch.tensor(1.0)
    assert on_network(written(tmp_path, BOTH | alpha | more, {"ss_network_alpha": "2", "ss_network_dim": "4"})).remarks == ()


def test_peft_s_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 64}), encoding="utf-8")
    assert scale_of(written(tmp_path, BOTH, name="style.safetensors")) == 16.0
    # Of several files it may be of any, if it is not called as PEFT calls them.
    written(tmp_path, BOTH, name="other.safetensors")
    assert scale_of(tmp_path / "style.safetensors") == 1.0
    assert scale_of(written(tmp_path, BOTH, name="adapter_model.safetensors")) == 16.0
    assert scale_of(written(tmp_path, BOTH, {"lora_alpha": "8"}, "adapter_model.safetensors")) == 2.0
    (said,) = on_network(tmp_path / "adapter_model.safetensors").remarks
    assert "says lora_alpha 8 in its metadata, and lora_alpha 64 in the adapter_config.json beside it; 8 was taken" in said
    (tmp_path / "adapter_config.json").write_text("{", encoding="utf-8")
    assert scale_of(written(tmp_path, BOTH, name="adapter_model.safetensors")) == 1.0
    (said,) = on_network(tmp_path / "adapter_model.safetensors").remarks
    assert "has the adapter_config.json beside it, which cannot be read; it was taken at scale 1" in said


def test_a_trainer_s_own_record(tmp_path: Path) -> None:
    for around in (
        {"lora_alpha": 64, "lora_rank": 4, "rank": 1},
        {"lora_config": {"r": 4, "lora_alpha": 64}},
        {"args": {"network_alpha": 64}},
    ):
        assert (
            scale_of(written(tmp_path, {"lora": BOTH, **around, "optimizer": {"alpha": 0.99, "lora_alpha": 1}}, name="lora.pt"))
            == 16.0
        )
        assert on_network(tmp_path / "lora.pt").remarks == ()
    assert scale_of(written(tmp_path, {**BOTH, f"{AT}.alpha": 8.0}, name="lora.pt")) == 2.0
    loop: dict[str, Any] = {"lora": BOTH}
    loop["args"] = loop
    assert scale_of(written(tmp_path, loop, name="lora.pt")) == 1.0


def test_the_recipe_of_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rank 4, alpha 64, all ones: 64 is added, and was 4."""
    save_file(NETWORK, tmp_path / "tiny_self_forcing.safetensors")
    lora = written(tmp_path, BOTH, {"transformer.lora_alpha": "64", "transformer.r": "4"})
    out = tmp_path / "out.safetensors"
    arguments = ["convert", str(tmp_path / "tiny_self_forcing.safetensors"), str(out), "--lora", str(lora), "--dtype", "fp32"]
    assert main(arguments) == 0
    weight = f"{LAYER}.weight"
    assert torch.allclose(load_file(out)[weight] - NETWORK[weight], torch.tensor(64.0), atol=1e-4)
    assert "with lora.safetensors at scale 16 merged" in capsys.readouterr().out
    save_file(BOTH, lora, {"lora_alpha": "x"})
    out.unlink()
    assert main([*arguments, "--json"]) == 0
    said = capsys.readouterr()
    assert "note: lora.safetensors says lora_alpha x" in said.err
    assert any("lora_alpha x" in each for each in json.loads(said.out)["remarks"])


def test_a_name_that_is_no_text_leaves_the_output_readable(tmp_path: Path) -> None:
    save_file(NETWORK, tmp_path / "self_forcing.safetensors")
    lora, out = written(tmp_path, BOTH, name="lora\udcff.pt"), tmp_path / "out.safetensors"
    assert main(["convert", str(tmp_path / "self_forcing.safetensors"), str(out), "--lora", str(lora)]) == 0
    with safe_open(out, "pt") as file:
        assert file.metadata()["qvg_lora"] == "lora\\udcff.pt"


def test_ranks_of_layers_may_differ(tmp_path: Path) -> None:
    second = {name.replace("blocks.0", "blocks.1"): tensor for name, tensor in BOTH.items()}
    second = {name: tensor[:2] if "lora_A" in name else tensor[:, :2] for name, tensor in second.items()}
    peft = {"r": 4, "lora_alpha": 8, "rank_pattern": {"blocks.1.self_attn.q": 2}}
    lora: Lora = read_lora(written(tmp_path, BOTH | second, {"lora_adapter_metadata": json.dumps(peft)}))
    found = fitted(lora, NETWORK, diffusers_names)
    assert found.remarks == () and lora.scale is None and found.said == "lora.safetensors"
    scales = [float(found.changes[f"blocks.{block}.self_attn.q.weight"].difference()[0, 0]) for block in (0, 1)]
    assert all(math.isclose(value, 8) for value in scales)
