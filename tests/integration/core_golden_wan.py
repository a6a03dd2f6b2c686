"""Run by ComfyUI's Python: its own causal Wan, and ours made of its layers, on the inputs of tests/golden_wan.py.

python core_golden_wan.py COMFYUI OUT.safetensors     flows by "core." and "ours." and the pass's name
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HOME, OUT = Path(sys.argv[1]), Path(sys.argv[2])
del sys.argv[1:]
sys.path[:0] = [str(HOME), str(Path(__file__).resolve().parents[2] / "tools")]

from comfy.cli_args import args  # noqa: E402

args.cpu = True
import bootstrap_package  # noqa: E402, F401 (makes the repository importable as comfyui_qvg)
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from comfyui_qvg.qvg import KVCache, QVGConfig  # noqa: E402
from comfyui_qvg.qvg.models.wan import load_wan  # noqa: E402
from comfyui_qvg.tests.golden_wan import CASES, LATENT_COLS, LATENT_ROWS, TEXT_TOKENS, TOKENS, Case  # noqa: E402
from comfyui_qvg.tests.integration import tiny_wan  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402


def core(network: Any, case: Case) -> dict[str, Tensor]:
    """As core's sampler calls it: every pass but the last of a block is taken back."""
    text = torch.nn.functional.pad(case.text(), (0, 0, 0, TEXT_TOKENS - case.text().shape[1]))
    frames, like = case.blocks * case.frames_per_block, {"device": text.device, "dtype": text.dtype}
    memory = network.init_kv_caches(case.batch, frames * TOKENS, **like)
    prompt, flows = network.init_crossattn_caches(case.batch, **like), {}
    for each in case.passes():
        flows[each.name] = network.forward_block(each.x, each.timesteps, text, each.first_frame, memory, prompt).contiguous()
        for layer in memory:
            layer["end"] -= 0 if each.is_commit else case.frames_per_block * TOKENS
    return flows


def ours(model: Any, case: Case) -> dict[str, Tensor]:
    """Through the cache, all of it exact."""
    prompt, flows, shape = model.read_prompt(case.text()), {}, model.config
    spec = shape.cache_spec(LATENT_ROWS, LATENT_COLS, case.frames_per_block, case.batch, torch.float32)
    with KVCache(spec, QVGConfig.preset("exact"), shape.rope(LATENT_ROWS, LATENT_COLS)) as cache:
        for each in case.passes():
            cache.place([(float(each.first_frame + frame), 0.0, 0.0) for frame in range(case.frames_per_block)])
            out = model(each.x.transpose(1, 2), each.timesteps, prompt, cache.attend)
            flows[each.name] = out.transpose(1, 2).contiguous()
            if each.is_commit:
                cache.commit()
    return flows


def main() -> None:
    """See the module docstring."""
    state = tiny_wan.state_dict()
    own = load_wan(state, comfy.ops.manual_cast)
    # The dictionary is emptied.
    patcher = comfy.sd.load_diffusion_model_state_dict(dict(state), metadata=tiny_wan.CAUSAL)
    network = patcher.model.diffusion_model
    assert type(network).__name__ == "CausalWanModel" and next(network.parameters()).dtype == torch.float32
    tensors = {}
    with torch.inference_mode():
        for case in CASES:
            tensors |= {f"core.{name}": flow for name, flow in core(network, case).items()}
            tensors |= {f"ours.{name}": flow for name, flow in ours(own, case).items()}
    save_file(tensors, OUT)


main()
