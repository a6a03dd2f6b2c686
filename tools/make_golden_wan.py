"""Write tests/data/golden_wan.safetensors: run the official causal Wan on the inputs of tests/golden_wan.py.

    python tools/make_golden_wan.py CHECKOUT     a checkout of guandeh17/Self-Forcing; needs torch only

Flash attention is replaced by torch's, as it runs on the CPU in float32; diffusers' base classes, which only save and load, by
torch's module. Everything else is the checkout's own code.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bootstrap_package  # noqa: F401 (makes the repository importable as comfyui_qvg)
from comfyui_qvg.tests.golden_wan import CASES, FILE, LATENT_COLS, LATENT_ROWS, TEXT_TOKENS, TOKENS, Case, fingerprint
from comfyui_qvg.tests.integration import tiny_wan


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--commit", help="what the checkout is, if it is no git repository")
    options = parser.parse_args()
    commit = options.commit or subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=options.checkout, text=True).strip()
    state = tiny_wan.state_dict()
    model = official(options.checkout, state)
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        text = F.pad(CASES[0].text()[0], (0, 0, 0, TEXT_TOKENS - CASES[0].text_tokens[0]))
        embedded = model.text_embedding(text)
        tensors["text"] = embedded[: CASES[0].text_tokens[0] + 1].clone()
        for case in CASES:
            tensors |= run(model, case)
    FILE.parent.mkdir(exist_ok=True)
    save_file(tensors, FILE, {"source": f"guandeh17/Self-Forcing {commit}", "torch": torch.__version__, **fingerprint()})
    print(f"{FILE}: {len(tensors)} tensors, {FILE.stat().st_size} bytes")


def official(checkout: Path, state: dict[str, Tensor]) -> Any:
    """The checkout's CausalWanModel with these weights."""
    for name in ("wan", "wan.modules"):  # their own __init__ imports all of the pack
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(checkout.joinpath(*name.split(".")))]
    bases = {"diffusers": {}, "diffusers.configuration_utils": {"ConfigMixin": object, "register_to_config": lambda call: call}}
    bases |= {"diffusers.models": {}, "diffusers.models.modeling_utils": {"ModelMixin": torch.nn.Module}}
    for name, members in bases.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(members)
    plain, causal = (importlib.import_module(f"wan.modules.{name}") for name in ("model", "causal_model"))
    plain.flash_attention = causal.attention = attention
    shape = {"dim": tiny_wan.HEADS * tiny_wan.HEAD_DIM, "ffn_dim": state["blocks.0.ffn.0.weight"].shape[0]}
    model = causal.CausalWanModel(num_heads=tiny_wan.HEADS, num_layers=tiny_wan.LAYERS, text_len=TEXT_TOKENS, **shape)
    model.load_state_dict(state)
    return model.eval()


def attention(q: Tensor, k: Tensor, v: Tensor, k_lens: object = None) -> Tensor:
    """[B, S, H, D] each, in their own dtype."""
    assert k_lens is None
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def run(model: Any, case: Case) -> dict[str, Tensor]:
    """The flow of every pass."""
    tokens = case.blocks * case.frames_per_block * TOKENS
    start = case.start_frame * TOKENS
    shape = (case.batch, tokens, tiny_wan.HEADS, tiny_wan.HEAD_DIM)
    memory = [
        {
            **{name: torch.zeros(shape) for name in ("k", "v")},
            "global_end_index": torch.tensor([start]),
            "local_end_index": torch.tensor([0]),
        }
        for _ in range(tiny_wan.LAYERS)
    ]
    prompt: list[dict[str, Any]] = [{"is_init": False} for _ in range(tiny_wan.LAYERS)]
    context = [text[:length] for text, length in zip(case.text(), case.text_tokens, strict=True)]
    flows = {}
    for each in case.passes():
        assert each.x.shape[3:] == (LATENT_ROWS, LATENT_COLS)
        flows[each.name] = model(
            each.x,
            t=each.timesteps,
            context=context,
            seq_len=tokens,
            kv_cache=memory,
            crossattn_cache=prompt,
            current_start=each.first_frame * TOKENS,
        ).contiguous()
    return flows


if __name__ == "__main__":
    main()
