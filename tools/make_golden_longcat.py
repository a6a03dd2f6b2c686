"""Write tests/data/golden_longcat.safetensors: run the official LongCat-Video on the inputs of tests/golden_longcat.py.

    python tools/make_golden_longcat.py CHECKOUT     a checkout of meituan-longcat/LongCat-Video; needs diffusers 0.35,
                                                     transformers 4, loguru, ftfy and regex

Xformers' attention is replaced by torch's, block-sparse attention by nothing, text encoder and VAE by ones that return what
tests/golden_longcat.py says. Everything else is the checkout's own code, in float32 on the CPU.
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

import diffusers.models.attention_processor
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bootstrap_package  # noqa: F401 (makes the repository importable as comfyui_qvg)
from comfyui_qvg.tests import golden_longcat as given
from comfyui_qvg.tests.golden_longcat import CHANNELS, COLS, CONDITION, FILE, HEADS, LAYERS, LOOPS, ROWS, TEXT, TIME, WIDTH, Loop

TIMESTEP = 776.5


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    options = parser.parse_args()
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=options.checkout, text=True).strip()
    make_importable(options.checkout)
    with torch.no_grad():
        network = official_network()
        tensors = passes(network)
        tensors |= {f"loop.{loop.name}": run(network, loop) for loop in LOOPS}
        tensors |= schedules()
    save_file(
        {name: x.contiguous().clone() for name, x in tensors.items()}, FILE, {"source": f"meituan-longcat/LongCat-Video {commit}"}
    )
    print(f"{FILE}: {len(tensors)} tensors, {FILE.stat().st_size} bytes")


def module(name: str, **members: Any) -> types.ModuleType:
    """A module of that name with nothing but these members."""
    made = sys.modules[name] = types.ModuleType(name)
    vars(made).update(members)
    return made


def make_importable(checkout: Path) -> None:
    """The checkout's own modules, and stand-ins for what needs a GPU."""
    sys.path.insert(0, str(checkout))
    mask = SimpleNamespace(from_seqlens=lambda queries, keys: (queries, keys))
    fmha = SimpleNamespace(attn_bias=SimpleNamespace(BlockDiagonalMask=mask))
    module("xformers").ops = module("xformers.ops", memory_efficient_attention=attention, fmha=fmha)  # type: ignore[attr-defined]
    module("longcat_video.block_sparse_attention.bsa_interface", flash_attn_bsa_3d=None)


def attention(q: Tensor, k: Tensor, v: Tensor, attn_bias: Any = None, op: Any = None) -> Tensor:
    """Of q, k, v [B, S, H, D]; `attn_bias`: how many queries and keys behind one another belong together."""
    if attn_bias is None:
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    queries, keys = attn_bias
    parts = zip(q.split(queries, 1), k.split(keys, 1), v.split(keys, 1), strict=True)
    return torch.cat([attention(*part) for part in parts], 1)


def official_network() -> Any:
    """The checkout's network with our weights."""
    made = importlib.import_module("longcat_video.modules.longcat_video_dit").LongCatVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        hidden_size=WIDTH,
        depth=LAYERS,
        num_heads=HEADS,
        caption_channels=TEXT,
        adaln_tembed_dim=TIME,
        enable_xformers=True,
        cp_split_hw=[1, 1],
        text_tokens_zero_pad=True,
    )
    made.load_state_dict(given.weights(), strict=True)
    return made.eval()


def passes(network: Any) -> dict[str, Tensor]:
    """Single passes of every kind over two videos at once, and keys and values of a condition."""
    text, words, tensors = given.texts()[:, None], given.words(), {}
    level = torch.full((2,), TIMESTEP)

    def once(x: Tensor, t: Tensor, **more: Any) -> Tensor:
        return network(x, t, text, words, **more)

    tensors["pass.text"] = once(given.noise("text", 2), level)
    for kind in ("picture", "continue"):
        x, known = given.noise(kind, 2), given.condition(kind)
        frames = known.shape[2]
        x[:, :, :frames] = known
        t = level[:, None].repeat(1, x.shape[2])
        t[:, :frames] = 0
        tensors[f"pass.{kind}"] = once(x, t, num_cond_latents=frames)
    null = torch.zeros(1, 1, 8, TEXT)
    zero = torch.zeros(1, CONDITION)
    _, cache = network(given.condition("continue"), zero, null, return_kv=True, skip_crs_attn=True)
    for layer, (k, v) in cache.items():
        tensors |= {f"cache.{layer}.k": k, f"cache.{layer}.v": v}
    new = given.noise("continue", 2)[:, :, CONDITION:]
    t = level[:, None].repeat(1, new.shape[2])
    tensors["pass.cached"] = once(new, t, num_cond_latents=CONDITION, kv_cache_dict=cache)
    return tensors


def official_pipeline(network: Any, kind: str) -> Any:
    """The checkout's pipeline around a network."""
    code = importlib.import_module("longcat_video.pipeline_longcat_video")
    scheduling = importlib.import_module("longcat_video.modules.scheduling_flow_match_euler_discrete")

    class Pipeline(code.LongCatVideoPipeline):  # type: ignore[name-defined, misc]
        def encode_prompt(self, **_: Any) -> tuple[Tensor, ...]:
            text, words = given.texts().to(network.dtype)[:, None], given.words()
            return text[:1], words[:1], text[1:], words[1:]

        def get_condition_shape(self, *_: Any, **__: Any) -> tuple[int, int]:
            return 8 * ROWS, 8 * COLS

    scaling = SimpleNamespace(
        scale_factor_temporal=4,
        scale_factor_spatial=8,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
        z_dim=CHANNELS,
    )
    encoded = SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda generator: given.condition(kind)))
    vae = SimpleNamespace(config=scaling, encode=lambda x: encoded)
    encoder = SimpleNamespace(config=SimpleNamespace(d_model=TEXT))
    made = Pipeline(None, encoder, vae, scheduling.FlowMatchEulerDiscreteScheduler(shift=12.0), network)
    made.device = torch.device("cpu")
    made.video_processor = SimpleNamespace(
        preprocess=lambda image, height, width: torch.zeros(1, 3, height, width),
        preprocess_video=lambda video, height, width: torch.zeros(1, 3, len(video), height, width),
    )
    return made


def run(network: Any, loop: Loop) -> Tensor:
    """One pipeline's latents after all steps."""
    pipe = official_pipeline(network, loop.kind)
    common: dict[str, Any] = {"prompt": "words", "negative_prompt": "others", "output_type": "latent"}
    common |= {"latents": given.noise(loop.kind), "num_inference_steps": loop.steps, "guidance_scale": loop.guidance}
    common["use_distill"] = loop.distilled
    if loop.kind == "text":
        latents = pipe.generate_t2v(height=8 * ROWS, width=8 * COLS, **common)
    elif loop.kind == "picture":
        latents = pipe.generate_i2v(image=None, **common)
    else:
        pictures = 4 * CONDITION - 3
        more = {"num_cond_frames": pictures, "use_kv_cache": loop.cached, "enhance_hf": loop.enhance_hf}
        latents = pipe.generate_vc(video=[None] * pictures, **more, **common)
    made: Tensor = latents
    return made


class _Listener:
    """A network in bfloat16 that only writes down which timesteps it is told."""

    dtype, config, cp_split_hw = torch.bfloat16, SimpleNamespace(in_channels=CHANNELS), None

    def __init__(self) -> None:
        self.told: list[float] = []

    def __call__(self, hidden_states: Tensor, timestep: Tensor, return_kv: bool = False, **_: Any) -> Any:
        nothing = torch.zeros_like(hidden_states, dtype=torch.float32)
        if return_kv:
            return nothing, {}
        self.told.append(float(timestep.flatten()[-1]))
        return nothing


def schedules() -> dict[str, Tensor]:
    """Noise levels of each kind, and the timesteps that a network in bfloat16 is told."""
    kinds = {
        "steps": Loop("", "text", 50),
        "distilled": Loop("", "text", 16, 1.0, distilled=True),
        "enhanced": Loop("", "continue", 50, enhance_hf=True, cached=True),
    }
    tensors = {}
    for name, loop in kinds.items():
        listener = _Listener()
        pipe = official_pipeline(listener, loop.kind)
        sigmas: list[Tensor] = []
        step = pipe.scheduler.step

        def noted(*args: Any, step: Any = step, pipe: Any = pipe, sigmas: list[Tensor] = sigmas, **more: Any) -> Any:
            sigmas[:] = [pipe.scheduler.sigmas]
            return step(*args, **more)

        pipe.scheduler.step = noted
        common = {"prompt": "words", "negative_prompt": "others", "output_type": "latent", "latents": given.noise(loop.kind)}
        common |= {"num_inference_steps": loop.steps, "guidance_scale": 1.0, "use_distill": loop.distilled}
        if loop.kind == "text":
            pipe.generate_t2v(height=8 * ROWS, width=8 * COLS, **common)
        else:
            pipe.generate_vc(video=[None] * (4 * CONDITION - 3), enhance_hf=True, **common)
        tensors[f"sigmas.{name}"], tensors[f"told.{name}"] = sigmas[0], torch.tensor(listener.told)
    return tensors


if __name__ == "__main__":
    assert diffusers.models.attention_processor  # imported before the stand-ins, which it would look for
    main()
