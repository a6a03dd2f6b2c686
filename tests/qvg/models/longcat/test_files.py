"""LongCat-Video's files: the release in parts, single files in 16 and 8 bits, the repack, and its authors' LoRAs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg import ConfigError, UnsupportedModelError
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models import registry
from comfyui_qvg.qvg.models.common.checkpoint import CausalCheckpoint
from comfyui_qvg.qvg.models.common.lora import read_lora
from comfyui_qvg.qvg.models.common.lora_changes import LowRank, Stacked
from comfyui_qvg.qvg.models.convert import plan_conversion, write_conversion
from comfyui_qvg.qvg.models.longcat.names import Sizes, in_eight_bits
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .... import tiny_longcat
from ....bounded import own_memory
from ....integration import tiny_wan
from ....sparse_files import write_sparse

NODE = "Load LongCat"
NETWORK = tiny_longcat.state_dict(1, tiny_longcat.sizes(text=32))
SHAPE = tiny_longcat.sizes(text=32)


def read(path: Path, **choices: str) -> CausalCheckpoint:
    family, checkpoint = registry.read(path, node=NODE, **choices)
    assert family.name == "longcat"
    return checkpoint


def values(checkpoint: CausalCheckpoint) -> dict[str, Tensor]:
    return checkpoint.tensors | {name: torch.cat(parts) for name, parts in checkpoint.joined.items()}


def same(tensors: dict[str, Tensor], expected: dict[str, Tensor] = NETWORK) -> bool:
    return tensors.keys() == expected.keys() and all(tensors[name].equal(each) for name, each in expected.items())


def converted(source: Path, out: Path, *, dtype: str | None = "fp32", lora: Path | None = None) -> dict[str, Tensor]:
    write_conversion(plan_conversion(source, dtype=dtype, lora=lora), out)
    return load_file(out)


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def test_the_released_shapes() -> None:
    """48 blocks of 21 tensors and 14 around them, as many parameters as are published."""
    shapes = Sizes(48, 4096, 128, 11008, 4096, 512, 256, 16).shapes()
    assert len(shapes) == 1022
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 13_581_071_424
    assert registry.networks()["longcat-13b"].parameters == 13_581_071_424


def test_the_release_by_any_of_its_parts(tmp_path: Path) -> None:
    files = tiny_longcat.shards(tmp_path / "LongCat-Video" / "dit", NETWORK)
    index = files[0].with_name("diffusion_pytorch_model.safetensors.index.json")
    for path in (*files, index, files[0].parent, tmp_path / "LongCat-Video"):
        checkpoint = read(path)
        assert same(values(checkpoint)) and checkpoint.variant is not None and checkpoint.variant.name == "longcat"
        assert checkpoint.found.how == "its layers" and checkpoint.remarks == ()


def test_what_it_becomes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_longcat.shards(tmp_path / "dit", NETWORK)
    out = tmp_path / "longcat.safetensors"
    assert main(["convert", str(tmp_path / "dit"), str(out)]) == 0
    assert "longcat (known by its layers), 56 tensors" in capsys.readouterr().out
    written = load_file(out)
    assert same(written, {name: tensor.to(torch.bfloat16) for name, tensor in NETWORK.items()})
    assert read(out).found.how == "its metadata"


def test_eight_bits_with_a_scale_for_each_matrix(tmp_path: Path) -> None:
    tiny_longcat.shards(tmp_path / "dit", NETWORK)
    out = tmp_path / "longcat_fp8.safetensors"
    written = converted(tmp_path / "dit", out, dtype="fp8")
    small = [name for name in NETWORK if in_eight_bits(name)]
    assert len(small) == 2 * 8 and out.stat().st_size == plan_conversion(tmp_path / "dit", dtype="fp8").nbytes
    for name, tensor in NETWORK.items():
        if name not in small:
            assert written[name].equal(tensor.to(torch.bfloat16))
            continue
        values_8, scale = written[name], written[name.replace(".weight", ".weight_scale")]
        assert values_8.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32 and scale.shape == ()
        rounded = tensor.to(torch.bfloat16).float()
        assert float(values_8.float().abs().max()) == 448
        # Half a step of three bits of mantissa; below 2^-6 steps are even.
        bound = (rounded.abs() / 16).clamp_min(float(scale) * 2**-10) * (1 + 1e-5)
        assert bool(((values_8.float() * scale - rounded).abs() <= bound).all()), name
    with safe_open(out, "pt") as file:
        layers = json.loads(file.metadata()["_quantization_metadata"])["layers"]
    assert [f"{layer}.weight" for layer in layers] == sorted(small)
    assert {json.dumps(how) for how in layers.values()} == {'{"format": "float8_e4m3fn", "full_precision_matrix_mult": true}'}
    again = read(out)
    assert again.quantized and again.stored_dtype == torch.float8_e4m3fn
    assert same(converted(out, tmp_path / "copy.safetensors", dtype=None), written)


def test_a_matrix_of_zeros_in_eight_bits(tmp_path: Path) -> None:
    empty = NETWORK | {"blocks.0.ffn.w1.weight": torch.zeros_like(NETWORK["blocks.0.ffn.w1.weight"])}
    written = converted(saved(tmp_path / "in.safetensors", empty), tmp_path / "out.safetensors", dtype="fp8")
    assert not written["blocks.0.ffn.w1.weight"].float().any() and float(written["blocks.0.ffn.w1.weight_scale"]) == 1


def test_the_repack_is_the_same_model(tmp_path: Path) -> None:
    file = saved(tmp_path / "LongCat_TI2V_comfy_bf16.safetensors", tiny_longcat.repacked(NETWORK))
    assert same(values(read(file))) and same(converted(file, tmp_path / "out.safetensors"))
    small = converted(file, tmp_path / "fp8.safetensors", dtype="fp8")
    assert same(small, converted(saved(tmp_path / "own.safetensors", NETWORK), tmp_path / "own8.safetensors", dtype="fp8"))


@pytest.mark.parametrize("form", ["release", "repack"])
@pytest.mark.parametrize(
    "layers, name, variant",
    [
        (tiny_longcat.DISTILLS, "cfg_step_lora", "longcat-distilled"),
        (tiny_longcat.DISTILLS, "LongCat_distill_lora_alpha64_bf16", "longcat-distilled"),
        (tiny_longcat.DISTILLS, "my_style", "longcat"),
        (tiny_longcat.REFINES, "renamed", "longcat-refinement"),
    ],
)
def test_loras_of_its_authors(tmp_path: Path, form: str, layers: dict[str, int], name: str, variant: str) -> None:
    tensors = NETWORK if form == "release" else tiny_longcat.repacked(NETWORK)
    adding = tiny_longcat.lora(layers, shape=SHAPE, scale=0.375)
    file, lora = saved(tmp_path / "model.safetensors", tensors), saved(tmp_path / f"{name}.safetensors", adding)
    assert read_lora(lora).scale == 0.375
    written, expected = converted(file, tmp_path / "out.safetensors", lora=lora), tiny_longcat.merged(NETWORK, adding)
    assert written.keys() == expected.keys()
    changed = 0
    for key, tensor in expected.items():
        # The product of rank 4 is rounded in float32 in another order.
        assert torch.allclose(written[key], tensor, rtol=1e-5, atol=1e-6)
        changed += not tensor.equal(NETWORK[key])
    assert changed == len([key for key in adding if key.endswith("lora_down.weight")])
    again = read(tmp_path / "out.safetensors").variant
    assert again is not None and again.name == variant


def test_rows_of_a_joined_matrix() -> None:
    down, ups = torch.randn(6, 5), [torch.randn(4, 2) for _ in range(3)]
    stacked = Stacked(tuple(LowRank(rows, up, 0.5) for rows, up in zip(down.chunk(3), ups, strict=True)))
    assert stacked.made() == [12, 5] and [(first, count) for first, count, _ in stacked.rows] == [(0, 4), (4, 4), (8, 4)]
    parts = stacked.parts
    scale = float(parts["alpha"]) / parts["lora_down.weight"].shape[0]
    assert torch.allclose(scale * parts["lora_up.weight"] @ parts["lora_down.weight"], stacked.difference(), atol=1e-6)


def without(name: str) -> Callable[[Path], Path]:
    return lambda folder: saved(
        folder / "in.safetensors", {key: each for key, each in NETWORK.items() if not key.startswith(name)}
    )


def shard_alone(folder: Path) -> Path:
    first, *others = tiny_longcat.shards(folder / "dit", NETWORK)
    for other in others:
        other.unlink()
    return first


def no_config(folder: Path) -> Path:
    tiny_longcat.shards(folder / "dit", NETWORK)
    (folder / "dit" / "config.json").unlink()
    return folder


def other_config(**said: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tiny_longcat.shards(folder / "dit", NETWORK)
        (folder / "dit" / "config.json").write_text(json.dumps({**tiny_longcat.CONFIG, **said}), encoding="utf-8")
        return folder / "dit"

    return make


def avatar(folder: Path) -> Path:
    return saved(folder / "in.safetensors", NETWORK | {"blocks.0.audio_cross_attn.proj.weight": torch.zeros(2, 2)})


def scaled_repack(folder: Path) -> Path:
    tensors = tiny_longcat.repacked(NETWORK)
    small = {f"blocks.{block}.self_attn.{part}" for block in range(2) for part in "qkvo"}
    tensors |= {f"{name}.weight": tensors[f"{name}.weight"].to(torch.float8_e4m3fn) for name in small}
    tensors |= {f"{name}.scale_weight": torch.tensor(1.0) for name in small}
    return saved(folder / "in.safetensors", tensors | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)})


def half_of_it(folder: Path) -> Path:
    tensors = tiny_longcat.repacked(NETWORK)
    del tensors["blocks.1.cross_attn.v.bias"]
    return saved(folder / "in.safetensors", tensors)


def odd_shape(folder: Path) -> Path:
    return saved(folder / "in.safetensors", NETWORK | {"blocks.1.attn.proj.weight": torch.zeros(32, 31)})


@pytest.mark.parametrize(
    "make, said",
    [
        (shard_alone, "is part 1 of 3, and .*00002-of-00003.* are not beside it; put all parts into one folder"),
        (no_config, "dit has no config.json, by which LongCat-Video's weights say what they are"),
        (other_config(_class_name="LongCatVideoAvatarTransformer3DModel"), "is LongCatVideoAvatar.*, and QVG runs LongCatVideoT"),
        (other_config(text_tokens_zero_pad=False), "says text_tokens_zero_pad False, but QVG reads prompts as the release does"),
        (avatar, "is LongCat-Video-Avatar, which listens to audio"),
        (without("blocks.1.ffn.w2"), "lacks 1 of LongCat-Video's 56 tensors .blocks.1.ffn.w2.weight., so it is incomplete"),
        (without("final_layer"), "lacks 4 of LongCat-Video's 56 tensors"),
        (scaled_repack, "each with a scale of its own, and QVG needs them in one matrix"),
        (half_of_it, "has 1 of the 2 parts of blocks.1.cross_attn.kv_linear.bias"),
        (odd_shape, r"blocks.1.attn.proj.weight is \[32, 31\], but \[32, 32\] in a LongCat-Video of these sizes"),
    ],
)
def test_what_cannot_be_read_gets_a_sentence(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    path = make(tmp_path)
    for node in (NODE, None):
        with pytest.raises(UnsupportedModelError, match=said) as refused:
            registry.read(path, node=node)
        assert "\n" not in str(refused.value)


def other_models_lora(folder: Path) -> Path:
    return saved(folder / "lora.safetensors", tiny_wan.lora())


def half_a_lora(folder: Path) -> Path:
    adding = tiny_longcat.lora(tiny_longcat.DISTILLS, shape=SHAPE)
    return saved(
        folder / "lora.safetensors", {name: each for name, each in adding.items() if not name.endswith("up.blocks.1.weight")}
    )


def larger_lora(folder: Path) -> Path:
    return saved(
        folder / "lora.safetensors", tiny_longcat.lora(tiny_longcat.DISTILLS, shape=tiny_longcat.sizes(heads=4, text=32))
    )


@pytest.mark.parametrize(
    "make, said",
    [
        (other_models_lora, "which this model does not have; it is another model's LoRA"),
        (half_a_lora, "has half of what is added to blocks.0"),
        (larger_lora, "it is another model's LoRA, or of another size of it"),
    ],
)
def test_loras_that_do_not_fit(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    file = saved(tmp_path / "in.safetensors", NETWORK)
    with pytest.raises(UnsupportedModelError, match=said):
        plan_conversion(file, lora=make(tmp_path))


def test_choices_that_are_not_there(tmp_path: Path) -> None:
    file = saved(tmp_path / "in.safetensors", NETWORK)
    with pytest.raises(ConfigError, match="variant is 'longlive', but in.safetensors is LongCat-Video; choose auto or one of"):
        plan_conversion(file, variant="longlive")
    with pytest.raises(ConfigError, match="dtype is 'fp4'; choose one of bf16, fp16, fp32, fp8"):
        plan_conversion(file, dtype="fp4")
    wan = tmp_path / "self_forcing.safetensors"
    save_file(tiny_wan.state_dict(seed=1), wan)
    with pytest.raises(ConfigError, match="dtype fp8 is written for LongCat-Video alone; choose one of bf16, fp16, fp32"):
        plan_conversion(wan, dtype="fp8")
    chosen = plan_conversion(file, variant="longcat-distilled").source.variant
    assert chosen is not None and chosen.name == "longcat-distilled"


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_memory_is_that_of_one_matrix(tmp_path: Path, dtype: str) -> None:
    """24 matrices of up to 12.6 MB, 221 MB in all: several copies of one are there at once, and what the allocator has not yet
    given back."""
    shape = tiny_longcat.sizes(blocks=3, heads=8, head_dim=128, mlp=3072, text=64)
    tensors = {name: torch.empty(sides, device="meta") for name, sides in shape.shapes().items()}
    source = write_sparse(tmp_path / "in.safetensors", tensors)
    plan = plan_conversion(source, dtype=dtype)
    assert source.stat().st_size > 220e6
    with own_memory() as most:
        write_conversion(plan, tmp_path / "out.safetensors")
    assert most[0] < 4 * 12.6e6
