"""Write tests/data/golden_worldplay_hunyuan.safetensors: run the official HY-WorldPlay for HunyuanVideo 1.5 on the inputs of
tests/golden_worldplay_hunyuan.py.

    python tools/make_golden_worldplay_hunyuan.py CHECKOUT     a checkout of Tencent-Hunyuan/HY-WorldPlay; needs diffusers 0.35,
                                                               transformers 4 and loguru

What distributes the work over GPUs is replaced by nothing. The rollout, the transformer and the scheduler are the checkout's own
code, in float32 on the CPU, where it falls back to torch's attention.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bootstrap_package  # noqa: F401 (makes the repository importable as comfyui_qvg)
from comfyui_qvg.qvg.camera.overlap import ball_points
from comfyui_qvg.tests import golden_worldplay_hunyuan as given


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--commit", help="what the checkout is, if it is no git repository")
    options = parser.parse_args()
    commit = options.commit or subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=options.checkout, text=True).strip()
    make_importable(options.checkout)
    initialise()
    network = official_network()
    with torch.no_grad():
        tensors = {**walk(network), **guided_walk(network)}
    tensors = {name: x.contiguous().clone() for name, x in tensors.items()}
    save_file(tensors, given.FILE, {"source": f"Tencent-Hunyuan/HY-WorldPlay {commit}"})
    print(f"{given.FILE}: {len(tensors)} tensors, {given.FILE.stat().st_size} bytes")


def make_importable(checkout: Path) -> None:
    """The checkout's own modules; one process, which it would otherwise make a group of, without a GPU or videos to write."""
    sys.path.insert(0, str(checkout))
    torch.cuda.set_device = lambda *_: None
    alone = types.ModuleType("hyvideo.commons.parallel_states")
    vars(alone).update(get_parallel_state=lambda: SimpleNamespace(sp_enabled=False), initialize_parallel_state=lambda sp=1: None)
    sys.modules[alone.__name__] = alone


def initialise() -> None:
    """As its command line does, everything optional left out."""
    settings = {"sage_blocks_range": "0", "use_sageattn": False, "enable_torch_compile": False, "use_fp8_gemm": False}
    settings |= {"quant_type": "", "use_vae_parallel": False}
    importlib.import_module("hyvideo.commons.infer_state").initialize_infer_state(SimpleNamespace(**settings))


def official_network() -> Any:
    """The checkout's transformer with our weights."""
    code = importlib.import_module("hyvideo.models.transformers.worldplay_1_5_transformer")
    network = code.HunyuanVideo_1_5_DiffusionTransformer(
        patch_size=[1, 1, 1],
        in_channels=given.CHANNELS,
        out_channels=given.CHANNELS,
        hidden_size=given.WIDTH,
        heads_num=given.HEADS,
        mm_double_blocks_depth=given.LAYERS,
        mm_single_blocks_depth=0,
        text_states_dim=given.TEXT,
        glyph_byT5_v2=True,
        vision_projection="linear",
        vision_states_dim=given.VISION,
        use_cond_type_embedding=True,
    )
    network.add_action_parameters()
    network.load_state_dict(given.weights(), strict=True)
    return network.eval()


def walk(network: Any) -> dict[str, Tensor]:
    """Seven chunks in four steps: latents, first velocities, the text's memory, and the second chunk's."""
    calls, tensors = rollout(network, given.CHUNKS, given.STEPS, 1.0)
    text = next(made for arguments, made in calls if arguments["ar_txt_inference"])
    tensors |= {f"text.{name}": text[-1][f"{name}_txt"] for name in "kv"}
    velocities = [made[0] for arguments, made in calls if is_first_step(arguments)]
    contexts = [made for arguments, made in calls if arguments.get("cache_vision")]
    tensors |= {f"velocity.{chunk}": velocities[chunk] for chunk in (0, 1, given.CHUNKS - 1)}
    tensors |= {f"memory.{name}": contexts[0][-1][f"{name}_vision"][:, :, :: given.MEMORY_STRIDE] for name in "kv"}
    return tensors


def is_first_step(arguments: dict[str, Any]) -> bool:
    """Whether this call is a chunk's first denoise step."""
    return arguments.get("cache_vision") is False and float(arguments["timestep"][0]) == 1000


def guided_walk(network: Any) -> dict[str, Tensor]:
    """Two chunks with guidance: latents, and the negative text's memory."""
    calls, tensors = rollout(network, given.GUIDED_CHUNKS, given.GUIDED_STEPS, given.GUIDANCE)
    texts = [made for arguments, made in calls if arguments["ar_txt_inference"]]
    tensors = {f"guided.{name}": x for name, x in tensors.items()}
    return tensors | {f"guided.text.{name}": texts[1][-1][f"{name}_txt"] for name in "kv"}


def rollout(network: Any, chunks: int, steps: int, guidance: float) -> tuple[list[tuple[dict[str, Any], Any]], dict[str, Tensor]]:
    """Every call of the network, and the latents of the chunks."""
    code = importlib.import_module("hyvideo.pipelines.worldplay_video_pipeline")
    schedulers = importlib.import_module("hyvideo.schedulers.scheduling_flow_match_discrete")
    calls: list[tuple[dict[str, Any], Any]] = []

    class Recorder:
        double_blocks = network.double_blocks

        def __call__(self, **arguments: Any) -> Any:
            calls.append((arguments, network(**arguments)))
            return calls[-1][1]

    class Pipeline(code.HunyuanVideo_1_5_Pipeline):  # type: ignore[name-defined, misc]
        config = SimpleNamespace()

        def __init__(self) -> None:
            """Without encoders to load."""

        def progress_bar(self, total: int | None = None) -> Any:
            return contextlib.nullcontext(SimpleNamespace(update=lambda: None))

    pipe = Pipeline()
    scheduler = schedulers.FlowMatchDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(steps)
    members = {"transformer": Recorder(), "scheduler": scheduler, "num_inference_steps": steps, "num_warmup_steps": 0}
    members |= {"chunk_num": chunks, "chunk_latent_frames": 4, "points_local": ball_points(), "_guidance_scale": guidance}
    members |= {"target_dtype": torch.float32, "autocast_enabled": False, "enable_offloading": False}
    members |= {"execution_device": torch.device("cpu")}
    for name, member in members.items():
        object.__setattr__(pipe, name, member)
    return calls, latents_of(pipe, chunks, guidance > 1)


def latents_of(pipe: Any, chunks: int, guided: bool) -> dict[str, Tensor]:
    """What the checkout's rollout paints, by chunk."""
    for name in ("imageio", "moviepy", "moviepy.editor"):  # not before diffusers has looked for them
        sys.modules[name] = types.ModuleType(name)
    vars(sys.modules["moviepy.editor"]).update(VideoFileClip=None, VideoClip=None)
    generate = importlib.import_module("hyvideo.generate")
    noise, image, prompt, negative = given.inputs()
    noise = noise[:, :, : 4 * chunks].clone()
    mask = pipe.get_task_mask("i2v", noise.shape[2])
    condition = pipe._prepare_cond_latents("i2v", image, noise, mask)
    words = list(words_of(prompt, negative, guided))
    text, text_mask, byt5, byt5_mask, vision = (torch.cat(parts) for parts in zip(*words, strict=True))
    pose = generate.pose_string_to_json(given.PATH)
    views, intrinsics, labels = generate.pose_to_input(pose, len(pose))
    pipe._ar_rollout_inner(
        noise,
        pipe.scheduler.timesteps,
        text,
        text_mask,
        vision,
        condition,
        "i2v",
        {"byt5_text_states": byt5, "byt5_text_mask": byt5_mask},
        views[None],
        intrinsics[None],
        labels[None],
        torch.device("cpu"),
    )
    return {f"latent.{chunk}": noise[:, :, 4 * chunk : 4 * chunk + 4] for chunk in range(chunks)}


def words_of(prompt: given.Words, negative: given.Words, guided: bool) -> Iterator[given.Words]:
    """In the order of the official batch."""
    if guided:
        yield negative
    yield prompt


if __name__ == "__main__":
    main()
