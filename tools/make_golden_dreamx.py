"""Write tests/data/golden_dreamx.safetensors: run the official DreamX-World on the inputs of tests/golden_dreamx.py.

    python tools/make_golden_dreamx.py CHECKOUT     a checkout of AMAP-ML/DreamX-World; needs einops, scipy and packaging

Flash attention is replaced by torch's, which its own fallback would run in bfloat16, the literal 880 tokens per frame by 4 and 30
layers by 2, diffusers' base classes by torch's, noise between steps by the inputs', the text encoder and the VAE by what hands
on the given tensors. Everything else is the checkout's own code, in float32 on the CPU; the timesteps a second time in bfloat16.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bootstrap_package  # noqa: F401 (makes the repository importable as comfyui_qvg)
from changed_source import changed_module
from comfyui_qvg.tests import golden_dreamx as golden

TOKENS = golden.SIDE**2 // 4
STEPS = [1000, 750, 500, 250]


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--commit", help="what the checkout is, if it is no git repository")
    options = parser.parse_args()
    commit = options.commit or subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=options.checkout, text=True).strip()
    make_importable(options.checkout)
    with torch.no_grad():
        tensors = poses(options.checkout)
        tensors |= pipeline(options.checkout, tensors["views"].float())
        tensors |= timesteps(options.checkout)
    metadata = {"source": f"AMAP-ML/DreamX-World {commit}"}
    save_file({name: x.contiguous().clone() for name, x in tensors.items()}, golden.FILE, metadata)
    print(f"{golden.FILE}: {len(tensors)} tensors, {golden.FILE.stat().st_size} bytes")


def module(name: str, **members: Any) -> types.ModuleType:
    """A module of that name with nothing but these members."""
    made = sys.modules[name] = types.ModuleType(name)
    vars(made).update(members)
    return made


def make_importable(checkout: Path) -> None:
    """Stand-ins for what the checkout imports and this does not need."""
    sys.path.insert(0, str(checkout))
    for name in ("diffusers", "diffusers.models", "wan", "wan.modules", "utils"):
        module(name).__path__ = [str(checkout / name.replace(".", "/"))]
    module("diffusers.configuration_utils", ConfigMixin=object, register_to_config=lambda function: function)
    module("diffusers.models.modeling_utils", ModelMixin=nn.Module)
    module("wan.modules.tokenizers", HuggingfaceTokenizer=None)
    module("wan.modules.t5", umt5_xxl=None)
    module("wan.modules.vae_2_2", _video_vae=None)
    module("utils.memory", gpu=None, get_cuda_free_memory_gb=None, DynamicSwapInstaller=None)
    sys.modules["utils.memory"].move_model_to_device_with_memory_preservation = None  # type: ignore[attr-defined]
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment, return-value]


def attention(q: Tensor, k: Tensor, v: Tensor, *unused: Any, **options: Any) -> Tensor:
    """[B, S, H, D], as theirs."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def code(checkout: Path, name: str, replaced: dict[str, tuple[str, int]]) -> types.ModuleType:
    """A module of the checkout with some of its literals replaced, each so many times."""
    file = checkout / f"{name.replace('.', '/')}.py"

    def change(source: str) -> str:
        for old, (new, count) in replaced.items():
            assert source.count(old) == count, (name, old, source.count(old))
            source = source.replace(old, new)
        return source

    return changed_module(name, file, change)


def network(checkout: Path) -> nn.Module:
    """Theirs, with our weights."""
    theirs = importlib.import_module("wan.modules.attention")
    theirs.attention = theirs.flash_attention = attention
    made = code(checkout, "wan.modules.causal_camera_model_2_2_prope_infinity", {"* 880": (f"* {TOKENS}", 2)})
    model: nn.Module = made.CausalWanModel(
        model_type="ti2v",
        in_dim=golden.CHANNELS,
        out_dim=golden.CHANNELS,
        dim=golden.WIDTH,
        ffn_dim=golden.FFN,
        text_dim=golden.TEXT,
        num_heads=golden.HEADS,
        num_layers=golden.LAYERS,
        local_attn_size=12,
        sink_size=3,
        add_control_adapter=True,
        attn_compress=4,
    )
    model.load_state_dict(golden.weights(), strict=True)
    return model.eval()


def wrapped(checkout: Path, model: nn.Module | None) -> Any:
    """Their wrapper around it, with their scheduler."""
    wrapper = importlib.import_module("utils.wan_wrapper")
    scheduler = importlib.import_module("utils.scheduler")
    made = wrapper.WanDiffusionCameraWrapper.__new__(wrapper.WanDiffusionCameraWrapper)
    nn.Module.__init__(made)
    made.model = model
    made.scheduler = scheduler.FlowMatchScheduler(shift=5.0, sigma_min=0.0, extra_one_step=True)
    made.scheduler.set_timesteps(1000, training=True)
    made.seq_len = TOKENS * golden.FRAMES
    made._bind_scheduler_methods()
    return made


def pipeline(checkout: Path, views: Tensor) -> dict[str, Tensor]:
    """Latents of all blocks, and the flows of some passes."""
    replaced = {"= 880": (f"= {TOKENS}", 1), "= 30\n": (f"= {golden.LAYERS}\n", 1), "= 24": (f"= {golden.HEADS}", 2)}
    theirs = code(checkout, "pipeline.pipeline_causal_camera", replaced)
    generator = wrapped(checkout, network(checkout))
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    forward = generator.forward

    def recorded(**given: Any) -> Any:
        flow, clean = forward(**given)
        calls.append((given["noisy_image_or_video"], given["timestep"], flow))
        return flow, clean

    generator.forward = recorded
    noise, prompt = golden.inputs()
    vae = SimpleNamespace(decode_to_pixel=lambda latents: latents)
    args = SimpleNamespace(
        model_kwargs={"model_name": "", "model_root_path": ""},
        denoising_step_list=STEPS,
        warp_denoising_step=True,
        num_frame_per_block=golden.BLOCK,
        context_noise=0.1,
    )
    generator.model.local_attn_size = 12
    text = lambda text_prompts: {"prompt_embeds": list(prompt)}  # noqa: E731 (their text encoder's place)
    made = theirs.CausalCameraInferencePipeline(args, "cpu", generator, text, vae)
    draws = iter(golden.draws().flatten(0, 2))
    torch.randn_like = lambda x: next(draws).to(x)  # type: ignore[assignment]
    focal = torch.tensor([[[969.6969696969696 / 1920, 0, 0.5], [0, 969.6969696969696 / 1080, 0.5], [0, 0, 1]]])
    camera = {
        "viewmats": views.repeat_interleave(TOKENS, 0)[None],
        "K": focal.expand(1, TOKENS * golden.FRAMES, 3, 3),
    }
    _, latents = made.inference(noise, ["a text"], None, camera, return_latents=True)
    tensors = {"latents": latents}
    per_block = len(STEPS) + 1
    for number, (x, t, flow) in enumerate(calls):
        block, step = divmod(number, per_block)
        if block in (0, 1, 4, 6):
            tensors |= {f"x.{block}.{step}": x, f"t.{block}.{step}": t[:, ::TOKENS], f"flow.{block}.{step}": flow}
    return tensors


def poses(checkout: Path) -> dict[str, Tensor]:
    """Their trajectory of our actions, and the views that their program makes of it, both ways."""
    trajectory = importlib.import_module("utils.trajectory_processor")

    def change(source: str) -> str:
        begin, end = source.index("def _invert_SE3"), source.index("def parse_args")
        return source[begin:end].replace("880", "1")

    script = changed_module("their_script", checkout / "inference_ar_forcing.py", change, np=np, torch=torch)
    pictures = 4 * golden.FRAMES - 3
    _, parameters, _ = trajectory.generate_trajectory_from_json(
        trajectory_spec=list(golden.ACTIONS), num_frames=pictures, return_cam_params=True
    )
    cameras = [trajectory.Camera(row.tolist()) for row in parameters]
    found = {"poses": torch.tensor(np.array([camera.c2w_mat for camera in cameras]))}
    for name, relative in (("views", False), ("views.by_block", True)):
        made = script.cam_params_to_prope_dict(cameras, "cpu", torch.float32, chunk_relative=relative)
        found[name] = made["viewmats"][0]
        found["intrinsics"] = made["K"][0, :1]
    return found


def timesteps(checkout: Path) -> dict[str, Tensor]:
    """What a program in bfloat16 feeds, and the noise levels that its wrapper takes for them."""
    generator = wrapped(checkout, None)
    table = torch.cat((generator.scheduler.timesteps, torch.tensor([0.0])))
    steps = table[1000 - torch.tensor(STEPS)]
    found: dict[str, list[Tensor]] = {"timesteps": [], "levels": []}
    for step in steps:
        fed = (torch.ones(1, dtype=torch.bfloat16) * step).flatten()
        found["timesteps"].append(fed.float())
        one = torch.ones(1, 1, 1, 1)
        found["levels"].append(-generator._convert_flow_pred_to_x0(one, 0 * one, fed).flatten())
    fed = torch.ones(1, dtype=torch.bfloat16) * 0.1
    made = {name: torch.cat(values) for name, values in found.items()}
    fresh = torch.stack([generator.scheduler.sigmas[1000 - step] for step in STEPS[1:]])
    return made | {"context": fed.float(), "exact": steps, "fresh": fresh}


if __name__ == "__main__":
    main()
