"""Run by ComfyUI's Python: its own loader and causal Wan on a demo film's file, and our network on the same, pass by pass.

python core_film.py COMFYUI FILE.safetensors OUT.safetensors     velocities by "core." and "ours." and the pass's name
"""

from __future__ import annotations

import sys
from pathlib import Path

HOME, FILE, OUT = (Path(argument) for argument in sys.argv[1:4])
del sys.argv[1:]
sys.path[:0] = [str(HOME), str(Path(__file__).resolve().parents[2] / "tools")]

from comfy.cli_args import args  # noqa: E402

args.cpu = True
import bootstrap_package  # noqa: E402, F401 (makes the repository importable as comfyui_qvg)
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from comfyui_qvg.qvg import KVCache, QVGConfig  # noqa: E402
from comfyui_qvg.qvg.models.demo_film.directions import BLOCK_FRAMES, DIRECTIONS, View, prompt_rows, text_rows  # noqa: E402
from comfyui_qvg.qvg.models.demo_film.weights import load_demo_film  # noqa: E402
from comfyui_qvg.qvg.sampling.film import LATENT_PIXELS, FilmPlan, given_blocks  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

TOKENS = (LATENT_PIXELS // 2) ** 2
# Of the one prompt for some blocks and then another, the last block noisy: what its prompt is to both, and what its memory.
PROMPTS = (0, 0, 3, 3)
LEVEL = 0.625


def inputs(blocks: list[Tensor]) -> list[tuple[str, Tensor, float]]:
    """Name, block [1, 3, 16, 16, 16] and noise level of every pass."""
    noise = torch.randn(blocks[-1].shape, generator=torch.Generator().manual_seed(0))
    passes = [(f"block {index}", block, 0.0) for index, block in enumerate(blocks[:-1])]
    return [*passes, ("noisy", (1 - LEVEL) * blocks[-1] + LEVEL * noise, LEVEL)]


def main() -> None:
    """See the module docstring."""
    model, codec = load_demo_film(FILE)
    core = comfy.sd.load_diffusion_model(str(FILE), model_options={"dtype": torch.float32}).model
    network = core.diffusion_model
    assert type(core).__name__ == "WAN21_CausalAR" and type(network).__name__ == "CausalWanModel"
    assert network.text_embedding[0].in_features == 64 and core.model_sampling.shift == 5.0
    plan = FilmPlan(3, View(0, 1, 1.0), tuple(DIRECTIONS[index] for index in PROMPTS))
    tensors: dict[str, Tensor] = {}
    spec = model.config.cache_spec(LATENT_PIXELS, LATENT_PIXELS, BLOCK_FRAMES, dtype=torch.float32)
    with (
        torch.inference_mode(),
        KVCache(spec, QVGConfig.preset("exact"), model.config.rope(LATENT_PIXELS, LATENT_PIXELS)) as cache,
    ):
        memory = network.init_kv_caches(1, len(PROMPTS) * BLOCK_FRAMES * TOKENS, torch.device("cpu"), torch.float32)
        for at, (name, x, level) in enumerate(inputs(given_blocks(plan, codec, len(PROMPTS)))):
            times = torch.full((1, BLOCK_FRAMES), 1000 * level)
            fresh = network.init_crossattn_caches(1, torch.device("cpu"), torch.float32)
            text = prompt_rows(DIRECTIONS[PROMPTS[at]])
            flow = network.forward_block(x.transpose(1, 2), times, text, at * BLOCK_FRAMES, memory, fresh)
            tensors[f"core.{name}"] = flow.transpose(1, 2).contiguous()
            cache.place([(float(at * BLOCK_FRAMES + frame), 0.0, 0.0) for frame in range(BLOCK_FRAMES)])
            prompt = model.read_prompt(text_rows()[PROMPTS[at]][None])
            tensors[f"ours.{name}"] = model(x, times, prompt, cache.attend).contiguous()
            cache.commit()
    save_file(tensors, OUT)


main()
