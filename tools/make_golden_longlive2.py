"""Write tests/data/golden_longlive2.safetensors: run the official LongLive 2.0 on the inputs of tests/golden_longlive2.py.

    python tools/make_golden_longlive2.py CHECKOUT     a checkout of NVlabs/LongLive; needs einops, scipy and tqdm

Flash attention is replaced by torch's, diffusers' base classes by what keeps their settings, the text encoder and the VAE by what
hands on the given tensors; kernels of Triton and torch.compile are switched off by the checkout's own switches. Everything else
is the checkout's own code, in float32 on the CPU.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import os
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"TORCHDYNAMO_DISABLE": "1", "LLV2_TRITON_ROPE": "0", "LLV2_TRITON_ADALN": "0"}

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bootstrap_package  # noqa: F401 (makes the repository importable as comfyui_qvg)
from comfyui_qvg.tests import golden_longlive2 as golden

TOKENS = golden.SIDE**2 // 4
WINDOW, CUT = 32, "The scene transitions. "


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--commit", help="what the checkout is, if it is no git repository")
    options = parser.parse_args()
    commit = options.commit or subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=options.checkout, text=True).strip()
    make_importable(options.checkout)
    with torch.no_grad():
        tensors = solver()
        tensors["latents"] = video(golden.BLOCKS, None)
        tensors["picture.latents"] = video(golden.PICTURE_BLOCKS, golden.inputs()[1])
    metadata = {"source": f"NVlabs/LongLive {commit}"}
    save_file({name: x.contiguous().clone() for name, x in tensors.items()}, golden.FILE, metadata)
    print(f"{golden.FILE}: {len(tensors)} tensors, {golden.FILE.stat().st_size} bytes")


def module(name: str, **members: Any) -> types.ModuleType:
    """A module of that name with nothing but these members."""
    made = sys.modules[name] = types.ModuleType(name)
    vars(made).update(members)
    return made


def with_config(init: Any) -> Any:
    """Settings become `config`, as diffusers keeps them."""

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **given: Any) -> None:
        bound = inspect.signature(init).bind(self, *args, **given)
        bound.apply_defaults()
        self.config = SimpleNamespace(**{name: value for name, value in bound.arguments.items() if name != "self"})
        init(self, *args, **given)

    return wrapped


def attention(q: Tensor, k: Tensor, v: Tensor, *unused: Any, **options: Any) -> Tensor:
    """[B, S, H, D], as theirs."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def make_importable(checkout: Path) -> None:
    """Stand-ins for what the checkout imports and this does not need."""
    sys.path.insert(0, str(checkout))
    packages = ("diffusers", "diffusers.models", "diffusers.schedulers", "transformers", "transformers.models")
    for name in (*packages, "transformers.models.x_clip", "wan_5b", "wan_5b.modules", "wan_5b.utils", "pipeline", "utils"):
        module(name).__path__ = [str(checkout / name.replace(".", "/"))]
    module("transformers.models.x_clip.modeling_x_clip", x_clip_loss=None)
    module("diffusers.configuration_utils", ConfigMixin=type("Config", (), {}), register_to_config=with_config)
    module("diffusers.models.modeling_utils", ModelMixin=nn.Module)
    scheduling = {"SchedulerMixin": type("Mixin", (), {}), "SchedulerOutput": SimpleNamespace, "KarrasDiffusionSchedulers": ()}
    module("diffusers.schedulers.scheduling_utils", **scheduling)
    module("diffusers.utils", deprecate=None, is_scipy_available=lambda: True)
    module("diffusers.utils.torch_utils", randn_tensor=None)
    module("omegaconf", OmegaConf=SimpleNamespace(is_config=lambda value: False), DictConfig=dict, ListConfig=list)
    module("utils.dataset", DEFAULT_SCENE_CUT_PREFIX=CUT)
    module("utils.wan_5b_wrapper", WanDiffusionWrapper=None, WanTextEncoder=None, build_vae_5b=None)
    theirs = importlib.import_module("wan_5b.modules.attention")
    theirs.attention = theirs.flash_attention = attention


def network() -> nn.Module:
    """Theirs, with our weights."""
    theirs = importlib.import_module("wan_5b.modules.causal_model")
    model: nn.Module = theirs.CausalWanModel(
        model_type="ti2v",
        in_dim=golden.CHANNELS,
        out_dim=golden.CHANNELS,
        dim=golden.WIDTH,
        ffn_dim=golden.FFN,
        text_dim=golden.TEXT,
        num_heads=golden.HEADS,
        num_layers=golden.LAYERS,
        local_attn_size=WINDOW,
        sink_size=golden.BLOCK,
        num_frame_per_block=golden.BLOCK,
    )
    model.load_state_dict(golden.weights(), strict=True)
    return model.eval()


class Generator(nn.Module):
    """Their wrapper's part: the network over [B, F, C, h, w]. It tells the network, in plain numbers, where its memory stands."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.code = network(), importlib.import_module("wan_5b.modules.causal_model")

    def forward(
        self,
        noisy_image_or_video: Tensor,
        conditional_dict: dict[str, Any],
        timestep: Tensor,
        kv_cache: Any,
        crossattn_cache: Any,
        current_start: int,
        cache_start: int,
    ) -> tuple[Tensor, None]:
        meta = self.code._CURRENT_GRID_META
        for name in ("global_end_index", "local_end_index", "pinned_start", "pinned_len"):
            meta[name] = int(kv_cache[0][name])
        flow = self.model(
            noisy_image_or_video.permute(0, 2, 1, 3, 4),
            t=timestep,
            context=conditional_dict["prompt_embeds"],
            seq_len=TOKENS * golden.BLOCKS * golden.BLOCK,
            kv_cache=kv_cache,
            crossattn_cache=crossattn_cache,
            current_start=current_start,
            cache_start=cache_start,
        )
        return flow.permute(0, 2, 1, 3, 4), None


def video(blocks: int, picture: Tensor | None) -> Tensor:
    """Latents [1, F, C, h, w] of so many blocks."""
    pipeline = importlib.import_module("pipeline.causal_diffusion_inference")
    sizes = {"num_transformer_blocks": golden.LAYERS, "num_heads": golden.HEADS, "head_dim": 128}
    pipeline.wan_default_config = {"Wan2.2-TI2V-5B": sizes}
    noise, _, texts = golden.inputs()
    settings: dict[str, Any] = {
        "sampling_steps": 4,
        "local_attn_size": WINDOW,
        "sink_size": golden.BLOCK,
        "multi_shot_sink": True,
        "multi_shot_rope_offset": 8.0,
        "guidance_scale": 1.0,
        "independent_first_frame": picture is not None,
    }
    pipeline.section_get = lambda args, section, name, default=None, aliases=(): settings.get(name, default)
    args = SimpleNamespace(
        model_kwargs=SimpleNamespace(model_name="Wan2.2-TI2V-5B", timestep_shift=5.0),
        image_or_video_shape=[1, 0, golden.CHANNELS, golden.SIDE, golden.SIDE],
        num_frame_per_block=golden.BLOCK,
    )
    prompts = [CUT * (at in golden.CUTS) + str(number) for at, number in enumerate(golden.PROMPTS[:blocks])]

    def read(encoder: Any, given: Any, batch: int) -> tuple[Any, list[Any]]:
        found = [{"prompt_embeds": list(texts[int(prompt.removeprefix(CUT))])} for prompt in given[0]]
        return found[0], found

    pipeline.encode_prompt_blocks = read
    made = pipeline.CausalDiffusionInferencePipeline(args, "cpu", Generator(), SimpleNamespace(), SimpleNamespace())
    made._original_seq_len_override = None
    frames: Tensor = made.inference(noise[:, : blocks * golden.BLOCK], [prompts], picture, return_latents=True)
    return frames


def solver() -> dict[str, Tensor]:
    """Their solver's table, and what it makes of a network that says 0.3 x + 0.5 sigma, from 1."""
    theirs = importlib.import_module("wan_5b.utils.fm_solvers_unipc").FlowUniPCMultistepScheduler
    found: dict[str, Tensor] = {}
    for steps in (4, 2):
        scheduler = theirs(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
        scheduler.set_timesteps(steps, device="cpu", shift=5.0)
        found[f"timesteps.{steps}"], found[f"sigmas.{steps}"] = scheduler.timesteps.clone(), scheduler.sigmas.clone()
        x, seen = torch.ones(1, 1, dtype=torch.float64), []
        for step, t in enumerate(scheduler.timesteps):
            x = scheduler.step(0.3 * x + 0.5 * float(scheduler.sigmas[step]), t, x, return_dict=False)[0]
            seen.append(x.clone())
        found[f"scalar.{steps}"] = torch.cat(seen).flatten()
    return found


if __name__ == "__main__":
    main()
