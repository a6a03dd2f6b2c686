"""Write tests/data/golden_worldplay.safetensors: run the official HY-WorldPlay on the inputs of tests/golden_worldplay.py.

    python tools/make_golden_worldplay.py CHECKOUT     a checkout of Tencent-Hunyuan/HY-WorldPlay; needs diffusers 0.35,
                                                       transformers 4, loguru, ftfy and regex

SageAttention is replaced by torch's attention, torch.compile by nothing, the literal 880 tokens per frame by 4, the VAE by one
that returns the given picture, and what distributes the work over GPUs by nothing. Everything else is the checkout's own code,
in float32 on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import diffusers.models.attention_processor
import numpy as np
import torch
from safetensors.torch import save_file
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bootstrap_package  # noqa: F401 (makes the repository importable as comfyui_qvg)
from changed_source import changed_module
from comfyui_qvg.tests.golden_worldplay import CHANNELS, CHUNKS, FFN, FILE, HEADS, LAYERS, SIDE, TEXT, inputs, weights

PATHS = {"walk": "w-8,s-8,a-8,d-8,up-8,down-8", "turns": "right-20,w-8,up-3,left-20,d-6,down-4,s-5,right-13"}
STEPS = "right-12,left-12,w-3"
INTRINSICS = [[969.6969696969696, 0.0, 960.0], [0.0, 969.6969696969696, 540.0], [0.0, 0.0, 1.0]]
PAIRS = [(0, 0), (0, 5), (5, 0), (0, 20), (20, 40), (22, 3), (60, 1), (31, 62), (50, 10)]
TOKENS = SIDE * SIDE // 4


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--commit", help="what the checkout is, if it is no git repository")
    options = parser.parse_args()
    commit = options.commit or subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=options.checkout, text=True).strip()
    make_importable(options.checkout)
    tensors = geometry()
    selections = memory(tensors)
    attention(tensors)
    with torch.no_grad():
        pipeline(options.checkout, tensors)
    metadata = {**PATHS, "steps": STEPS, "selection": json.dumps(selections), "source": f"Tencent-Hunyuan/HY-WorldPlay {commit}"}
    save_file({name: x.contiguous().clone() for name, x in tensors.items()}, FILE, metadata)
    print(f"{FILE}: {len(tensors)} tensors, {FILE.stat().st_size} bytes")


def module(name: str, **members: Any) -> types.ModuleType:
    """A module of that name with nothing but these members."""
    made = sys.modules[name] = types.ModuleType(name)
    vars(made).update(members)
    return made


def make_importable(checkout: Path) -> None:
    """The checkout's own modules, and stand-ins for what starts GPUs, processes and other packages when it is imported."""
    sys.path[:0] = [str(checkout / "wan"), str(checkout)]
    module("sageattention", sageattn=lambda q, k, v, **_: F.scaled_dot_product_attention(q, k, v))
    alone = {"get_sp_parallel_rank": lambda: 0, "get_sp_world_size": lambda: 1, "get_sp_parallel_local_rank": lambda: 0}
    module("distributed")
    module("distributed.communication_op", all_to_all_sp=None, sequence_model_parallel_all_gather=None)
    module("distributed.parallel_state", **alone)
    module("models.par_vae")
    module("models.par_vae.tools", distribute_data_to_gpus=None, gather_results=None)
    module("inference.helper", CHUNK_SIZE=4)
    module("hyvideo").__path__ = [str(checkout / "hyvideo")]
    for name in ("imageio", "moviepy", "hyvideo.pipelines", "hyvideo.commons"):
        module(name)
    module("moviepy.editor", VideoFileClip=None, VideoClip=None)
    module("hyvideo.pipelines.worldplay_video_pipeline", HunyuanVideo_1_5_Pipeline=None)
    module("hyvideo.commons.parallel_states", initialize_parallel_state=lambda sp: None)
    module("hyvideo.commons.infer_state", initialize_infer_state=None)
    torch.cuda.set_device = torch.cuda.synchronize = lambda *_: None
    torch.cuda.nvtx = SimpleNamespace(range_push=lambda *_: None, range_pop=lambda *_: None)


def geometry() -> dict[str, Tensor]:
    """Poses, labels and intrinsics of two paths, of keys held together, and of any rigid motions."""
    generate, custom = (importlib.import_module(f"hyvideo.{name}") for name in ("generate", "generate_custom_trajectory"))
    tensors = {}
    for name, text in PATHS.items():
        pose = generate.pose_string_to_json(text)
        _, intrinsics, labels = generate.pose_to_input(pose, len(pose))
        tensors[f"{name}.poses"] = torch.tensor(np.array([frame["extrinsic"] for frame in pose.values()]))
        tensors[f"{name}.labels"], tensors[f"{name}.intrinsics"] = labels.to(torch.int64), intrinsics[:1]
    random = np.random.RandomState(3)
    signs = [[int(random.choice([-1, 0, 1])) for _ in range(4)] for _ in range(60)]
    turn = np.deg2rad(3)
    motions = [{"forward": 0.08 * f, "right": 0.08 * r, "yaw": turn * y, "pitch": turn * p} for f, r, y, p in signs]
    tensors["mixed.motions"] = torch.tensor(signs, dtype=torch.int8)
    for name, poses in (("mixed", custom.generate_camera_trajectory_local(motions)), ("free", free_poses())):
        tensors[f"{name}.poses"] = torch.tensor(np.array(poses))
        frames = {str(i): {"extrinsic": pose.tolist(), "K": INTRINSICS} for i, pose in enumerate(poses)}
        for third_person in (False, True):
            tensors[f"{name}.labels.{int(third_person)}"] = generate.pose_to_input(frames, len(poses), third_person)[2]
    return tensors


def free_poses() -> list[np.ndarray]:
    """Small rigid motions, many of them within the labels' dead zones."""
    random, pose, poses = np.random.RandomState(4), np.eye(4), []
    for _ in range(40):
        poses.append(pose.copy())
        motion = np.eye(4)
        motion[:3, :3] = Rotation.from_rotvec(random.standard_normal(3) * random.choice([0, 1e-4, 0.05])).as_matrix()
        motion[:3, 3] = random.standard_normal(3) * random.choice([0, 1e-5, 0.1])
        pose = pose @ motion
    return poses


def memory(tensors: dict[str, Tensor]) -> dict[str, dict[int, list[int]]]:
    """Which frames are remembered along the path "turns", by both rules."""
    retrieval, utils = (importlib.import_module(name) for name in ("hyvideo.utils.retrieval_context", "models.utils"))
    torch.manual_seed(0)
    points = retrieval.generate_points_in_sphere(50_000, 8.0)
    views = np.linalg.inv(tensors["turns.poses"].numpy())
    single = views.astype(np.float32)
    overlap = retrieval.calculate_fov_overlap_similarity
    tensors["points.first"], tensors["overlap.pairs"] = points[:4], torch.tensor(PAIRS)
    tensors["overlap.float32"] = torch.tensor([overlap(single[a], single[b], 60.0, 35.0, points_local=points) for a, b in PAIRS])
    starts = range(16, len(views) - 3, 4)
    wan = {start: utils.select_mem_frames_wan(single, start, 16, 12, 4, points_local=points) for start in starts}
    select = retrieval.select_aligned_memory_frames
    return {"wan": wan, "hunyuan": {start: select(list(views), start, 20, 12, 4, points_local=points) for start in starts}}


def attention(tensors: dict[str, Tensor]) -> None:
    """Projective attention of three cameras."""
    camera_rope = importlib.import_module("hyvideo.prope.camera_rope")
    random = np.random.RandomState(5)
    q, k, v = (torch.tensor(random.standard_normal((1, 2, 12, 128)).astype(np.float32)) for _ in range(3))
    views = torch.tensor(np.linalg.inv(tensors["turns.poses"].numpy())[[3, 24, 50]].astype(np.float32))[None]
    intrinsics = tensors["walk.intrinsics"].float().expand(3, 3, 3)[None]
    *projected, back = camera_rope.prope_qkv(q, k, v, viewmats=views, Ks=intrinsics, patches_x=2, patches_y=2)
    for name, x in zip("qkv", projected, strict=True):
        tensors[f"prope.{name}"] = x[:, :1, ::4]
    tensors["prope.out"] = back(F.scaled_dot_product_attention(*projected))


def pipeline(checkout: Path, tensors: dict[str, Tensor]) -> None:
    """Seven chunks: latents, first velocities, and the memory of the second chunk's last layer."""
    generate = importlib.import_module("hyvideo.generate")
    noise, image, text = inputs()
    calls: list[tuple[dict[str, Any], Any]] = []
    pipe = official_pipeline(checkout, image, calls)
    pose = generate.pose_string_to_json(STEPS)
    views, intrinsics, labels = generate.pose_to_input(pose, len(pose))
    common = {
        "prompt_embeds": text,
        "height": 16 * SIDE,
        "width": 16 * SIDE,
        "num_frames": 16 * CHUNKS - 3,
        "guidance_scale": 1.0,
    }
    common |= {"few_step": True, "first_chunk_size": 4, "return_dict": False, "image_path": "a picture", "use_memory": True}
    torch.manual_seed(0)
    for chunk in range(CHUNKS):
        at = slice(4 * chunk, 4 * chunk + 4)
        calls.clear()
        cameras = {"viewmats": views[at][None], "Ks": intrinsics[at][None], "action": labels[at][None]}
        pipe(chunk_i=chunk, context_window_length=16, output_type="latent", latents=None if chunk else noise, **cameras, **common)
        tensors[f"latent.{chunk}"] = pipe.ctx["latents"][:, :, at].clone()
        given, velocity = next(call for call in calls if not call[0]["is_cache"])
        if chunk in (0, 1, 5):
            tensors[f"velocity.{chunk}"], tensors[f"timestep.{chunk}"] = velocity[0], given["timestep"].clone()
        if chunk == 1:
            last = next(made for given, made in calls if given["is_cache"])[LAYERS - 1]
            tensors |= {f"cache.{LAYERS - 1}.{name}": last[name] for name in "kv"}


def with_few_tokens(source: str) -> str:
    """Our number of tokens in a frame where theirs is written out."""
    assert source.count("* 880") == 4
    return source.replace("* 880", f"* {TOKENS}")


def official_pipeline(checkout: Path, image: Tensor, calls: list[tuple[dict[str, Any], Any]]) -> Any:
    """The checkout's pipeline around its transformer with our weights; `calls` collects what it is asked and says."""
    file = checkout / "wan" / "inference" / "pipeline_wan_w_mem_relative_rope.py"
    code = changed_module("the pipeline", file, with_few_tokens)
    network = importlib.import_module("models.dits.arwan_w_action_w_mem_relative_rope").WanTransformer3DModel(
        num_attention_heads=HEADS,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT,
        ffn_dim=FFN,
        num_layers=LAYERS,
    )
    network.add_discrete_action_parameters()
    network.load_state_dict(weights(), strict=True)
    network.eval()

    class Recorder:
        config, dtype, blocks = network.config, torch.float32, network.blocks

        def __call__(self, **given: Any) -> Any:
            calls.append((given, network(**given)))
            return calls[-1][1]

    class Pipeline(code.WanPipeline):  # type: ignore[name-defined, misc]
        config, device, _execution_device = SimpleNamespace(boundary_ratio=None), torch.device("cpu"), torch.device("cpu")

        def __init__(self) -> None:
            """Without a text encoder to load."""

        def progress_bar(self, total: int | None = None) -> Any:
            return contextlib.nullcontext(SimpleNamespace(update=lambda: None))

        def resize_center_crop_to_tensor(self, path: str, size: tuple[int, int]) -> Tensor:
            return torch.zeros(3, 16 * SIDE, 16 * SIDE)

    scaling = SimpleNamespace(latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS, z_dim=CHANNELS)
    encoded = SimpleNamespace(sample=lambda: image)
    vae = SimpleNamespace(dtype=torch.float32, config=scaling, encode=lambda x, return_dict: (encoded,))
    made = Pipeline()
    members = {"transformer": Recorder(), "vae": vae, "dist_vae": SimpleNamespace(pipe=vae), "video_processor": None}
    members |= {"scheduler": SimpleNamespace(sigmas=torch.zeros(1)), "parallel_run": False, "par_vae_decode": True}
    members |= {"vae_scale_factor_temporal": 4, "vae_scale_factor_spatial": 16}
    for name, member in members.items():
        object.__setattr__(made, name, member)
    return made


if __name__ == "__main__":
    assert diffusers.models.attention_processor  # imported before the stand-ins, which it would look for
    main()
