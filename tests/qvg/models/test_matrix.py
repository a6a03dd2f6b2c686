"""Every family's files in every form that people have, before every loader and `qvg convert`: none is taken for another."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg import UnsupportedModelError
from comfyui_qvg.qvg.models import registry
from comfyui_qvg.qvg.models.common.checkpoint import CausalCheckpoint
from comfyui_qvg.qvg.models.convert import plan_conversion, write_conversion
from comfyui_qvg.qvg.models.worldplay_wan.names import wan_names
from safetensors.torch import load_file, save_file
from torch import Tensor

from ... import golden_dreamx, golden_longlive2, golden_worldplay, golden_worldplay_hunyuan, tiny_longcat
from ...integration import tiny_wan
from ...untrained_film import untrained
from .common.test_shards import split
from .wan.test_weight_sets import diffusers, named

Tensors = dict[str, Tensor]
NODES = registry.loaders(lambda family: family.files is not None)
WORLDS = ("worldplay-wan", "worldplay-hunyuan")


def wan() -> Tensors:
    return tiny_wan.state_dict(seed=1)


def ours(tensors: Tensors) -> Tensors:
    """WorldPlay 5B by ComfyUI's names."""
    return wan_names(tensors)


def longcat() -> Tensors:
    return tiny_longcat.state_dict(1, tiny_longcat.sizes(text=32))


def film() -> Tensors:
    with tempfile.TemporaryDirectory() as folder:
        return load_file(untrained(Path(folder) / "film.safetensors"))


@dataclass(frozen=True)
class Kind:
    """Files of one family: what it is, whose set of weights it releases, a name that tells it, and its tensors."""

    family: str
    averaged: bool
    stem: str
    tensors: Callable[[], Tensors]
    changed: Callable[[Tensors], Tensors] = field(default=lambda tensors: tensors)


KINDS = {
    "self-forcing": Kind("causal-wan", True, "self_forcing", wan),
    "causal-forcing": Kind("causal-wan", True, "causal_forcing_framewise", wan),
    "causvid": Kind("causal-wan", False, "causvid_warp_4step", wan),
    "longlive": Kind("causal-wan", False, "longlive_base", wan),
    "self-forcing, Diffusers' names": Kind(
        "causal-wan", True, "self_forcing", lambda: {diffusers(n): t for n, t in wan().items()}
    ),
    "krea": Kind("krea", True, "krea_realtime", wan),
    "worldplay 5B": Kind("worldplay-wan", False, "model", golden_worldplay.weights),
    "worldplay 5B, ComfyUI's names": Kind("worldplay-wan", False, "world", lambda: ours(golden_worldplay.weights())),
    "worldplay 8B": Kind("worldplay-hunyuan", False, "worldplay_8b_rl", golden_worldplay_hunyuan.weights),
    "longlive2": Kind("longlive2", False, "longlive2_5b", lambda: golden_longlive2.weights(4096)),
    "dreamx": Kind("dreamx", True, "model", lambda: golden_dreamx.weights(4096)),
    "longcat": Kind("longcat", False, "diffusion_pytorch_model", lambda: longcat()),
    "longcat, repacked": Kind("longcat", False, "LongCat_TI2V_comfy", lambda: tiny_longcat.repacked(longcat())),
}


def saved(path: Path, content: object) -> Path:
    if path.suffix == ".safetensors":
        assert isinstance(content, dict)
        save_file({name: tensor.clone() for name, tensor in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def forms(folder: Path, kind: Kind) -> Iterator[tuple[str, Path]]:
    """The same weights as a pickle, flat, wrapped, beside a wrong set, in parts, in 8 bits."""
    good = kind.tensors()
    wrong = {name: tensor + 1 for name, tensor in good.items()}
    raw, averaged = (wrong, good) if kind.averaged else (good, wrong)
    for form, content in {
        "a.pt": {"generator_ema" if kind.averaged else "generator": named(good, "model._fsdp_wrapped_module.")},
        "both.pt": {"generator": raw, "generator_ema": averaged, "critic": wrong, "step": 600},
        "ema.pt": {"model": raw, "ema": averaged, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}},
        "plain.safetensors": good,
        "flat.safetensors": named(raw, "generator.model.") | named(averaged, "generator_ema.model."),
        "packed.safetensors": named(good, "model.diffusion_model."),
        "core.safetensors": named(good, "net."),
        "strange.safetensors": named(good, "foo.bar."),
        "buffers.pt": good | {"freqs": torch.zeros(3), f"{next(iter(sorted(good))).rpartition('.')[0]}.inv_freq": torch.zeros(3)},
    }.items():
        (folder / form).mkdir()
        yield form, saved(folder / form / f"{kind.stem}{Path(form).suffix}", content)
    for part in split(folder / "parts", good, kind.stem):
        yield part.name, part


def sums(tensors: Iterable[Tensor]) -> list[float]:
    """By which weights are known, whatever they are called."""
    return sorted(float(tensor.sum()) for tensor in tensors)


def all_of(checkpoint: CausalCheckpoint) -> list[Tensor]:
    return [*checkpoint.tensors.values(), *(part for parts in checkpoint.joined.values() for part in parts)]


@pytest.mark.parametrize("name", KINDS)
def test_no_family_is_taken_for_another(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    (family,) = (each for each in registry.families() if each.name == kind.family)
    expected = sums(kind.tensors().values())
    for form, path in forms(tmp_path, kind):
        for node in (None, family.load_with):
            found, checkpoint = registry.read(path, node=node)
            assert found is family and sums(all_of(checkpoint)) == expected, form
            assert not [remark for remark in checkpoint.remarks if "lacks" in remark or "architecture" in remark], form
        for node in set(NODES) - {family.load_with}:
            with pytest.raises(UnsupportedModelError, match=f"has the network of .*; load it with '{family.load_with}'"):
                registry.read(path, node=node)
        plan = plan_conversion(path, dtype="fp32")
        assert plan.source.variant and plan.source.variant.name in family.variants


@pytest.mark.parametrize("name", KINDS)
def test_what_convert_writes_is_the_same_model(tmp_path: Path, name: str) -> None:
    """Of two forms the same file; and every loader knows it for what it was."""
    kind = KINDS[name]
    (family,) = (each for each in registry.families() if each.name == kind.family)
    for number, (_, path) in enumerate(forms(tmp_path, kind)):
        if number in (1, 4, 9):  # nested, flat, in parts
            write_conversion(plan_conversion(path, dtype="fp32"), tmp_path / f"{number}.safetensors")
    first, *others = (load_file(tmp_path / f"{number}.safetensors") for number in (1, 4, 9))
    assert all(other.keys() == first.keys() and all(other[n].equal(first[n]) for n in first) for other in others)
    written, checkpoint = registry.read(tmp_path / "1.safetensors", node=family.load_with)
    assert written is family and checkpoint.found.how == "its metadata"


BASES: dict[str, tuple[Callable[[], Tensors], str]] = {
    "Wan 2.1": (wan, "nothing says that it is causal"),
    "Wan 2.2 5B": (
        lambda: {n: t for n, t in ours(golden_worldplay.weights()).items() if "o_prope" not in n and "action" not in n},
        "is Wan 2.2 5B without HY-WorldPlay's layers",
    ),
    "DreamX-World 5B-Cam": (
        lambda: {n: torch.zeros(256, 256) if "_proj.w" in n else t for n, t in golden_dreamx.weights(4096).items()},
        "is the bidirectional DreamX-World 5B-Cam, which denoises all frames at once",
    ),
    "HunyuanVideo 1.5": (
        lambda: {n: t for n, t in golden_worldplay_hunyuan.weights().items() if "prope" not in n and "action" not in n},
        "is a HunyuanVideo without HY-WorldPlay's layers",
    ),
    "Flux": (
        lambda: {"double_blocks.0.img_attn.qkv.weight": torch.zeros(2), "img_in.weight": torch.zeros(2)},
        "is of another arch",
    ),
    "a VAE": (lambda: {"decoder.conv1.weight": torch.zeros(2), "encoder.conv1.weight": torch.zeros(2)}, "is a VAE; put it into"),
    "T5": (lambda: {"shared.weight": torch.zeros(2), "encoder.block.0.x": torch.zeros(2)}, "is a text encoder; put it into"),
    "CLIP Vision": (lambda: {"vision_model.embeddings.patch_embedding.weight": torch.zeros(2, 2)}, "is a CLIP vision model"),
    "a LoRA": (tiny_wan.lora, "holds a LoRA and no model"),
    "the demo film": (film, "is the demo film, which comes with this pack; load it with 'Load Demo Film'"),
    "the demo world": (lambda: load_file(Path(__file__).parents[3] / "assets" / "demo_world.safetensors"), "is of another arch"),
}


@pytest.mark.parametrize("name", BASES)
def test_what_is_none_of_them_is_said_to_be_none(tmp_path: Path, name: str) -> None:
    tensors, said = BASES[name]
    save_file(tensors(), tmp_path / "some.safetensors")
    with pytest.raises(UnsupportedModelError, match=said):
        registry.read(tmp_path / "some.safetensors")
    for node in NODES:
        with pytest.raises(UnsupportedModelError, match="some.safetensors") as refused:
            registry.read(tmp_path / "some.safetensors", node=node)
        assert "take another copy" not in str(refused.value) and "\n" not in str(refused.value)


def test_worlds_in_8_bits_without_scales(tmp_path: Path) -> None:
    """As ComfyUI's own type for the model, chosen on the node, would make them."""
    for name in ("worldplay 5B", "worldplay 8B"):
        kind = KINDS[name]
        small = {n: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for n, t in kind.tensors().items()}
        file = saved(tmp_path / f"{kind.stem}.safetensors", small)
        found, checkpoint = registry.read(file, node="Load WorldPlay")
        assert found.name == kind.family and checkpoint.stored_dtype == torch.float8_e4m3fn
