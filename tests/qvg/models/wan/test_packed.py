"""Packed weights: what ComfyUI unpacks is taken as it is, all else is named for what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg import UnsupportedModelError
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models import registry
from comfyui_qvg.qvg.models.wan.checkpoint import read_causal_wan
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .... import golden_worldplay, golden_worldplay_hunyuan
from ....integration import tiny_wan

Tensors = dict[str, Tensor]
NETWORK = tiny_wan.state_dict(seed=1)
MATRICES = [name.removesuffix(".weight") for name, each in NETWORK.items() if name.startswith("blocks.") and each.ndim == 2]
E4M3 = torch.float8_e4m3fn


def bytes_of(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


def packed(network: Tensors, layers: list[str], weight: Tensor | None, **beside: Tensor) -> Tensors:
    """`network` with other weights in some layers, and more beside them; `dot` in a name stands for a dot."""
    made = {name: each for name, each in network.items() if weight is None or name.removesuffix(".weight") not in layers}
    for layer in layers:
        made |= {} if weight is None else {f"{layer}.weight": weight.clone()}
        made |= {f"{layer}.{name.replace('_dot_', '.')}": each.clone() for name, each in beside.items()}
    return made


HALF = bytes_of(32768, 1)
FOREIGN: dict[str, tuple[Tensor | None, dict[str, Tensor], str]] = {
    "bitsandbytes nf4": (
        HALF,
        {"weight_dot_absmax": torch.ones(4), "weight_dot_quant_map": torch.ones(16)}
        | {"weight_dot_quant_state.bitsandbytes__nf4": bytes_of(80)},
        r"bitsandbytes \(NF4 or FP4, 4 bits\)",
    ),
    "bitsandbytes fp4, nested": (
        HALF,
        {"weight_dot_nested_absmax": torch.ones(4), "weight_dot_quant_state.bitsandbytes__fp4": bytes_of(80)},
        r"bitsandbytes \(NF4 or FP4, 4 bits\)",
    ),
    "bitsandbytes, beside whole weights": (None, {"weight_dot_absmax": torch.ones(4)}, r"bitsandbytes \(NF4 or FP4, 4 bits\)"),
    "bitsandbytes int8": (bytes_of(256, 256, dtype=torch.int8), {"SCB": torch.ones(256)}, r"bitsandbytes \(8 bits\)"),
    "nunchaku": (
        None,
        {"qweight": bytes_of(256, 128, dtype=torch.int8), "wscales": torch.ones(4, 256), "smooth_factor": torch.ones(256)}
        | {"lora_down": torch.ones(256, 32), "lora_up": torch.ones(256, 32)},
        r"Nunchaku \(SVDQuant, 4 bits\)",
    ),
    "gptq": (
        None,
        {
            "qweight": bytes_of(32, 256, dtype=torch.int32),
            "qzeros": bytes_of(2, 32, dtype=torch.int32),
            "scales": torch.ones(2, 256),
        },
        r"GPTQ or AWQ \(4 or 8 bits\)",
    ),
    "quanto": (
        None,
        {"weight_dot__data": bytes_of(256, 256, dtype=torch.int8), "weight_dot__scale": torch.ones(256, 1)},
        "Quanto",
    ),
    "hqq": (None, {"W_q": HALF, "meta": torch.ones(1)}, "HQQ"),
    "sdnq": (bytes_of(256, 256), {"scale": torch.ones(256, 1), "zero_point": torch.ones(256, 1)}, "SDNQ"),
    "scales of blocks": (
        torch.zeros(256, 256, dtype=E4M3),
        {"weight_scale_inv": torch.ones(2, 2)},
        "a writer of fp8 with a scale for",
    ),
    "longlive nvfp4": (None, {"quantized_weight_values": HALF}, r"LongLive \(NVFP4\)"),
    "mlx": (bytes_of(256, 32, dtype=torch.int32), {"scales": torch.ones(256, 4), "biases": torch.ones(256, 4)}, "MLX"),
    "lightx2v nvfp4": (bytes_of(256, 128), {"weight_global_scale": torch.ones(1)}, r"LightX2V or vLLM \(NVFP4\)"),
    "torchao": (None, {"_weight_qdata": HALF, "_weight_scale": torch.ones(4)}, "torchao"),
}


@pytest.mark.parametrize("whole", [True, False], ids=["replaced", "beside whole weights"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_formats_of_others_are_named(tmp_path: Path, kind: str, whole: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Never for another architecture, never for damage: what they were made of is the way out."""
    weight, beside, title = FOREIGN[kind]
    made = packed(NETWORK, MATRICES, weight, **beside)
    if not whole and weight is None:
        made = {name: each for name, each in made.items() if name.removesuffix(".weight") not in MATRICES}
    save_file(made, tmp_path / "self_forcing.safetensors")
    said = f"^self_forcing.safetensors is packed by {title}.*which only a loader of its own unpacks; take the .safetensors or"
    for node in (None, "Load Causal Wan"):
        with pytest.raises(UnsupportedModelError, match=said):
            registry.read(tmp_path / "self_forcing.safetensors", node=node)
    assert main(["convert", str(tmp_path / "self_forcing.safetensors"), str(tmp_path / "out.safetensors")]) == 2
    assert "is packed by" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["bitsandbytes nf4", "bitsandbytes int8", "sdnq", "nunchaku"])
def test_those_of_worlds_too(tmp_path: Path, kind: str) -> None:
    weight, beside, title = FOREIGN[kind]
    for state, layer in (
        (golden_worldplay.weights(), "blocks.0.attn2.to_q"),
        (golden_worldplay_hunyuan.weights(), "double_blocks.0.txt_attn_proj"),
    ):
        save_file(packed(state, [layer], weight, **beside), tmp_path / "ar_model.safetensors")
        with pytest.raises(UnsupportedModelError, match=f"is packed by {title}"):
            registry.read(tmp_path / "ar_model.safetensors", node="Load WorldPlay")


def test_worlds_with_scales_get_a_way_out(tmp_path: Path) -> None:
    state = golden_worldplay.weights()
    state |= {"blocks.0.attn2.to_q.weight": torch.zeros(256, 256, dtype=E4M3), "blocks.0.attn2.to_q.weight_scale": torch.ones(1)}
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(
        UnsupportedModelError, match="which QVG does not read for this model; take it in 16 or 32 bits, and choose an fp8"
    ):
        registry.read(tmp_path / "a.safetensors")


def without_a_scale(scaled: Tensors) -> Tensors:
    return {name: each for name, each in scaled.items() if name != "blocks.0.self_attn.q.scale_weight"}


WRONG: dict[str, tuple[Tensors, str]] = {
    "a scale is missing": (
        without_a_scale(tiny_wan.scaled(NETWORK)),
        r"has its weights packed with scales, and none for 1 of them .blocks.0.self_attn.q.; it is damaged, or was changed",
    ),
    "one matrix in fp8": (
        {**NETWORK, "blocks.0.self_attn.q.weight": NETWORK["blocks.0.self_attn.q.weight"].to(E4M3)},
        r"has 1 of its 26 matrices in fp8 without a scale .blocks.0.self_attn.q.weight. and the others in torch.float32; a",
    ),
    "whole numbers": (
        {**NETWORK, "blocks.0.self_attn.q.weight": bytes_of(256, 256, dtype=torch.int64)},
        "has torch.int64 in 1 of its",
    ),
    "truth values": ({**NETWORK, "head.modulation": bytes_of(1, 2, 256, dtype=torch.bool)}, "has torch.bool in 1 of its weights"),
    "int8 without scales": (
        packed(NETWORK, MATRICES, bytes_of(256, 256, dtype=torch.int8)),
        "has torch.int8 in 20 of its weights",
    ),
    "a scale for each row": (
        packed(NETWORK, MATRICES, torch.zeros(256, 256, dtype=E4M3), weight_scale=torch.ones(256, 1)),
        "has scales beside its weights .* and nothing that tells ComfyUI what they are, as LightX2V and vLLM write them",
    ),
    "int8 with a scale for each row": (
        packed(NETWORK, MATRICES, bytes_of(256, 256, dtype=torch.int8), weight_scale=torch.ones(256, 1)),
        "has scales beside its weights .* and nothing that tells ComfyUI what they are",
    ),
    "a record that is no text": (
        packed(NETWORK, MATRICES[:1], torch.zeros(256, 256, dtype=E4M3), weight_scale=torch.ones(1), comfy_quant=bytes_of(4)),
        "does not say how its weights were packed",
    ),
    "a record without end": (
        packed(
            NETWORK, MATRICES[:1], torch.zeros(256, 256, dtype=E4M3), weight_scale=torch.ones(1), comfy_quant=bytes_of(99_999)
        ),
        "does not say how its weights were packed",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_nothing_unpacks(tmp_path: Path, kind: str) -> None:
    tensors, said = WRONG[kind]
    save_file(tensors, tmp_path / "self_forcing.safetensors")
    with pytest.raises(UnsupportedModelError, match=f"^self_forcing.safetensors {said}"):
        read_causal_wan(tmp_path / "self_forcing.safetensors")


def text(record: dict[str, object]) -> Tensor:
    return torch.tensor(list(json.dumps(record).encode()), dtype=torch.uint8)


TAKEN: dict[str, Tensors] = {
    "fp8": {name: each.to(E4M3) if each.ndim == 2 else each for name, each in NETWORK.items()},
    "fp8 e5m2": {name: each.to(torch.float8_e5m2) if each.ndim == 2 else each for name, each in NETWORK.items()},
    "fp8 in the blocks": {n: t.to(E4M3) if t.ndim == 2 and n.startswith("blocks.") else t.bfloat16() for n, t in NETWORK.items()},
    "fp8 in one half of every block": {n: t.to(E4M3) if ".ffn." in n and t.ndim == 2 else t for n, t in NETWORK.items()},
    "fp8 in one block of two": {n: t.to(E4M3) if "blocks.1." in n and t.ndim == 2 else t for n, t in NETWORK.items()},
    "fp8 scaled": tiny_wan.scaled(NETWORK),
    "nvfp4": packed(
        NETWORK,
        MATRICES,
        bytes_of(256, 128),
        weight_scale=torch.zeros(256, 16, dtype=E4M3),
        weight_scale_2=torch.ones(()),
        comfy_quant=text({"format": "nvfp4"}),
    ),
    "int8 of ComfyUI": packed(
        NETWORK,
        MATRICES,
        bytes_of(256, 256, dtype=torch.int8),
        weight_scale=torch.ones(256, 1),
        comfy_quant=text({"format": "int8_tensorwise"}),
    ),
    "w4a8 of ComfyUI": packed(
        NETWORK,
        MATRICES,
        bytes_of(256, 128, dtype=torch.int8),
        weight_s_rel=torch.zeros(256, 16, dtype=E4M3),
        weight_s_channel=torch.ones(256),
        weight_codebook=torch.ones(16),
        comfy_quant=text({"format": "asym_w4a8_int8"}),
    ),
}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "net."])
@pytest.mark.parametrize("kind", TAKEN)
def test_what_comfyui_unpacks_is_copied(tmp_path: Path, kind: str, prefix: str) -> None:
    tensors = {prefix + name: each for name, each in TAKEN[kind].items()}
    save_file(tensors, tmp_path / "self_forcing.safetensors")
    found = read_causal_wan(tmp_path / "self_forcing.safetensors")
    assert found.tensors.keys() == TAKEN[kind].keys() and found.remarks == ()
    assert main(["convert", str(tmp_path / "self_forcing.safetensors"), str(tmp_path / "out.safetensors")]) == 0
    written = load_file(tmp_path / "out.safetensors")
    if found.quantized:
        assert all(written[n].dtype == t.dtype and torch.equal(written[n].float(), t.float()) for n, t in TAKEN[kind].items())


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
def test_scales_that_nobody_marked(tmp_path: Path, scale: str) -> None:
    """One number beside an fp8 weight can be read in one way, so ComfyUI is told that way."""
    marked = tiny_wan.scaled(NETWORK)
    bare = {name.replace("scale_weight", scale): each for name, each in marked.items() if name != "scaled_fp8"}
    save_file({f"net.{name}": each for name, each in bare.items()}, tmp_path / "self_forcing.safetensors")
    assert main(["convert", str(tmp_path / "self_forcing.safetensors"), str(tmp_path / "out.safetensors")]) == 0
    written = load_file(tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        layers = json.loads(file.metadata()["_quantization_metadata"])["layers"]
    assert {*layers} == {*MATRICES} and layers[MATRICES[0]] == {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    for name, each in marked.items():
        if name.endswith(".scale_weight"):
            assert torch.equal(written[name.replace("scale_weight", "weight_scale")], each)
    assert read_causal_wan(tmp_path / "out.safetensors").metadata["qvg_variant"] == "self-forcing"


SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "head.head.weight": ((3, 3), r"\[3, 3\], which is \[64, 256\]"),
    "head.head.bias": ((63,), r"\[63\], which is \[64\]"),
    "head.modulation": ((1, 6, 256), r"\[1, 6, 256\], which is \[1, 2, 256\]"),
    "patch_embedding.weight": ((256, 0, 1, 2, 2), r"\[256, 0, 1, 2, 2\], which is \[256, 16, 1, 2, 2\]"),
    "patch_embedding.bias": ((255,), r"\[255\], which is \[256\]"),
    "text_embedding.0.weight": ((256, 4095), r"\[256, 4095\], which is \[256, 4096\]"),
    "text_embedding.2.bias": ((1, 256), r"\[1, 256\], which is \[256\]"),
    "time_embedding.0.weight": ((256, 255), r"\[256, 255\], which is \[256, 256\]"),
    "time_projection.1.weight": ((256, 256), r"\[256, 256\], which is \[1536, 256\]"),
    "blocks.0.self_attn.q.bias": ((128,), r"\[128\], which is \[256\]"),
    "blocks.1.modulation": ((6, 256), r"\[6, 256\], which is \[1, 6, 256\]"),
    "blocks.1.norm3.weight": ((), r"\[\], which is \[256\]"),
    "blocks.0.ffn.0.weight": ((128, 256), r"\[128, 256\], which is \[256, 256\]"),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("scaled", [False, True])
def test_every_weight_is_checked_for_its_shape(tmp_path: Path, name: str, scaled: bool) -> None:
    shape, said = SHAPES[name]
    network = tiny_wan.scaled(NETWORK) if scaled else dict(NETWORK)
    network[name] = torch.zeros(shape, dtype=network[name].dtype)
    save_file(network, tmp_path / "self_forcing.safetensors")
    with pytest.raises(
        UnsupportedModelError, match=f"has {name} in {said} in a Wan 256 channels wide; it is damaged, or was changed"
    ):
        read_causal_wan(tmp_path / "self_forcing.safetensors")


def test_every_tensor_of_the_network_is_looked_at(tmp_path: Path) -> None:
    """Any of them, longer by one row."""
    for name, tensor in NETWORK.items():
        longer = torch.zeros(tensor.shape[0] + 1, *tensor.shape[1:])
        torch.save({**NETWORK, name: longer}, tmp_path / "self_forcing.pt")
        with pytest.raises(UnsupportedModelError, match=rf"has {name} in \[{tensor.shape[0] + 1}|257 channels wide"):
            read_causal_wan(tmp_path / "self_forcing.pt")


def record(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (record("[1]"), "no format for blocks.0"),
        (record("{}"), "no format for blocks.0"),
        (record('{"format": 5}'), "no format for blocks.0"),
        (record("{"), "Expecting"),
        (torch.ones(3), "3 values in torch.float32"),
    ],
)
def test_a_record_that_says_nothing(tmp_path: Path, how: Tensor, why: str) -> None:
    """It would be a traceback in ComfyUI; and the sentence names what cannot be read."""
    made = packed(NETWORK, MATRICES, None, comfy_quant=how, weight_scale=torch.ones(()))
    small = {name: each.to(E4M3) if name.removesuffix(".weight") in MATRICES else each for name, each in made.items()}
    save_file(small, tmp_path / "self_forcing.safetensors")
    with pytest.raises(UnsupportedModelError, match=rf"its blocks\.\S+\.comfy_quant cannot be read \({why}"):
        read_causal_wan(tmp_path / "self_forcing.safetensors")


@pytest.mark.parametrize(
    "beside", [{"weight_dot_q": torch.ones(3)}, {"B": torch.ones(3)}, {"weight:_data::qdata": torch.ones(3)}]
)
def test_weights_packed_in_a_way_that_nobody_knows(tmp_path: Path, beside: Tensors) -> None:
    """They are not missing, and no other file has them."""
    made = packed({name: each for name, each in NETWORK.items() if name.removesuffix(".weight") not in MATRICES}, MATRICES, None)
    made |= packed({}, MATRICES, None, **beside)
    save_file(made, tmp_path / "self_forcing.safetensors")
    with pytest.raises(UnsupportedModelError, match="by which its weights are packed in a way that QVG does not know; take the"):
        read_causal_wan(tmp_path / "self_forcing.safetensors")


def test_scales_of_any_name_beside_small_weights(tmp_path: Path) -> None:
    made = packed(NETWORK, MATRICES, torch.zeros(256, 256).to(E4M3), scale=torch.ones(()))
    save_file(made, tmp_path / "self_forcing.safetensors")
    with pytest.raises(UnsupportedModelError, match="packed in a way that QVG does not know|damaged, or was changed"):
        read_causal_wan(tmp_path / "self_forcing.safetensors")


def test_convert_copies_scales_of_eight_bit_exponents(tmp_path: Path) -> None:
    scales = torch.ones(256, 8).to(torch.float8_e8m0fnu)
    made = packed(NETWORK, MATRICES, None, weight_scale=scales, comfy_quant=record('{"format": "mxfp8"}'))
    small = {name: each.to(E4M3) if name.removesuffix(".weight") in MATRICES else each for name, each in made.items()}
    save_file(small, tmp_path / "self_forcing.safetensors")
    assert main(["convert", str(tmp_path / "self_forcing.safetensors"), str(tmp_path / "out.safetensors")]) == 0
    copied = load_file(tmp_path / "out.safetensors")[f"{MATRICES[0]}.weight_scale"]
    assert copied.dtype == scales.dtype and copied.float().equal(scales.float())
