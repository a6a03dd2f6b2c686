"""Load Causal Wan in a real ComfyUI: the family's files, tiny, under core's own sampler; and what `qvg convert` makes of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg.cli import main
from safetensors.torch import save_file

from ..qvg.models.common.test_shards import split
from ..qvg.models.wan.test_weight_sets import diffusers
from . import tiny_wan
from .client import Client, Prompt, between, bypassed
from .test_causal_wan import BALANCED, EXACT, add, changed, native, psnr_db

NETWORK = tiny_wan.state_dict()
EMA = tiny_wan.state_dict(seed=2)
FSDP = "model._fsdp_wrapped_module."
FRAMES = 6  # two blocks of three


def named(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


# File, what is in it, frames per block, and what the node says first.
FILES: dict[str, tuple[Any, int, str]] = {
    "self_forcing_dmd.pt": ({"generator_ema": named(NETWORK, "model.")}, 3, "self-forcing (known by its name)"),
    "self_forcing_sid.pt": ({"generator_ema": named(NETWORK, FSDP)}, 3, "self-forcing (known by its name)"),
    "chunkwise/causal_forcing.pt": (
        {"generator": named(NETWORK, "model."), "generator_ema": named(EMA, "model.")},
        3,
        "causal-forcing-chunkwise (known by its name)",
    ),
    "framewise/causal_forcing.pth": (
        {"generator_ema": named(NETWORK, "model.")},
        1,
        "causal-forcing-framewise (known by its name)",
    ),
    "framewise-2step.pt": ({"generator_ema": named(NETWORK, "model.")}, 1, "causal-forcing++-2step (known by its name)"),
    "autoregressive_checkpoint/model.pt": ({"generator": named(NETWORK, "model.")}, 3, "causvid (known by its name)"),
    "longlive_base.pt": ({"generator": named(NETWORK, "model.")}, 3, "longlive (known by its name)"),
    "causal_forcing-framewise.safetensors": (NETWORK, 1, "causal-forcing-framewise (known by its name)"),
}


@pytest.fixture(autouse=True, scope="module")
def files(server: Client) -> Path:
    folder, loras = server.base / "models" / "diffusion_models", server.base / "models" / "loras"
    for name, (content, _, _) in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file(content, folder / name, tiny_wan.CAUSAL)
        else:
            torch.save(content, folder / name)
    tiny_wan.write(folder / "causal.safetensors")
    save_file(NETWORK, folder / "plain.safetensors")
    save_file(tiny_wan.scaled(NETWORK), folder / "self_forcing_fp8_scaled.safetensors")
    save_file({**NETWORK, "img_emb.proj.0.weight": torch.zeros(2)}, folder / "i2v.safetensors")
    save_file(
        {n: t for n, t in tiny_wan.scaled(NETWORK).items() if n != "scaled_fp8"}, folder / "self_forcing_fp8_bare.safetensors"
    )
    fp8 = {n: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t.bfloat16() for n, t in NETWORK.items()}
    save_file(fp8, folder / "self_forcing_fp8.safetensors")
    split(folder, NETWORK, "self_forcing_parts")
    save_file(named(EMA, "generator.") | named(NETWORK, "generator_ema.model."), folder / "self_forcing_flat.safetensors")
    save_file({diffusers(n): t for n, t in NETWORK.items()}, folder / "self_forcing_diffusers.safetensors")
    packed = tiny_wan.scaled(NETWORK) | {
        "blocks.0.self_attn.q.comfy_quant": torch.tensor([*b'{"format": "of tomorrow"}'], dtype=torch.uint8)
    }
    save_file(
        {n.replace("scale_weight", "weight_scale"): t for n, t in packed.items() if n != "scaled_fp8"}, folder / "new.safetensors"
    )
    shutil.copy(folder / "self_forcing_dmd.pt", folder / "self_forcing_renamed.safetensors")
    data = (folder / "self_forcing_dmd.pt").read_bytes()
    (folder / "cut.pt").write_bytes(data[: len(data) // 2])
    loras.mkdir(parents=True, exist_ok=True)
    torch.save({"generator_lora": tiny_wan.lora()}, loras / "longlive_lora.pt")
    return folder


def ours(file: str, cache: dict[str, Any] | None = None, frames: int = FRAMES, block: int = 3, **inputs: Any) -> Prompt:
    """Core's graph with our loader."""
    loader = {"class_type": "QVGLoadCausalWan", "inputs": {"file": file, "variant": "auto", **inputs}}
    prompt = native(cache, frames=frames, block=block)
    return {**prompt, "loader": loader}


def core(file: str = "causal.safetensors", frames: int = FRAMES, block: int = 3) -> Prompt:
    """With core's loader."""
    return changed(native(None, frames=frames, block=block), "loader", unet_name=file)


def text(client: Client, prompt: Prompt) -> str:
    """What the loader's node says."""
    prompt = {**prompt}
    add(prompt, "use", "SaveLatent", samples=["sample", 0], filename_prefix="latents/said")
    result = client.run({name: step for name, step in prompt.items() if name != "report"})
    assert result.status == "success", result.messages
    said: str = result.outputs["loader"]["text"][0]
    return said


@pytest.mark.parametrize("name", FILES)
def test_every_file_runs_as_core_runs_the_same_weights(client: Client, name: str) -> None:
    _, block, first = FILES[name]
    prompt = ours(name, block=block)
    seen = len(client.log())
    said = text(client, prompt).splitlines()
    assert said[0] == first and said[1].startswith(f"blocks of {block} latent frame(s), sigmas 1, ")
    assert first in client.log()[seen:] and "was trained with blocks" not in client.log()[seen:]
    trained = client.latent(changed(prompt, "sigmas", "QVGTrainedSigmas"))
    assert trained.shape[2] == FRAMES and trained.isfinite().all()
    if "causvid" not in first:  # whose shift is another
        assert torch.equal(client.latent(prompt), client.latent(core(block=block)))


def test_files_in_folders_are_found_in_the_way_of_any_system(client: Client, files: Path) -> None:
    loras = client.base / "models" / "loras"
    (loras / "long").mkdir(exist_ok=True)
    shutil.copy(loras / "longlive_lora.pt", loras / "long")
    for file, lora in (("autoregressive_checkpoint\\model.pt", "none"), ("longlive_base.pt", "long\\longlive_lora.pt")):
        said = text(client, ours(file, lora=lora))
        assert said == text(client, ours(file.replace("\\", "/"), lora=lora.replace("\\", "/"))).replace("long/", "long\\")
    code, answer = client.post("/prompt", {"prompt": ours("autoregressive_checkpoint\\other.pt")})
    assert code == 400 and [error["type"] for error in answer["node_errors"]["loader"]["errors"]] == ["value_not_in_list"]


def test_the_folders_list_what_people_download(client: Client) -> None:
    inputs = client.get("/object_info/QVGLoadCausalWan")["QVGLoadCausalWan"]["input"]
    assert set(FILES) <= set(inputs["required"]["file"][1]["options"])
    assert "longlive_lora.pt" in inputs["optional"]["lora"][1]["options"]


def test_trained_sigmas_are_the_schedulers_where_that_is_right(client: Client) -> None:
    """Four steps of BasicScheduler on shift 5, and CausVid's own shift of 8."""
    steps = changed(ours("self_forcing_dmd.pt"), "sigmas", steps=4)
    trained = changed(steps, "sigmas", "QVGTrainedSigmas")
    assert psnr_db(client.latent(steps), client.latent(trained)) > 90
    causvid, shifted = ours("autoregressive_checkpoint/model.pt"), core()
    add(shifted, "shift", "ModelSamplingSD3", model=["loader", 0], shift=8.0)
    for name in ("guider", "sigmas"):
        shifted[name]["inputs"]["model"] = ["shift", 0]
    assert torch.equal(client.latent(causvid), client.latent(shifted))


def test_our_cache_behind_it_and_another_block_size_warned_of(client: Client) -> None:
    plain = client.latent(ours("self_forcing_dmd.pt"))
    assert torch.equal(plain, client.latent(ours("self_forcing_dmd.pt", EXACT)))
    seen = len(client.log())
    client.latent(ours("self_forcing_dmd.pt", BALANCED, block=2))
    warning = "makes blocks of 2 latent frame(s), but self-forcing was trained with blocks of 3; set num_frame_per_block to 3"
    assert warning in client.log()[seen:]


def test_a_bypassed_cache_node_leaves_our_sampler_the_exact_memory(client: Client) -> None:
    """And a report of it; under core's sampler, core's own cache."""
    frames = 12
    prompt = ours("self_forcing_dmd.pt", EXACT, frames=frames)
    add(prompt, "sampler", "QVGCausalSampler", frames_per_block=3)
    exact = client.latent(prompt)
    result = client.run(bypassed(prompt))
    assert result.status == "success", result.messages
    assert torch.equal(client.latent(bypassed(prompt)), exact)
    assert "cache: exact" in result.outputs["report"]["text"][0]
    assert torch.equal(exact, client.latent(core(frames=frames)))
    said = client.run(changed(bypassed(ours("self_forcing_dmd.pt", EXACT)), "noise", noise_seed=123))
    assert said.status == "error" and "was not sampled with this MODEL" in str(said.messages)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_converted_file_is_the_original(client: Client, files: Path, dtype: str) -> None:
    """By our loader and by the stock one, bit for bit, at the precision that was written. With our cache behind it: core's is in
    the weights' type, and a CPU computes in another than bf16."""
    out = files / f"converted_{dtype}.safetensors"
    out.unlink(missing_ok=True)
    assert main(["convert", str(files / "self_forcing_dmd.pt"), str(out), "--dtype", dtype]) == 0
    original = client.latent(ours("self_forcing_dmd.pt", EXACT, dtype=dtype))
    assert torch.equal(original, client.latent(ours(out.name, EXACT, dtype=dtype)))
    assert "self-forcing (known by its metadata)" in text(client, ours(out.name))
    stock = changed(native(EXACT, frames=FRAMES), "loader", unet_name=out.name)
    assert torch.equal(original, client.latent(stock))
    assert torch.equal(original, client.latent(core(out.name)))
    assert torch.equal(original, client.latent(core())) == (dtype == "fp32")


def test_a_base_and_its_lora(client: Client, files: Path, record_property: Any) -> None:
    base = client.latent(ours("longlive_base.pt", dtype="fp32"))
    both = client.latent(ours("longlive_base.pt", dtype="fp32", lora="longlive_lora.pt"))
    assert "give its LoRA too" in text(client, ours("longlive_base.pt"))
    said = text(client, ours("longlive_base.pt", lora="longlive_lora.pt"))
    assert "with longlive_lora.pt" in said and "give its LoRA too" not in said
    assert "\ntrained with window_frames 12 and sink_frames 3: set these on QVG KV Cache" in said
    assert "window_frames" not in text(client, ours("self_forcing_dmd.pt"))
    merged = files / "merged.safetensors"
    merged.unlink(missing_ok=True)
    lora = client.base / "models" / "loras" / "longlive_lora.pt"
    assert main(["convert", str(files / "longlive_base.pt"), str(merged), "--lora", str(lora), "--dtype", "fp32"]) == 0
    written = client.latent(ours("merged.safetensors", dtype="fp32"))
    record_property("psnr_db", [psnr_db(base, both), psnr_db(both, written)])
    assert psnr_db(base, both) < 40 < 80 < psnr_db(both, written)


def every_kind(prefix: str = "diffusion_model.") -> dict[str, torch.Tensor]:
    """Layers changed in all the ways that are sums: kohya's, PEFT's, LoHa, LoKr, differences of a bias and of a norm."""
    generator = torch.Generator().manual_seed(5)
    at = [f"{prefix}blocks.{block}.{layer}" for block in (0, 1) for layer in ("self_attn.q", "cross_attn.v", "self_attn.v")]

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.3

    tensors = {
        f"{at[0]}.lora_down.weight": made(4, 256),
        f"{at[0]}.lora_up.weight": made(256, 4),
        f"{at[0]}.alpha": torch.tensor(8.0),
    }
    tensors |= {f"{at[1]}.lora_A.weight": made(4, 256), f"{at[1]}.lora_B.weight": made(256, 4)}
    tensors |= {f"{at[2]}.hada_w{number}_a": made(256, 4) for number in (1, 2)}
    tensors |= {f"{at[2]}.hada_w{number}_b": made(4, 256) for number in (1, 2)}
    tensors |= {f"{at[3]}.lokr_w1": made(4, 8), f"{at[3]}.lokr_w2_a": made(64, 2), f"{at[3]}.lokr_w2_b": made(2, 32)}
    tensors |= {f"{at[3]}.alpha": torch.tensor(1.0), f"{at[4]}.diff": made(256, 256) * 0.2, f"{at[4]}.diff_b": made(256)}
    return tensors | {f"{prefix}blocks.1.self_attn.norm_k.diff": made(256)}


def test_what_loras_add_is_what_core_and_convert_make_of_it(client: Client, files: Path, record_property: Any) -> None:
    lora = client.base / "models" / "loras" / "kinds.safetensors"
    save_file(every_kind(), lora)
    base = ours("causal.safetensors", dtype="fp32", variant="self-forcing")
    one = changed(base, "loader", lora=lora.name)
    stock = changed(base, "loader")
    add(stock, "lora", "LoraLoaderModelOnly", model=["loader", 0], lora_name=lora.name, strength_model=1.0)
    for step in stock.values():
        for name, value in step["inputs"].items():
            if value == ["loader", 0] and step is not stock["lora"]:
                step["inputs"][name] = ["lora", 0]
    plain, with_lora, by_core = (client.latent(prompt) for prompt in (base, one, stock))
    merged = files / "kinds_merged.safetensors"
    merged.unlink(missing_ok=True)
    arguments = ["convert", str(files / "causal.safetensors"), str(merged), "--lora", str(lora), "--dtype", "fp32"]
    assert main([*arguments, "--variant", "self-forcing"]) == 0
    written = client.latent(ours(merged.name, dtype="fp32"))
    save_file(every_kind("transformer."), lora)  # names that core does not know
    renamed = client.latent(changed(one, "loader", lora=lora.name, weights="auto"))
    record_property("psnr_db", [psnr_db(plain, with_lora), psnr_db(with_lora, by_core), psnr_db(with_lora, written)])
    assert psnr_db(plain, with_lora) < 40 < 80 < min(psnr_db(with_lora, by_core), psnr_db(with_lora, written))
    assert torch.equal(renamed, with_lora)


def test_alpha_out_of_the_metadata_counts_and_a_contradiction_is_said(client: Client) -> None:
    lora = client.base / "models" / "loras" / "alpha.safetensors"
    tensors = {name.replace("base_model.model.", "transformer."): tensor for name, tensor in tiny_wan.lora(rank=4).items()}
    four = {name: tensor * 4 if "lora_B" in name else tensor for name, tensor in tensors.items()}
    prompt = ours("longlive_base.pt", dtype="fp32", lora=lora.name)
    save_file(four, lora)
    wanted = client.latent(prompt)
    client.forget()
    save_file(tensors, lora, {"transformer.lora_alpha": "16", "transformer.r": "4"})
    assert psnr_db(wanted, client.latent(prompt)) > 80
    client.forget()
    assert "with alpha.safetensors at scale 4, computed in" in text(client, prompt)
    client.forget()
    save_file(tensors, lora, {"lora_alpha": "16", "r": "8"})
    assert "note: alpha.safetensors says rank 8 in its metadata, and the matrices of transformer.blocks" in text(client, prompt)


@pytest.mark.parametrize("file", ["longlive_base.pt", "causal_forcing-framewise.safetensors"])
def test_comfyui_has_it_loaded_again(client: Client, file: str) -> None:
    prompt = ours(file, EXACT, lora="longlive_lora.pt")
    again = between(prompt, "TestingLoadedAgain")
    assert torch.equal(client.latent(prompt), client.latent(again))


def test_lora_nodes_behind_it(client: Client) -> None:
    """Core's own loader of the same LoRA gives the same."""
    mine = client.latent(ours("longlive_base.pt", lora="longlive_lora.pt"))
    named_for_core = {name.replace("base_model.model.", "diffusion_model."): each for name, each in tiny_wan.lora().items()}
    save_file(named_for_core, client.base / "models" / "loras" / "for_core.safetensors")
    behind = between(ours("longlive_base.pt", EXACT), "LoraLoaderModelOnly", lora_name="for_core.safetensors", strength_model=1.0)
    assert torch.equal(mine, client.latent(behind))


def test_weights_of_eight_bits_with_scales(client: Client) -> None:
    said = text(client, ours("self_forcing_fp8_scaled.safetensors", EXACT))
    assert "with scales" in said
    packed = client.latent(ours("self_forcing_fp8_scaled.safetensors", EXACT))
    assert 15 < psnr_db(client.latent(ours("self_forcing_dmd.pt", EXACT)), packed) < 60


def test_the_stock_loader_runs_a_converted_file_of_eight_bits(client: Client, files: Path) -> None:
    out = files / "converted_fp8.safetensors"
    out.unlink(missing_ok=True)
    assert main(["convert", str(files / "self_forcing_fp8_scaled.safetensors"), str(out)]) == 0
    stock = changed(native(EXACT, frames=FRAMES), "loader", unet_name=out.name)
    assert torch.equal(client.latent(stock), client.latent(ours("self_forcing_fp8_scaled.safetensors", EXACT)))


@pytest.mark.parametrize(
    "file",
    [
        *("self_forcing_parts-00001-of-00002.safetensors", "self_forcing_parts-00002-of-00002.safetensors"),
        *("self_forcing_flat.safetensors", "self_forcing_diffusers.safetensors", "self_forcing_renamed.safetensors"),
    ],
)
def test_other_forms_of_the_same_weights(client: Client, file: str) -> None:
    """Parts, flat names of two sets, Diffusers' names, a .pt called .safetensors: run as the released file is."""
    assert torch.equal(client.latent(ours(file)), client.latent(ours("self_forcing_dmd.pt")))
    said = text(client, ours(file))
    assert ("note: generator_ema was taken, which is what self-forcing releases" in said) == ("flat" in file)


def test_scales_that_nobody_marked_are_read_as_marked_ones(client: Client, files: Path) -> None:
    marked = client.latent(ours("self_forcing_fp8_scaled.safetensors", EXACT))
    assert torch.equal(client.latent(ours("self_forcing_fp8_bare.safetensors", EXACT)), marked)
    out = files / "converted_bare.safetensors"
    out.unlink(missing_ok=True)
    assert main(["convert", str(files / "self_forcing_fp8_bare.safetensors"), str(out)]) == 0
    assert torch.equal(client.latent(changed(native(EXACT, frames=FRAMES), "loader", unet_name=out.name)), marked)


@pytest.mark.parametrize(
    ("file", "dtype", "stored"),
    [
        ("self_forcing_fp8.safetensors", "auto", "torch.float8_e4m3fn"),
        ("self_forcing_fp8_scaled.safetensors", "auto", "torch.bfloat16"),
        ("self_forcing_fp8_bare.safetensors", "auto", "torch.bfloat16"),
        ("self_forcing_dmd.pt", "fp8_e4m3fn", "torch.float8_e4m3fn"),
        ("self_forcing_dmd.pt", "fp8_e5m2", "torch.float8_e5m2"),
        ("self_forcing_dmd.pt", "fp8_e4m3fn_fast", "torch.float8_e4m3fn"),
        ("self_forcing_dmd.pt", "auto", "torch.bfloat16"),
        ("self_forcing_dmd.pt", "fp16", "torch.float16"),
    ],
)
def test_weights_of_8_bits_are_computed_in_bf16_where_the_card_has_it(client: Client, file: str, dtype: str, stored: str) -> None:
    """As those of 16 bits are: ComfyUI would take fp16. And they run so."""
    prompt = ours("self_forcing_dmd.pt", EXACT)
    plain = client.latent(prompt)
    prompt["loader"] = {"class_type": "TestingOnACard", "inputs": {"file": file, "dtype": dtype, "node": "Load Causal Wan"}}
    result = client.run({"loader": prompt["loader"]})
    assert result.status == "success", result.messages
    computed = "torch.float16" if dtype == "fp16" else "torch.bfloat16"
    first, again, kept, said = result.outputs["loader"]["text"]
    assert (first, again, kept) == (computed, computed, stored) and f"computed in {computed.removeprefix('torch.')}" in said
    assert 15 < psnr_db(plain, client.latent(prompt)) < 90


BAD: dict[str, tuple[Prompt, str]] = {
    "plain": (ours("plain.safetensors"), "nothing says that it is causal: an ordinary Wan 2.1"),
    "cut off": (ours("cut.pt"), "cut.pt is cut off ("),
    "behind core's loader": (
        changed(native(EXACT, frames=FRAMES), "loader", unet_name="plain.safetensors"),
        "load it with 'Load Causal Wan', or convert it once with `qvg convert`. Of a GGUF take the .pt or .safetensors",
    ),
    "packed as nobody knows yet": (
        ours("new.safetensors", variant="self-forcing"),
        "new.safetensors is packed as of tomorrow, which this ComfyUI does not unpack (it knows float8_e4m3fn, ",
    ),
    "image to video": (ours("i2v.safetensors"), "is an image-to-video Wan"),
    "weights": (ours("self_forcing_dmd.pt", weights="generator"), "has no generator; it has generator_ema: choose that, or auto"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_loaded_gets_a_sentence(client: Client, name: str) -> None:
    prompt, sentence = BAD[name]
    assert sentence in client.run(prompt).error


def test_a_plain_wan_by_choice_and_sigmas_of_an_unknown_model(client: Client) -> None:
    assert torch.equal(client.latent(ours("plain.safetensors", variant="self-forcing")), client.latent(core()))
    assert "choose its variant" in text(client, ours("causal.safetensors"))
    unknown = changed(ours("causal.safetensors"), "sigmas", "QVGTrainedSigmas")
    assert "nothing is known of how this MODEL was trained" in client.run(unknown).error


def test_a_comfyui_that_is_too_old(client: Client) -> None:
    """Its version is named before a file of gigabytes is opened."""
    prompt = {"loader": ours("self_forcing_dmd.pt")["loader"]}
    add(prompt, "old", "TestingOldComfyUI", file="self_forcing_dmd.pt", model=["loader", 0])
    result = client.run(prompt)
    assert result.status == "success", result.messages
    sentence = "this ComfyUI has no causal Wan model; ComfyUI 0.21 or newer has: update it"
    assert result.outputs["old"]["text"] == [sentence, sentence]


def test_a_file_that_is_gone(client: Client, files: Path) -> None:
    shutil.copy(files / "self_forcing_dmd.pt", files / "self_forcing_gone.pt")
    client.latent(ours("self_forcing_gone.pt"))
    (files / "self_forcing_gone.pt").unlink()
    client.forget()
    code, answer = client.post("/prompt", {"prompt": ours("self_forcing_gone.pt")})
    assert code == 400 and "self_forcing_gone.pt" in str(answer)
