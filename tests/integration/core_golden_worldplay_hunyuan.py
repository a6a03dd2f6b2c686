"""Run by ComfyUI's Python: its own HunyuanVideo 1.5 with WorldPlay's layers, on the inputs of tests/golden_worldplay_hunyuan.py.

python core_golden_worldplay_hunyuan.py COMFYUI FILE OUT.safetensors     latents by "core." or "ours.", the mode and the chunk;
                                                                         the text's keys and values by "core.text."
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
from comfyui_qvg.nodes.comfy.loading import Source, put_variant  # noqa: E402
from comfyui_qvg.nodes.comfy.world.hunyuan_face import WorldPlay8B  # noqa: E402
from comfyui_qvg.qvg import QVGConfig  # noqa: E402
from comfyui_qvg.qvg.camera import parse_path  # noqa: E402
from comfyui_qvg.qvg.camera.cameras import Cameras  # noqa: E402
from comfyui_qvg.qvg.camera.overlap import FieldOfView  # noqa: E402
from comfyui_qvg.qvg.camera.poses import camera_poses  # noqa: E402
from comfyui_qvg.qvg.camera.selection import HUNYUAN_MEMORY  # noqa: E402
from comfyui_qvg.qvg.models.common.world_memory import WorldMemory, world_memory  # noqa: E402
from comfyui_qvg.qvg.models.common.world_schedule import timesteps  # noqa: E402
from comfyui_qvg.qvg.models.worldplay_hunyuan.network import WorldPlayHunyuan, load_worldplay_hunyuan  # noqa: E402
from comfyui_qvg.qvg.models.worldplay_hunyuan.text import TextRows, Words, without_padding  # noqa: E402
from comfyui_qvg.qvg.sampling.world_hunyuan import Guidance, HunyuanWorld  # noqa: E402
from comfyui_qvg.tests import golden_worldplay_hunyuan as given  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

# Chunks walked in each mode.
WALKS = {"vendor": given.CHUNKS, "persistent": 3, "incremental": 3, "guided": given.GUIDED_CHUNKS}


def words(states: given.Words) -> Words:
    """Without padding."""
    text = without_padding(states.text, states.text_mask)
    assert text is not None
    return Words(text, without_padding(states.byt5, states.byt5_mask), states.vision)


def walk(model: WorldPlayHunyuan, texts: list[TextRows], face: WorldPlay8B, base_model: Any, walked: str) -> list[Tensor]:
    """Every chunk, [1, C, 4, h, w], with an exact memory."""
    mode = "vendor" if walked == "guided" else walked

    def memory() -> WorldMemory:
        grid = (given.ROWS, given.COLS)
        spec = face.cache_spec(base_model, grid, 20 if mode == "vendor" else 4, 1, "none")
        return world_memory(spec, QVGConfig.preset("exact"), face.rope(base_model, grid))

    rule = HUNYUAN_MEMORY if mode == "vendor" else None
    world = HunyuanWorld(model, memory(), texts[0], mode, rule, FieldOfView(dtype=torch.float64))
    world.steps = tuple(1000 * sigma for sigma in face.variant.sigmas)
    if walked == "guided":
        world.guidance, world.steps = Guidance(texts[1], memory(), given.GUIDANCE), timesteps(given.GUIDED_STEPS, 5.0)
    noise, image = (each.transpose(1, 2) for each in given.inputs()[:2])
    cameras, chunks = Cameras(camera_poses(parse_path(given.PATH), 4 * given.CHUNKS, "again")), []
    for index in range(WALKS[walked]):
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
    network = patcher.model.diffusion_model
    layer = network.double_blocks[1].img_attn_prope_proj
    assert patcher.is_dynamic() and layer.weight_comfy_model_dtype == torch.float32 and not layer.weight.requires_grad
    model = WorldPlayHunyuan(network, torch.float32)
    texts = [model.read_prompt(words(states)) for states in given.inputs()[2:]]
    chunks = walk(model, texts, patcher.model.qvg_world, patcher.model, "vendor")
    comfy.memory_management.aimdo_enabled = False
    return chunks


class _Paging(comfy.model_patcher.ModelPatcher):
    def is_dynamic(self) -> bool:
        return True


def main() -> None:
    """See the module docstring."""
    _, loader, checkpoint = Source(FILE, "Load WorldPlay").read()
    patcher = loader.patcher(checkpoint, {"dtype": torch.float32})
    put_variant(patcher, checkpoint.variant)
    base_model = patcher.model
    network, face = base_model.diffusion_model, base_model.qvg_world
    assert type(network).__name__ == "HunyuanVideo" and next(network.parameters()).dtype == torch.float32
    counted = sum(weight.nbytes for weight in network.state_dict().values())
    assert patcher.model_size() >= counted > 0, "the added layers are not counted"
    assert patcher.get_model_object("model_sampling").shift == 5.0
    tensors = {}
    for name, model in (("core", WorldPlayHunyuan(network)), ("ours", load_worldplay_hunyuan(given.weights()))):
        texts = [model.read_prompt(words(states)) for states in given.inputs()[2:]]
        keys, values = texts[0].layers[-1]
        tensors |= {f"{name}.text.k": keys.contiguous(), f"{name}.text.v": values.contiguous()}
        for walked in WALKS:
            for index, chunk in enumerate(walk(model, texts, face, base_model, walked)):
                tensors[f"{name}.{walked}.{index}"] = chunk
    if hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        tensors |= {f"lazy.vendor.{index}": chunk for index, chunk in enumerate(lazily_loaded())}
    save_file(tensors, OUT)


main()
