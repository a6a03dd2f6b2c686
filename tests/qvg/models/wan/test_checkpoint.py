"""Files of the causal Wan family as people have them, tiny, and files that are taken for them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import ConfigError, UnsupportedModelError
from comfyui_qvg.qvg.models.common.checkpoint import CausalCheckpoint
from comfyui_qvg.qvg.models.common.weight_files import is_marked_causal, open_weights
from comfyui_qvg.qvg.models.wan import which_variant
from comfyui_qvg.qvg.models.wan.checkpoint import read_causal_wan
from comfyui_qvg.qvg.models.wan.variants import VARIANTS
from comfyui_qvg.qvg.models.wan.which_variant import relative_named, variant_named
from safetensors.torch import save_file
from torch import Tensor

from ....integration import tiny_wan
from ....sparse_files import wan, write_sparse

Tensors = dict[str, Tensor]
NETWORK = tiny_wan.state_dict(seed=1)
EMA = tiny_wan.state_dict(seed=2)
FSDP = "model._fsdp_wrapped_module."


def named(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def saved(path: Path, content: Any, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(content, path, metadata)
    else:
        torch.save(content, path)
    return path


def require_equal(found: CausalCheckpoint, expected: Tensors) -> None:
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[name], expected[name]) for name in expected)
    assert is_marked_causal(found.metadata)


# File, what is in it, the variant it is, the weights that are taken, which those are.
RELEASES: list[tuple[str, Any, str, str, Tensors]] = [
    ("self_forcing_dmd.pt", {"generator_ema": named(EMA, "model.")}, "self-forcing", "generator_ema", EMA),
    ("self_forcing_sid.pt", {"generator_ema": named(EMA, "model.")}, "self-forcing", "generator_ema", EMA),
    (
        "chunkwise/causal_forcing.pt",
        {"generator": named(NETWORK, FSDP), "generator_ema": named(EMA, FSDP)},
        "causal-forcing-chunkwise",
        "generator",
        NETWORK,
    ),
    (
        "framewise/causal_forcing.pt",
        {"generator": named(NETWORK, "model."), "generator_ema": named(EMA, FSDP)},
        "causal-forcing-framewise",
        "generator_ema",
        EMA,
    ),
    ("causal_forcing.pt", {"generator": named(NETWORK, "model.")}, "causal-forcing-chunkwise", "generator", NETWORK),
    ("causal_forcing.pt", {"generator_ema": named(EMA, "model.")}, "causal-forcing-framewise", "generator_ema", EMA),
    ("framewise-2step.pt", {"generator_ema": named(EMA, "model.")}, "causal-forcing++-2step", "generator_ema", EMA),
    ("framewise-1step.pt", {"generator_ema": named(EMA, "model.")}, "causal-forcing++-1step", "generator_ema", EMA),
    ("autoregressive_checkpoint/model.pt", {"generator": named(NETWORK, "model.")}, "causvid", "generator", NETWORK),
    ("models/longlive_base.pt", {"generator": named(NETWORK, "model.")}, "longlive", "generator", NETWORK),
    ("Self-Forcing-1.3B.pth", NETWORK, "self-forcing", "", NETWORK),
    ("causal_forcing-framewise.safetensors", NETWORK, "causal-forcing-framewise", "", NETWORK),
    (
        "all in one/self forcing.safetensors",
        {**named(NETWORK, "model.diffusion_model."), "vae.decoder.conv1.weight": torch.zeros(3)},
        "self-forcing",
        "",
        NETWORK,
    ),
]


@pytest.mark.parametrize(("name", "content", "variant", "weights", "expected"), RELEASES, ids=[each[0] for each in RELEASES])
def test_released_files(tmp_path: Path, name: str, content: Any, variant: str, weights: str, expected: Tensors) -> None:
    found = read_causal_wan(saved(tmp_path / name, content))
    require_equal(found, expected)
    assert found.variant is VARIANTS[variant] and found.weights == weights and not found.quantized
    assert ("LoRA" in " ".join(found.remarks)) == (variant == "longlive")


def test_training_checkpoints_and_wrappers_in_the_middle(tmp_path: Path) -> None:
    wrapped = {
        f"model._fsdp_wrapped_module.{name.replace('self_attn', '_checkpoint_wrapped_module.self_attn')}": tensor
        for name, tensor in NETWORK.items()
    }
    content = {"generator": wrapped, "critic": named(EMA, FSDP), "step": torch.tensor(600)}
    found = read_causal_wan(saved(tmp_path / "self-forcing.pt", content))
    require_equal(found, NETWORK)
    assert found.remarks == ("generator_ema is what self-forcing releases, and self-forcing.pt has generator alone",)
    nested = read_causal_wan(saved(tmp_path / "self-forcing nested.pt", {"state_dict": {"generator_ema": wrapped}}))
    require_equal(nested, NETWORK)


def test_choices_by_hand(tmp_path: Path) -> None:
    both = saved(tmp_path / "self_forcing.pt", {"generator": named(NETWORK, "model."), "generator_ema": named(EMA, "model.")})
    assert read_causal_wan(both, weights="generator").weights == "generator"
    chosen = read_causal_wan(both, variant="causvid")
    assert chosen.variant is VARIANTS["causvid"] and chosen.weights == "generator" and chosen.found.how == "your choice"
    for choice, sentence in (
        ({"variant": "self-forcings"}, "variant is 'self-forcings'; choose auto or one of self-forcing, "),
        ({"weights": "ema"}, "weights is 'ema'; choose auto, generator or generator_ema"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            read_causal_wan(both, **choice)
    one = saved(tmp_path / "self_forcing_dmd.pt", {"generator_ema": named(EMA, "model.")})
    with pytest.raises(ConfigError, match="has no generator; it has generator_ema: choose that, or auto"):
        read_causal_wan(one, weights="generator")
    plain = saved(tmp_path / "self_forcing.safetensors", NETWORK)
    assert "means nothing" in read_causal_wan(plain, weights="generator").remarks[0]


def test_metadata_tell_before_names(tmp_path: Path) -> None:
    ours = saved(tmp_path / "self_forcing.safetensors", NETWORK, {"qvg_variant": "causvid"})
    assert read_causal_wan(ours).variant is VARIANTS["causvid"]
    config = {"config": json.dumps({"transformer": {"causal_ar": True, "other": 1}, "else": 2})}
    unknown = read_causal_wan(saved(tmp_path / "something.safetensors", NETWORK, config))
    assert unknown.variant is None and "choose its variant" in unknown.remarks[0]
    assert json.loads(unknown.metadata["config"]) == json.loads(config["config"])
    newer = saved(tmp_path / "newer.safetensors", NETWORK, {"qvg_variant": "of the future", **config})
    assert read_causal_wan(newer).variant is None
    merged = saved(tmp_path / "longlive.safetensors", NETWORK, {"qvg_lora": "lora.pt"})
    assert read_causal_wan(merged).remarks == ()


def test_a_renamed_release_is_known_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path / "renamed.safetensors", NETWORK)
    size, digest = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(which_variant, "_RELEASES", ((size, digest, "causal-forcing-framewise"),))
    found = read_causal_wan(file)
    assert found.variant is VARIANTS["causal-forcing-framewise"] and found.found.how == "its hash"
    monkeypatch.setattr(which_variant, "_RELEASES", ((size, digest[::-1], "causal-forcing-framewise"),))
    with pytest.raises(UnsupportedModelError, match="nothing says that it is causal"):
        read_causal_wan(file)
    # Another size: not one byte is read for the hash.
    monkeypatch.setattr(which_variant, "_RELEASES", ((size + 1, digest, "causal-forcing-framewise"),))
    monkeypatch.setattr(hashlib, "sha256", None)
    with pytest.raises(UnsupportedModelError, match="nothing says that it is causal"):
        read_causal_wan(file)


@pytest.mark.parametrize(
    "name",
    [
        "wan2.1_t2v_1.3B_fp16.safetensors",
        "self-forcing/wan2.1_t2v_1.3B.safetensors",  # a folder does not speak for a file that has a name
        "Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors",
    ],
)
def test_an_ordinary_wan_is_refused_until_somebody_says_that_it_is_causal(tmp_path: Path, name: str) -> None:
    file = saved(tmp_path / name, NETWORK)
    with pytest.raises(
        UnsupportedModelError, match="nothing says that it is causal: an ordinary Wan 2.1, which denoises all frames"
    ):
        read_causal_wan(file)
    require_equal(read_causal_wan(file, variant="self-forcing"), NETWORK)


def test_names() -> None:
    assert variant_named(Path("Causal-Forcing++/framewise_2step.safetensors"))[0] == "causal-forcing++-2step"
    assert variant_named(Path("LongLive-1.3B.pt"))[0] == "longlive"
    assert variant_named(Path("causal-forcing-chunkwise_bf16.safetensors"))[0] == "causal-forcing-chunkwise"
    assert variant_named(Path("my/model.pt")) == (None, "")
    assert "Rolling" in str(relative_named(Path("rolling_forcing_dmd.pt")))
    assert "Rolling" in str(relative_named(Path("chunkwise/longvideo.pt")))
    assert "early stage" in str(relative_named(Path("ode_init.pt")))
    assert "all frames at once" in str(relative_named(Path("bidirectional_checkpoint2/model.pt")))
    assert relative_named(Path("krea-realtime-video-14b.safetensors")) is None


def test_larger_namesakes_and_relatives_are_refused_unless_marked(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="named like self-forcing but 5120 channels wide, and causal ones are 1536"):
        read_causal_wan(write_sparse(tmp_path / "self-forcing-14b.safetensors", wan(40)))
    relative = saved(tmp_path / "rolling_forcing_dmd.safetensors", NETWORK)
    with pytest.raises(UnsupportedModelError, match="named like a Rolling-Forcing model, which denoises several blocks"):
        read_causal_wan(relative)
    assert read_causal_wan(relative, variant="self-forcing").variant is VARIANTS["self-forcing"]
    marked = saved(tmp_path / "krea_realtime.safetensors", NETWORK, tiny_wan.CAUSAL)
    assert read_causal_wan(marked).variant is None
    both = {"generator": named(NETWORK, "model."), "generator_ema": named(EMA, "model.")}
    with pytest.raises(UnsupportedModelError, match="choose causal-forcing-chunkwise or causal-forcing-framewise"):
        read_causal_wan(saved(tmp_path / "causal_forcing.pt", both))


def without(*parts: str) -> Tensors:
    return {name: tensor for name, tensor in NETWORK.items() if not any(part in name for part in parts)}


def in_itself(*names: str) -> dict[str, Any]:
    """Dictionaries in one another, the first in the last."""
    inside: list[dict[str, Any]] = [{} for _ in names]
    for number, name in enumerate(names):
        inside[number][name] = inside[(number + 1) % len(names)]
    return inside[0]


def wrapped(content: dict[str, Any], times: int) -> dict[str, Any]:
    """`content` in so many dictionaries."""
    for _ in range(times):
        content = {"model": content}
    return content


STRANGERS: dict[str, tuple[Any, str]] = {
    "image to video": (
        {**NETWORK, "img_emb.proj.0.weight": torch.zeros(2), "patch_embedding.weight": torch.zeros(256, 36, 1, 2, 2)},
        "is an image-to-video Wan",
    ),
    "36 channels": (
        {**NETWORK, "patch_embedding.weight": torch.zeros(256, 36, 1, 2, 2)},
        "takes 36 channels, as an image-to-video",
    ),
    "5B": ({**NETWORK, "patch_embedding.weight": torch.zeros(3072, 48, 1, 2, 2)}, "is a Wan 2.2 of 48 latent channels"),
    "vace": ({**NETWORK, "vace_patch_embedding.weight": torch.zeros(2)}, "is Wan VACE"),
    "vae": ({"decoder.conv1.weight": torch.zeros(2), "encoder.conv1.weight": torch.zeros(2)}, "is a VAE; put it into models/vae"),
    "text": ({"token_embedding.weight": torch.zeros(2), "blocks.0.attn.q.weight": torch.zeros(2)}, "is a text encoder"),
    "text of Comfy-Org": ({"shared.weight": torch.zeros(2), "encoder.block.0.layer.0": torch.zeros(2)}, "is a text encoder"),
    "lora": (
        {"generator_lora": {"base_model.model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(2)}},
        "holds a LoRA and no model",
    ),
    "diffusers": ({"condition_embedder.time_proj.weight": torch.zeros(2)}, "has Diffusers' names"),
    "other": ({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2)}, "is of another architecture .it has double_blocks.0."),
    "lacking": ({"generator_ema": named(without("blocks.1.ffn"), "model.")}, "lacks 4 of the 69 tensors of a Wan with 2 layers"),
    "cameras": (
        {**NETWORK, "blocks.0.cam_injector_layer1.weight": torch.zeros(2)},
        "a Wan with 1 more tensors in its blocks .blocks.0.cam_injector_layer1.weight., such as camera controls",
    ),
    "critic": ({"critic": named(NETWORK, "model."), "step": 5}, "holds no weights that are known .critic, step."),
    "nothing": ({}, "holds no weights that are known .nothing at all."),
    "itself": (in_itself("model"), "has more than 8 dictionaries in one another, or one in itself, and no weights on the way; a"),
    "itself by another name": (in_itself("x"), "more than 8 dictionaries in one another"),
    "itself, and numbers": ({**in_itself("state_dict"), "step": 5}, "more than 8 dictionaries in one another"),
    "each other": (in_itself("generator", "state_dict"), "more than 8 dictionaries in one another"),
    "nine": (wrapped({"step": 5}, 9), "more than 8 dictionaries in one another"),
    "wide": ({**NETWORK, "patch_embedding.weight": torch.zeros(200, 16, 1, 2, 2)}, "200 channels wide"),
}


@pytest.mark.parametrize("wrappings", [0, 1, 8])
def test_wrappings_that_are_looked_through(tmp_path: Path, wrappings: int) -> None:
    require_equal(read_causal_wan(saved(tmp_path / "self_forcing.pt", wrapped(dict(NETWORK), wrappings))), NETWORK)


@pytest.mark.parametrize("kind", STRANGERS)
def test_other_models_get_a_sentence(tmp_path: Path, kind: str) -> None:
    content, sentence = STRANGERS[kind]
    with pytest.raises(UnsupportedModelError, match=sentence) as refused:
        read_causal_wan(saved(tmp_path / "self_forcing.pt", content))
    assert "\n" not in str(refused.value)


def test_eight_bits_are_left_as_they_are(tmp_path: Path) -> None:
    for prefix in ("", "model.diffusion_model."):
        old = tiny_wan.scaled(NETWORK)
        found = read_causal_wan(saved(tmp_path / f"self_forcing{len(prefix)}.safetensors", named(old, prefix)))
        require_equal(found, old)
        assert found.quantized
    record = {"layers": {"model.diffusion_model.blocks.0.self_attn.q": {"format": "float8_e4m3fn"}}}
    metadata = {"_quantization_metadata": json.dumps(record)}
    new = {name.replace("scale_weight", "weight_scale"): tensor for name, tensor in old.items() if name != "scaled_fp8"}
    found = read_causal_wan(saved(tmp_path / "self_forcing.safetensors", named(new, prefix), metadata))
    assert found.quantized and json.loads(found.metadata["_quantization_metadata"])["layers"] == {
        "blocks.0.self_attn.q": {"format": "float8_e4m3fn"}
    }


class _Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("it ran",)


def _cut(name: str, content: Any, keep: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = saved(folder / name, content)
        file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
        return file

    return make


def _raw(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _old_format(folder: Path) -> Path:
    torch.save(NETWORK, folder / "old.pt", _use_new_zipfile_serialization=False)
    data = (folder / "old.pt").read_bytes()
    (folder / "old.pt").write_bytes(data[: len(data) // 2])
    return folder / "old.pt"


def _old_format_cut_in_its_names(folder: Path) -> Path:
    torch.save(NETWORK, folder / "old.pt", _use_new_zipfile_serialization=False)
    (folder / "old.pt").write_bytes((folder / "old.pt").read_bytes()[:1000])
    return folder / "old.pt"


DAMAGED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "pt cut off": (_cut("self_forcing_dmd.pt", {"generator_ema": NETWORK}, 0.7), r"self_forcing_dmd.pt is cut off \(\d+ bytes"),
    "pt of the old format cut off": (_old_format, "is damaged, or no file of torch's"),
    "pt of the old format cut off in its names": (_old_format_cut_in_its_names, "is damaged, or no file of torch's"),
    "safetensors cut off": (_cut("a.safetensors", NETWORK, 0.7), "is cut off or damaged"),
    "safetensors cut off in its header": (_cut("a.safetensors", NETWORK, 0.0001), "is cut off or damaged"),
    "empty": (_raw("a.pt", b""), "has 0 bytes, too few for weights"),
    "web page": (_raw("a.safetensors", b"<!DOCTYPE html><html><body>Sign in</body></html>"), "is a web page"),
    "pointer": (_raw("a.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00"), "is Git LFS's pointer"),
    "gguf": (_raw("a.gguf", b"GGUF" + bytes(60)), "is a GGUF file"),
    "text": (_raw("a.pt", b"these are not the weights you are looking for"), "is text, not weights .it begins 'these are not"),
    "code": (lambda folder: saved(folder / "a.pt", {"generator": NETWORK, "x": _Code()}), "more than weights .*would run code"),
    "a module": (
        lambda folder: saved(folder / "a.pt", torch.nn.Linear(2, 2)),
        "more than weights .torch.nn.modules.linear.Linear",
    ),
    "a list": (lambda folder: saved(folder / "a.pt", [torch.zeros(2)] * 9), "holds a list, not weights by name"),
    "absent": (lambda folder: folder / "a.pt", "cannot be opened .No such file"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_and_foreign_files_get_a_sentence_and_run_nothing(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, sentence = DAMAGED[kind]
    with pytest.raises(UnsupportedModelError, match=sentence) as refused:
        open_weights(make(tmp_path))
    assert "\n" not in str(refused.value) and not Path("it ran").exists()


ODD: dict[str, tuple[Callable[[], dict[Any, Any]], str]] = {
    "numbers for names": (lambda: {0: torch.zeros(2), 1: torch.zeros(2)}, "holds no weights that are known"),
    "a layer far off": (lambda: {**NETWORK, "blocks.999999999.x": torch.zeros(2)}, "lacks .* of a Wan with 3 layers"),
    "a vector for patches": (lambda: {**NETWORK, "patch_embedding.weight": torch.zeros(9)}, "has a patch_embedding of .9., and"),
    "a layer of another width": (
        lambda: {**NETWORK, "blocks.1.ffn.2.weight": NETWORK["blocks.1.ffn.2.weight"][:, :8]},
        r"has blocks.1.ffn.2.weight in \[256, 8\], which is \[256, \d+\] in a Wan 256 channels wide",
    ),
    "values that are not there": (
        lambda: {**NETWORK, "head.modulation": NETWORK["head.modulation"].to("meta")},
        "has no plain values in 1 of its tensors .head.modulation.",
    ),
    "a sparse tensor": (
        lambda: {**NETWORK, "head.modulation": NETWORK["head.modulation"].to_sparse()},
        "has no plain values in 1 of its tensors .head.modulation.",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_get_a_sentence(tmp_path: Path, kind: str) -> None:
    make, sentence = ODD[kind]
    with pytest.raises(UnsupportedModelError, match=sentence):
        read_causal_wan(saved(tmp_path / "self_forcing.pt", make()))


def test_what_a_trainer_puts_between_its_tensors_does_not_matter(tmp_path: Path) -> None:
    require_equal(read_causal_wan(saved(tmp_path / "self_forcing.pt", {**NETWORK, 0: torch.zeros(2), "step": 7})), NETWORK)


@pytest.mark.parametrize("record", ["{bad", "[1]", '{"layers": [1]}', "[" * 100_000])
def test_a_record_of_packed_weights_that_cannot_be_read(tmp_path: Path, record: str) -> None:
    file = saved(tmp_path / "self_forcing.safetensors", tiny_wan.scaled(NETWORK), {"_quantization_metadata": record})
    with pytest.raises(UnsupportedModelError, match="does not say how its weights were packed"):
        read_causal_wan(file)


def test_metadata_without_sense_are_none(tmp_path: Path) -> None:
    for config in ("{bad", "[" * 100_000):
        assert read_causal_wan(saved(tmp_path / "self_forcing.safetensors", NETWORK, {"config": config})).variant


def test_opening_reads_next_to_nothing(tmp_path: Path) -> None:
    """Both sets of weights of a checkpoint are there, mapped: only what is used is read from disk."""
    file = saved(tmp_path / "self_forcing.pt", {"generator": NETWORK, "generator_ema": EMA})
    found = read_causal_wan(file)
    mapped = Path("/proc/self/maps")
    if not mapped.exists():
        pytest.skip("no /proc/self/maps here")
    assert str(file) in mapped.read_text() and found.tensors["head.modulation"].numel()
