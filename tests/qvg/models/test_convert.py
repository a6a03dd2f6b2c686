"""`qvg convert`: one file that ComfyUI's own loader knows, whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import safetensors_writer
from comfyui_qvg.qvg.cli import main
from comfyui_qvg.qvg.models import convert
from comfyui_qvg.qvg.models.convert import DTYPE_NAMES, plan_conversion, write_conversion
from comfyui_qvg.qvg.models.wan.checkpoint import read_causal_wan
from comfyui_qvg.qvg.models.wan.variants import VARIANTS
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...helpers import ROOT
from ...integration import tiny_wan

NETWORK = tiny_wan.state_dict(seed=1)
PATCH = ("patch_embedding.weight", "patch_embedding.bias")
LINEAR = [name for name, tensor in NETWORK.items() if name.startswith("blocks.") and tensor.ndim == 2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save({"generator_ema": {f"model.{name}": tensor for name, tensor in NETWORK.items()}}, tmp_path / "self_forcing_dmd.pt")
    return tmp_path / "self_forcing_dmd.pt"


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def left(folder: Path) -> list[str]:
    """What is in a folder but inputs."""
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".pt")


@pytest.mark.parametrize("dtype", [None, "fp16", "fp32"])
def test_every_tensor_rounded_once(source: Path, tmp_path: Path, dtype: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(source), str(out), *(["--dtype", dtype] if dtype else []), "--json"]) == 0
    wanted = DTYPE_NAMES[dtype or "bf16"]
    written = load_file(out)
    assert written.keys() == NETWORK.keys()
    for name, tensor in written.items():
        # ComfyUI keeps this layer in float32 whatever the file says.
        assert torch.equal(tensor, NETWORK[name] if name in PATCH else NETWORK[name].to(wanted))
    said = metadata(out)
    assert json.loads(said["config"]) == {"transformer": {"causal_ar": True}} and said["qvg_variant"] == "self-forcing"
    result = json.loads(capsys.readouterr().out)
    assert result.pop("seconds") >= 0
    assert result == {
        "out": str(out),
        "bytes": out.stat().st_size,
        "tensors": len(NETWORK),
        "dtype": dtype or "bf16",
        "variant": "self-forcing",
        "known_by": "its name",
        "weights": "generator_ema",
        "lora": None,
        "remarks": [],
    }
    again = read_causal_wan(out)
    assert again.variant is VARIANTS["self-forcing"] and again.found.how == "its metadata"


def test_a_person_gets_a_sentence(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(source), str(out), "--variant", "longlive"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}: longlive (known by your choice), 69 tensors, 0.01 GB, in bf16, from generator_ema\n"
    assert said.err.count("note: ") == 2 and "generator is what longlive releases" in said.err and "give its LoRA too" in said.err


@pytest.mark.parametrize("names", ["peft", "peft with adapter", "kohya with alpha"])
def test_a_lora_is_merged(tmp_path: Path, names: str) -> None:
    base, lora = tmp_path / "longlive_base.pt", tmp_path / "lora.pt"
    torch.save({"generator": {f"model.{name}": tensor for name, tensor in NETWORK.items()}}, base)
    tensors, scale = tiny_wan.lora(rank=4), 1.0
    if names == "peft with adapter":
        tensors = {name.replace(".weight", ".default.weight"): tensor for name, tensor in tensors.items()}
    if names == "kohya with alpha":
        scale = 0.5
        renamed = {"base_model.model.": "diffusion_model.", "lora_A": "lora_down", "lora_B": "lora_up"}
        for before, after in renamed.items():
            tensors = {name.replace(before, after): tensor for name, tensor in tensors.items()}
        tensors |= {f"diffusion_model.{name.removesuffix('weight')}alpha": torch.tensor(2.0) for name in LINEAR}
    torch.save({"generator_lora": tensors} if names == "peft" else tensors, lora)
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(base), str(out), "--lora", str(lora), "--dtype", "fp32"]) == 0
    matrices, written = tiny_wan.lora(rank=4), load_file(out)
    for name, tensor in written.items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        if name in LINEAR:
            expected = NETWORK[name] + scale * matrices[f"{layer}.lora_B.weight"] @ matrices[f"{layer}.lora_A.weight"]
            assert torch.allclose(tensor, expected, rtol=1e-5, atol=1e-6) and not torch.equal(tensor, NETWORK[name])
        else:
            assert torch.equal(tensor, NETWORK[name])
    assert metadata(out)["qvg_lora"] == "lora.pt" and metadata(out)["qvg_variant"] == "longlive"
    assert read_causal_wan(out).remarks == ()


def test_weights_of_eight_bits_are_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = tiny_wan.scaled(NETWORK)
    source, out = tmp_path / "self_forcing.safetensors", tmp_path / "out.safetensors"
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in packed.items()}, source)
    assert main(["convert", str(source), str(out)]) == 0
    written = load_file(out)
    assert written.keys() == packed.keys() and all(written[name].dtype == packed[name].dtype for name in packed)
    assert all(torch.equal(written[name].float(), packed[name].float()) for name in packed)
    assert json.loads(metadata(out)["config"])["transformer"]["causal_ar"]
    assert capsys.readouterr().out.endswith(f"{len(packed)} tensors, 0.01 GB, as they were\n")
    assert main(["convert", str(source), str(tmp_path / "b.safetensors"), "--dtype", "bf16"]) == 2
    assert "come with scales" in capsys.readouterr().err


def bad_lora(kind: str) -> dict[str, Tensor]:
    tensors = tiny_wan.lora()
    first = next(iter(tensors))
    if kind == "another layer":
        return {name.replace("blocks.0", "blocks.7"): tensor for name, tensor in tensors.items()}
    if kind == "another shape":
        return {name: tensor.repeat(2, 1) if "lora_B" in name else tensor for name, tensor in tensors.items()}
    if kind == "half":
        return {name: tensor for name, tensor in tensors.items() if name != first}
    second, row = first.replace("lora_A", "lora_B"), torch.zeros(4)
    if kind in ("vectors", "convolution", "nothing"):
        shape = {"vectors": (4,), "convolution": (4, 256, 1, 1), "nothing": (0, 256)}[kind]
        return {first: torch.zeros(shape), second: torch.zeros(shape[::-1])}
    if kind == "kohya":
        return {f"lora_unet_blocks_0_self_attn_q.lora_{way}.weight": torch.zeros(4, 4) for way in ("down", "up")}
    if kind == "alphas":
        return {**tensors, first.replace("lora_A.weight", "alpha"): row}
    if kind == "itself":
        content: dict[str, Any] = {}
        content["generator_lora"] = content
        return content
    if kind == "numbers for names":
        return {0: row}  # type: ignore[dict-item]
    if kind == "NaN":
        return {name: tensor * torch.nan for name, tensor in tensors.items()}
    if kind == "dora":
        return {**tensors, first.replace("lora_A.weight", "dora_scale"): torch.zeros(2)}
    return dict(NETWORK)


LORAS = {
    "another layer": "changes 10 of its 20 layers (blocks.7.self_attn.q, blocks.7.self_attn.k, blocks.7.self_attn.v, ...), which "
    "this model does not have; it is another model's LoRA, or has another tool's names",
    "another shape": "makes [512, 256] of blocks.0.self_attn.q, which is [256, 256] here; it is another model's LoRA",
    "half": "has half of what is added to base_model.model.blocks.0.self_attn.q (up); take another copy of this file",
    "dora": "is a DoRA, which scales weights anew (base_model.model.blocks.0.self_attn.q.dora_scale), and merging that is not",
    "vectors": "has [4] and [4] for base_model.model.blocks.0.self_attn.q, which make no product",
    "convolution": "has [4, 256, 1, 1] and [1, 1, 256, 4] for base_model.model.blocks.0.self_attn.q, which make no product",
    "nothing": "has [0, 256] and [256, 0] for base_model.model.blocks.0.self_attn.q, which make no product",
    "kohya": "makes [4, 4] of blocks.0.self_attn.q, which is [256, 256] here; it is another model's LoRA, or of another size",
    "alphas": "has a base_model.model.blocks.0.self_attn.q.alpha that is no number",
    "numbers for names": "is no LoRA (0 in it); choose a LoRA's file",
    "itself": "is no LoRA (more than 8 dictionaries in one another, or one in itself); choose a LoRA's file",
    "a model": "is no LoRA but a whole model; give it as the model's file",
}


@pytest.mark.parametrize("kind", LORAS)
def test_what_is_no_lora_for_this_model(source: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(bad_lora(kind), tmp_path / "lora.pt")
    assert main(["convert", str(source), str(tmp_path / "o.safetensors"), "--lora", str(tmp_path / "lora.pt")]) == 2
    assert f"error: lora.pt {LORAS[kind]}" in capsys.readouterr().err
    assert left(tmp_path) == []


def test_damaged_values_are_not_taken_for_large_ones(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(bad_lora("NaN"), tmp_path / "lora.pt")
    assert main(["convert", str(source), str(tmp_path / "o.safetensors"), "--lora", str(tmp_path / "lora.pt")]) == 2
    assert "becomes NaN or infinity by the LoRA, which is damaged" in capsys.readouterr().err
    torch.save(NETWORK | {"head.head.bias": torch.full((64,), torch.inf)}, tmp_path / "self_forcing.pt")
    assert main(["convert", str(tmp_path / "self_forcing.pt"), str(tmp_path / "o.safetensors")]) == 2
    assert "head.head.bias holds NaN or infinity, so the file is damaged" in capsys.readouterr().err and left(tmp_path) == []


def test_nothing_is_overwritten_and_nothing_half_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.safetensors"
    for arguments, sentence in (
        ([str(source), str(tmp_path / "out.pt")], "out.pt is to be a name and .safetensors behind it"),
        ([str(source), ""], "'' is to be a name and .safetensors behind it"),
        ([str(source), str(tmp_path / ".safetensors")], "'.safetensors' is to be a name and .safetensors behind it"),
        ([str(source), str(tmp_path / "no" / "out.safetensors")], "is no folder; make it first"),
        ([str(source), str(out), "--dtype", "fp8"], "dtype fp8 is written for LongCat-Video alone; choose one of"),
        ([str(source), str(out), "--variant", "x"], "variant is 'x'; choose auto or one of"),
        ([str(tmp_path / "x.pt"), str(out)], "cannot be opened"),
        ([str(source), str(tmp_path / f"{'x' * 300}.safetensors")], "File name too long"),
    ):
        assert main(["convert", *arguments]) == 2
        assert sentence in capsys.readouterr().err and left(tmp_path) == []
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as full:
        full.setattr(convert.shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 1000))
        assert main(["convert", str(source), str(out)]) == 1
        assert "has 1000 bytes free and out.safetensors takes 6." in capsys.readouterr().err and left(tmp_path) == []
    out.write_bytes(b"mine")
    assert main(["convert", str(source), str(out)]) == 2
    assert "is not overwritten" in capsys.readouterr().err and out.read_bytes() == b"mine"


def test_a_file_that_contains_itself_ends_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "self_forcing.pt")
    assert main(["convert", str(tmp_path / "self_forcing.pt"), str(tmp_path / "o.safetensors")]) == 2
    said = capsys.readouterr().err
    assert "self_forcing.pt has more than 8 dictionaries in one another, or one in itself" in said and said.count("\n") == 1


def test_values_that_the_type_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(NETWORK | {"head.head.bias": torch.full((64,), 1e6)}, tmp_path / "self_forcing.safetensors")
    arguments = ["convert", str(tmp_path / "self_forcing.safetensors"), str(tmp_path / "o.safetensors")]
    assert main([*arguments, "--dtype", "fp16"]) == 2
    assert "head.head.bias holds values that torch.float16 does not have" in capsys.readouterr().err
    assert left(tmp_path) == ["self_forcing.safetensors"]
    assert main(arguments) == 0


def test_one_tensor_at_a_time(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a tensor is written, none that was made before it is alive."""
    alive: list[int] = []
    dead: list[int] = []
    made = convert._made

    class Watched(Tensor):
        def __del__(self) -> None:
            dead.append(1)

    def watched(*arguments: object) -> Tensor:
        alive.append(len(alive) - len(dead))
        return made(*arguments).as_subclass(Watched)  # type: ignore[arg-type]

    monkeypatch.setattr(convert, "_made", watched)
    sizes: list[int] = []
    plan = plan_conversion(source)
    write_conversion(plan, tmp_path / "out.safetensors", sizes.append)
    assert len(alive) == len(NETWORK) == len(sizes) and max(alive) <= 1
    assert sum(sizes) == sum(tensor.nbytes for tensor in plan.tensors.values()) < plan.nbytes
    assert plan.nbytes == (tmp_path / "out.safetensors").stat().st_size


def test_every_tensor_begins_where_its_values_may(source: Path) -> None:
    plan = plan_conversion(source)
    header = safetensors_writer._header(safetensors_writer._ordered(plan.tensors), plan.metadata)
    entries = json.loads(header[8:])
    del entries["__metadata__"]
    assert len(header) % 8 == 0
    for name, entry in entries.items():
        assert entry["data_offsets"][0] % plan.tensors[name].dtype.itemsize == 0


# Says so when it begins to write, and waits for a word before it goes on.
HELD = """
import sys
sys.path.insert(0, sys.argv[1])
import bootstrap_package
from comfyui_qvg.qvg.models import convert
write = convert.write_safetensors
def held(path, *arguments):
    path.write_bytes(b"begun")
    print("writing", flush=True)
    sys.stdin.readline()
    write(path, *arguments)
convert.write_safetensors = held
from comfyui_qvg.qvg.cli import main
raise SystemExit(main(["convert", *sys.argv[2:]]))
"""


@contextmanager
def held_conversions(source: Path, out: Path, *dtypes: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Real `qvg convert`s to one output, each with a dtype and in the middle of its work."""
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with ExitStack() as stack:
        started = []
        for dtype in dtypes:
            command = [sys.executable, "-c", HELD, str(ROOT / "tools"), str(source), str(out), "--dtype", dtype]
            started.append(stack.enter_context(subprocess.Popen(command, **pipes)))
            stack.callback(started[-1].kill)
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == "writing\n"
        yield started


def is_whole(out: Path, dtype: str) -> bool:
    """Whether `out` is the network in `dtype`, and to the byte as long as it should be."""
    written, plan = load_file(out), plan_conversion(out, dtype=dtype)
    stored = {tensor.dtype for name, tensor in written.items() if name not in PATCH}
    return written.keys() == NETWORK.keys() and stored == {DTYPE_NAMES[dtype]} and plan.nbytes == out.stat().st_size


@pytest.mark.parametrize("first", ["bf16", "fp16", None], ids=["the first ends first", "the second ends first", "at once"])
def test_two_conversions_to_one_output(source: Path, tmp_path: Path, first: str | None) -> None:
    out, dtypes = tmp_path / "out.safetensors", ["bf16", "fp16"]
    with held_conversions(source, out, *dtypes) as started:
        assert len(left(tmp_path)) == 2 and not out.exists()
        processes = dict(zip(dtypes, started, strict=True))
        ended = {}
        if first:
            ended[first] = (*processes[first].communicate("go on\n", timeout=60), processes[first].returncode)
        for process in started:
            if process.returncode is None:
                assert process.stdin is not None
                process.stdin.write("go on\n")
                process.stdin.flush()
        for dtype, process in processes.items():
            if dtype not in ended:
                ended[dtype] = (*process.communicate(timeout=60), process.returncode)
    (winner,) = (dtype for dtype, (_, _, code) in ended.items() if code == 0)
    (loser,) = (dtype for dtype, (_, _, code) in ended.items() if code == 2)
    assert first in (winner, None)
    assert f"in {winner}," in ended[winner][0] and ended[loser][0] == ""
    assert ended[loser][1] == f"error: {out} is there already and is not overwritten; give another name, or delete it first\n"
    assert left(tmp_path) == ["out.safetensors"] and is_whole(out, winner)


def test_a_link_that_leads_nowhere_is_not_overwritten(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    out.symlink_to(tmp_path / "elsewhere")
    assert main(["convert", str(source), str(out)]) == 2
    assert "is there already and is not overwritten" in capsys.readouterr().err
    assert out.is_symlink() and left(tmp_path) == ["out.safetensors"]


# Under nohup a program, and those that it starts, are to ignore that the terminal is gone.
HANGUP = [] if os.name == "nt" or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a program without telling it")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, *HANGUP])
def test_broken_off_it_leaves_nothing(source: Path, tmp_path: Path, how: signal.Signals) -> None:
    with held_conversions(source, tmp_path / "out.safetensors", "bf16") as (process,):
        assert len(left(tmp_path)) == 1
        process.send_signal(how)
        assert process.wait(60) == 130
    assert left(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL on Windows")
def test_what_a_killed_one_leaves_the_next_removes(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    with held_conversions(source, out, "fp16") as (process,):
        process.kill()
    assert len(left(tmp_path)) == 1 and not out.exists()
    assert main(["convert", str(source), str(out)]) == 0
    assert left(tmp_path) == ["out.safetensors"] and is_whole(out, "bf16")
