"""A family that exists in this file alone is planned, recognised, converted, loaded and listed: a family is one record."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import ConfigError, UnsupportedModelError
from comfyui_qvg.qvg.camera.selection import MemoryRule
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models import registry
from comfyui_qvg.qvg.models.common.checkpoint import CausalCheckpoint
from comfyui_qvg.qvg.models.common.found import METADATA_KEY, Found
from comfyui_qvg.qvg.models.common.shape import NetworkShape
from comfyui_qvg.qvg.models.common.variants import CausalVariant, by_name
from comfyui_qvg.qvg.models.common.weight_files import WeightFile, open_weights
from comfyui_qvg.qvg.models.family import Ability, Family, FileFormat, Licence, ReadOptions, WorldRule
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...nodes.conftest import nodes, standin  # noqa: F401  (fixtures)

LAYER = "toy.layer.weight"
VARIANTS = by_name(CausalVariant("toy-2step", 4, "", (1.0, 0.5, 0.0), width=8))


def _read(file: WeightFile, options: ReadOptions) -> CausalCheckpoint:
    found = Found(options.members.variants["toy-2step"], "its metadata" if METADATA_KEY in file.metadata else "its layer")
    return CausalCheckpoint(file.path, dict(file.content), dict(file.metadata), found)


def load_toy(state: dict[str, Tensor]) -> nn.Linear:
    """The network: one layer."""
    layer = nn.Linear(8, 8, bias=False)
    layer.load_state_dict({"weight": state[LAYER].float()})
    return layer


TOY = Family(
    name="toy",
    title="the toy",
    abilities=frozenset({Ability.WORLD}),
    licence=Licence("none", "tests"),
    networks={
        "toy-1l": NetworkShape(
            "Toy", layers=1, heads=1, mlp=8, parameters=64, layer_parameters=64, chunk_frames=4, context_frames=16
        )
    },
    variants=VARIANTS,
    files=FileFormat(lambda file: LAYER in file.content, _read, no_lora="is the toy, which takes no LoRA"),
    load_with="Load Toy",
    converts="a smaller toy",
    memory=WorldRule(MemoryRule(16, 12, 16), (64, 32), "Toy"),
    network=load_toy,
)


@pytest.fixture
def toy() -> Iterator[None]:
    """Registered for one test."""
    with registry.registered(TOY):
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A checkpoint of it."""
    save_file({LAYER: torch.eye(8)}, tmp_path / "toy.safetensors")
    return tmp_path / "toy.safetensors"


def test_planned(toy: None, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["plan", "--model", "toy-1l", "--width", "64", "--height", "64", "--frames", "61", "--vram-gb", "8"]
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] is True
    assert main(asked) == 0 and "mode vendor" in capsys.readouterr().out  # a world has modes
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    assert "toy-1l" in capsys.readouterr().out


def test_recognised(toy: None, file: Path) -> None:
    family, read = registry.read(file)
    assert family is TOY and read.variant is VARIANTS["toy-2step"] and read.found.how == "its layer"
    assert registry.read(open_weights(file), node="Load Toy")[0] is TOY
    with pytest.raises(UnsupportedModelError, match="toy.safetensors has the network of the toy; load it with 'Load Toy'"):
        registry.read(file, node="Load Causal Wan")


def test_converted_and_loaded(toy: None, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(file), str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["variant"] == "toy-2step"
    assert load_file(out)[LAYER].dtype == torch.bfloat16
    family, read = registry.read(out)
    assert read.found.how == "its metadata" and family.network is not None
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(family.network(read.tensors)(x), x)
    assert main(["convert", str(file), str(tmp_path / "b.safetensors"), "--lora", str(file)]) == 2
    assert "is the toy, which takes no LoRA" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "of the toy, a smaller toy" in said and "toy-2step" in said


def test_listed(toy: None, nodes: Any) -> None:  # noqa: F811
    assert "and the toy (node 'Load Toy')." in registry.models_that_work()
    part = {name: importlib.import_module(f"comfyui_qvg.nodes.{name}") for name in ("plan", "camera", "comfy.attach")}
    (network,) = (each for each in part["plan"].QVGPlan.define_schema().inputs if each.id == "network")
    assert network.options["options"][-1] == "toy-1l"
    (memory,) = (each for each in part["camera"].QVGCameraPath.define_schema().inputs if each.id == "memory")
    assert memory.options["options"][-1] == "toy-1l"
    with pytest.raises(UnsupportedModelError, match="the toy"):
        part["comfy.attach"].adapter_of(object())


def test_gone_afterwards(file: Path) -> None:
    assert TOY not in registry.families() and "toy-1l" not in registry.networks()
    with pytest.raises(UnsupportedModelError, match="of another architecture"):
        registry.read(file)


def test_families_have_names_of_their_own() -> None:
    known = registry.families()
    listed = [
        [family.name for family in known],
        *(
            [name for family in known for name in names(family)]
            for names in (lambda family: family.networks, lambda family: family.variants)
        ),
    ]
    assert all(len(set(names)) == len(names) for names in listed)


def _texts(node: Any) -> str:
    """All that a node says of itself."""
    schema = node.define_schema()
    return " ".join([schema.description, *(each.options["tooltip"] for each in schema.inputs)])


def test_nodes_name_it(toy: None, nodes: Any) -> None:  # noqa: F811  (a fixture)
    """No list of models in a node's texts is written by hand."""
    world = importlib.import_module("comfyui_qvg.nodes.world")
    start, sampler = _texts(world.QVGWorldStart), _texts(world.QVGWorldSampler)
    assert start.count("64 x 32 (the toy)") == 2 and "the VAE of Wan 2.2 (HY-WorldPlay 5B)" in start and "Toy (the toy)" in start
    assert "or 16 (the toy)" in sampler
    with pytest.raises(ConfigError, match=r"connect the VAE of .* or Toy \(the toy\)"):
        world.QVGWorldStart.check_lazy_status(start="image", width=64, height=64, image=1)
    loaders = importlib.import_module("comfyui_qvg.nodes.causal_loaders")
    assert " or Load Toy" in _texts(loaders.QVGTrainedSigmas)
    with registry.registered(replace(TOY, title="causal toys", load_with="Load Causal Wan", memory=None)):
        assert " and causal toys from the files" in _texts(loaders.QVGLoadCausalWan)
        causal = _texts(importlib.import_module("comfyui_qvg.nodes.causal").QVGCausalSampler)
        assert "and causal toys on ComfyUI's" in causal and "4 for toy-2step" in causal
