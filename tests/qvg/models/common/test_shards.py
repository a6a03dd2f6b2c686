"""Models in several files: joined, whichever of them is given, or said what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg import UnsupportedModelError
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models import registry
from comfyui_qvg.qvg.models.common.shards import whole_name
from comfyui_qvg.qvg.models.common.weight_files import open_weights
from comfyui_qvg.qvg.models.wan.checkpoint import read_causal_wan
from safetensors.torch import load_file, save_file
from torch import Tensor

from .... import golden_worldplay_hunyuan
from ....integration import tiny_wan

NETWORK = tiny_wan.state_dict(seed=1)


def split(folder: Path, tensors: dict[str, Tensor], stem: str, count: int = 2, ending: str = "safetensors") -> list[Path]:
    """So many files and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    places = {name: f"{stem}-{1 + number * count // len(names):05}-of-{count:05}.{ending}" for number, name in enumerate(names)}
    for file in sorted(set(places.values())):
        part = {name: tensors[name].clone() for name in names if places[name] == file}
        save_file(part, folder / file) if ending == "safetensors" else torch.save(part, folder / file)
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return [*(folder / file for file in sorted(set(places.values()))), index]


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("indexed", [True, False])
def test_any_part_stands_for_the_whole(tmp_path: Path, ending: str, indexed: bool) -> None:
    *parts, index = split(tmp_path, NETWORK, "self_forcing", 3, ending)
    if not indexed:
        index.unlink()
    for given in (*parts, *([index] if indexed else [])):
        found = read_causal_wan(given)
        assert found.variant and found.variant.name == "self-forcing"
        assert found.tensors.keys() == NETWORK.keys() and all(torch.equal(found.tensors[n], NETWORK[n]) for n in NETWORK)
        assert open_weights(given).parts == tuple(parts)


def test_convert_takes_parts_and_index_alike(tmp_path: Path) -> None:
    made = []
    for number, given in enumerate(split(tmp_path, NETWORK, "self_forcing")):
        out = tmp_path / f"out{number}.safetensors"
        assert main(["convert", str(given), str(out)]) == 0
        made.append(out.read_bytes())
    assert made[0] == made[1] == made[2] and load_file(tmp_path / "out0.safetensors").keys() == NETWORK.keys()


def test_a_folder_tells_of_parts_what_it_tells_of_one_file(tmp_path: Path) -> None:
    for folder, variant in (
        ("autoregressive_checkpoint_warp_4step_cfg2", "causvid-4step"),
        ("LongLive", "longlive"),
    ):
        for given in split(tmp_path / folder, NETWORK, "diffusion_pytorch_model"):
            found = read_causal_wan(given)
            assert found.variant and found.variant.name == variant
    for given in split(tmp_path / "ar_rl_model", golden_worldplay_hunyuan.weights(), "diffusion_pytorch_model"):
        _, read = registry.read(given, node="Load WorldPlay")
        assert read.variant and read.variant.name == "worldplay-8b-rl"


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, index = split(tmp_path, NETWORK, "self_forcing")
    second.unlink()
    with pytest.raises(UnsupportedModelError) as refused:
        open_weights(first)
    assert str(refused.value) == (
        "self_forcing-00001-of-00002.safetensors is part 1 of 2, and self_forcing-00002-of-00002.safetensors is not beside it; "
        "put all parts into one folder"
    )
    with pytest.raises(UnsupportedModelError, match="is the index of a model in 2 parts, and self_forcing-00002-of-00002"):
        open_weights(index)
    assert main(["convert", str(first), str(tmp_path / "out.safetensors")]) == 2
    assert "put all parts into one folder" in capsys.readouterr().err


def test_parts_that_are_counted_from_0(tmp_path: Path) -> None:
    *parts, index = split(tmp_path, NETWORK, "self_forcing", 3)
    index.unlink()
    parts = [part.rename(tmp_path / f"self_forcing-{number:05}-of-00003.safetensors") for number, part in enumerate(parts)]
    for given in parts:
        assert read_causal_wan(given).tensors.keys() == NETWORK.keys() and open_weights(given).parts == tuple(parts)
    parts[2].unlink()
    with pytest.raises(UnsupportedModelError, match="is number 1 of 3 parts .from 0., and self_forcing-00002-of-00003"):
        open_weights(parts[1])


def test_a_part_under_another_name_is_known_for_a_part(tmp_path: Path) -> None:
    for number, part in enumerate(split(tmp_path, NETWORK, "self_forcing")[:2]):
        renamed = part.rename(tmp_path / f"self_forcing{number}.safetensors")
        with pytest.raises(
            UnsupportedModelError, match=r"holds a part of a Wan \(\d blocks, but not .*put all of them into one folder"
        ):
            registry.read(renamed)


def _twice(folder: Path) -> Path:
    first, second, _ = split(folder, NETWORK, "self_forcing")
    save_file({**load_file(second), **load_file(first)}, second)
    return first


def _unlisted(folder: Path) -> Path:
    *_, index = split(folder, NETWORK, "self_forcing")
    content = json.loads(index.read_text())
    content["weight_map"]["blocks.7.x"] = "self_forcing-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    return index


def _index(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "model.safetensors.index.json").write_text(text)
        return folder / "model.safetensors.index.json"

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_twice, "is one of several parts, and two of them have blocks.0"),
        (_unlisted, "the index lists 1 tensors that no part has .blocks.7.x."),
        (_index("{"), "is an index of a model's parts that cannot be read"),
        (_index("[" * 100_000), "is an index of a model's parts that cannot be read"),
        (_index("[]"), "is an index of a model's parts that cannot be read"),
        (_index('{"weight_map": {}}'), "it names no files of its own folder"),
        (_index('{"weight_map": {"a": "../a.safetensors"}}'), "it names no files of its own folder"),
        (_index('{"weight_map": {"a": "/etc/passwd"}}'), "it names no files of its own folder"),
        (_index('{"weight_map": {"a": 5}}'), "is an index of a model's parts that cannot be read"),
        (
            _index('{"weight_map": {"a": "a.safetensors"}}'),
            "is the index of a model in 1 parts, and a.safetensors is not beside it",
        ),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        open_weights(make(tmp_path))


def test_an_index_of_another_model_does_not_hide_the_parts(tmp_path: Path) -> None:
    first, _, index = split(tmp_path, NETWORK, "self_forcing")
    index.write_text('{"weight_map": {"a": "other.safetensors"}}')
    assert read_causal_wan(first).tensors.keys() == NETWORK.keys()


def test_packed_layers_of_all_parts(tmp_path: Path) -> None:
    packed = {n.replace("scale_weight", "weight_scale"): t for n, t in tiny_wan.scaled(NETWORK).items() if n != "scaled_fp8"}
    names = sorted(packed)
    for number, half in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        layers = {name.removesuffix(".weight_scale"): {"format": "float8_e4m3fn"} for name in half if name.endswith("_scale")}
        metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
        save_file(
            {name: packed[name] for name in half}, tmp_path / f"self_forcing-0000{number + 1}-of-00002.safetensors", metadata
        )
    found = read_causal_wan(tmp_path / "self_forcing-00001-of-00002.safetensors")
    layers = json.loads(found.metadata["_quantization_metadata"])["layers"]
    assert len(layers) == sum(name.endswith("_scale") for name in names) and "blocks.1.ffn.0" in layers


def test_names() -> None:
    for name in ("model-00001-of-00003.safetensors", "model_1_of_3.safetensors", "model.safetensors.index.json"):
        assert whole_name(Path("folder") / name) == Path("folder/model.safetensors")
    for name in ("model.safetensors", "best-of-3.safetensors", "1-of-2.pt"):
        assert whole_name(Path(name)) == Path(name)
    assert whole_name(Path("model.safetensors.index.fp16.json")) == Path("model.safetensors")
