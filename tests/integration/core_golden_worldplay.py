"""Run by ComfyUI's Python: its own Wan 2.2 with WorldPlay's layers in it, on the inputs of tests/golden_worldplay.py.

python core_golden_worldplay.py COMFYUI FILE OUT.safetensors     latents by "core." and "ours.", the mode and the chunk
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HOME, FILE, OUT = (Path(path) for path in sys.argv[1:4])
del sys.argv[1:]
sys.path[:0] = [str(HOME), str(Path(__file__).resolve().parents[2] / "tools")]

from comfy.cli_args import args  # noqa: E402

args.cpu = True
import bootstrap_package  # noqa: E402, F401 (makes the repository importable as comfyui_qvg)
import comfy.memory_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import torch  # noqa: E402
from comfyui_qvg.nodes.comfy.loading import Source  # noqa: E402
from comfyui_qvg.nodes.comfy.world.wan import WorldPass, network_pass  # noqa: E402
from comfyui_qvg.nodes.comfy.world.wan_face import WorldPlay5B  # noqa: E402
from comfyui_qvg.qvg import QVGConfig  # noqa: E402
from comfyui_qvg.qvg.camera import parse_path  # noqa: E402
from comfyui_qvg.qvg.camera.cameras import Cameras  # noqa: E402
from comfyui_qvg.qvg.camera.poses import camera_poses  # noqa: E402
from comfyui_qvg.qvg.camera.selection import WAN_MEMORY  # noqa: E402
from comfyui_qvg.qvg.models.common.world_memory import world_memory  # noqa: E402
from comfyui_qvg.qvg.models.worldplay_wan.network import load_worldplay  # noqa: E402
from comfyui_qvg.qvg.sampling.world import World  # noqa: E402
from comfyui_qvg.tests.golden_worldplay import CHUNKS, SIDE, TEXT_TOKENS, inputs, text, weights  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

# Chunks walked in each mode.
WALKS = {"vendor": CHUNKS, "persistent": 3, "incremental": 3}


class CoreWorld:
    """Core's network as the loop asks for it, with its own prompt and without a guider. x [B, F, C, h, w]."""

    def __init__(self, network: Any, text: Tensor):
        self.network, self.text = network, text

    def __call__(self, x: Tensor, t: Tensor, prompt: None, attend: Any, labels: Tensor) -> Tensor:
        return self._pass(x, WorldPass(t, labels, attend=attend)).transpose(1, 2)

    def record(self, x: Tensor, t: Tensor, prompt: None, recording: Any, labels: Tensor) -> None:
        self._pass(x, WorldPass(t, labels, recording=recording))

    def _pass(self, x: Tensor, coming: WorldPass) -> Tensor:
        return network_pass(self.network, x.transpose(1, 2), self.text, coming, {})


def walk(model: Any, prompt: Any, face: WorldPlay5B, base_model: Any, mode: str) -> list[Tensor]:
    """Every chunk, [1, C, 4, h, w], with an exact memory."""
    grid = (SIDE // 2, SIDE // 2)
    spec = face.cache_spec(base_model, grid, 16 if mode == "vendor" else 4, 1, "none")
    memory = world_memory(spec, QVGConfig.preset("exact"), face.rope(base_model, grid))
    world = World(model, memory, prompt, mode, WAN_MEMORY if mode == "vendor" else None)
    noise, image, _ = (each if each.ndim == 3 else each.transpose(1, 2) for each in inputs())
    cameras = Cameras(camera_poses(parse_path(text("steps")), 4 * CHUNKS, "again"))
    chunks = []
    for index in range(WALKS[mode]):
        chunk = world.next_chunk(noise[:, 4 * index : 4 * index + 4], cameras, None if index else image)
        chunks.append(chunk.transpose(1, 2).contiguous())
    return chunks


def lazily_loaded() -> list[Tensor]:
    """As where ComfyUI pages weights in from the file: layers are made without weights, and weights are assigned as they lie
    there. On a CPU it does not do so by itself."""
    _, loader, checkpoint = Source(FILE, "Load WorldPlay").read()
    comfy.memory_management.aimdo_enabled = True
    comfy.model_patcher.CoreModelPatcher = _Paging
    patcher = loader.patcher(checkpoint, {"dtype": torch.float32})
    layer = patcher.model.diffusion_model.blocks[1].self_attn.o_prope
    assert patcher.is_dynamic() and layer.weight_comfy_model_dtype == torch.float32 and not layer.weight.requires_grad
    chunks = walk(CoreWorld(patcher.model.diffusion_model, inputs()[2]), None, patcher.model.qvg_world, patcher.model, "vendor")
    comfy.memory_management.aimdo_enabled = False
    return chunks


class _Paging(comfy.model_patcher.ModelPatcher):
    def is_dynamic(self) -> bool:
        return True


def main() -> None:
    """See the module docstring."""
    own = load_worldplay(weights())
    own.config = type(own.config)(**{**vars(own.config), "text_tokens": TEXT_TOKENS})
    _, loader, checkpoint = Source(FILE, "Load WorldPlay").read()
    patcher = loader.patcher(checkpoint, {"dtype": torch.float32})
    base_model, prompt = patcher.model, inputs()[2]
    network = base_model.diffusion_model
    assert type(network).__name__ == "WanModel" and next(network.parameters()).dtype == torch.float32
    counted = sum(weight.nbytes for weight in network.state_dict().values())
    assert patcher.model_size() >= counted > 0, "the added layers are not counted"
    tensors = {}
    for mode in WALKS:
        for name, model, read in (("core", CoreWorld(network, prompt), None), ("ours", own, own.read_prompt(prompt))):
            for index, chunk in enumerate(walk(model, read, base_model.qvg_world, base_model, mode)):
                tensors[f"{name}.{mode}.{index}"] = chunk
    if hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        tensors |= {f"lazy.vendor.{index}": chunk for index, chunk in enumerate(lazily_loaded())}
    save_file(tensors, OUT)


main()
