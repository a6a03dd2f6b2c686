"""Train the demo world model and write assets/demo_world.safetensors.

    python tools/train_demo_world.py --device cuda          the shipped weights: nine minutes on one H200
    python tools/train_demo_world.py --device cpu --steps 6000 --batch 5 --maps 600      a fair model in 100 minutes on one core

Every map, path, noise level and initial weight comes from the seed: one recipe, the same data everywhere. (Bits differ between
devices, because sums do.) Teacher forcing: a sequence holds clean context frames and noisy twins of some of them; a twin sees the
clean frames before it and itself, exactly what the sampler shows the model. Maps come from the TRAINING domain only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from bootstrap_package import comfyui_qvg  # noqa: E402, F401  (first: it names the repository `comfyui_qvg`)
from comfyui_qvg.qvg.models.demo_world import STEP_PIXELS, DemoWorld, DemoWorldConfig  # noqa: E402
from comfyui_qvg.qvg.models.demo_world.painted_map import MAP_PIXELS, TRAINING, paint  # noqa: E402

VIEW = DemoWorldConfig().picture_pixels
LIMIT_STEPS = (MAP_PIXELS - VIEW) // STEP_PIXELS  # camera positions along one side of a map


class Batch(NamedTuple):
    """Numbers of one training step; pictures are cut out of the maps on the device."""

    maps: Tensor  # [B] which map
    poses: Tensor  # [B, context, 2] camera steps
    twins: Tensor  # [twins] which context frames have a noisy twin, the same in the whole batch
    told: Tensor  # [B, context] noise level that the model is told of its context
    real: Tensor  # [B, context] noise level that the context really has
    level: Tensor  # [B, twins] noise level of the twins


class Batches(Dataset[Batch]):
    """Step number -> batch. Short sequences teach pictures and copying, long ones to find one place among many."""

    def __init__(self, seed: int, steps: int, batch: int, maps: int):
        self.seed, self.steps, self.batch, self.maps = seed, steps, batch, maps

    def __len__(self) -> int:
        return self.steps

    def shape(self, step: int) -> tuple[int, int, int]:
        """(sequences, context frames, twins) of a step."""
        if step < self.steps // 4 or step % 4:
            return self.batch, 8, 8
        return (max(1, self.batch // 8), 40, 10) if step % 8 else (max(1, self.batch // 20), 100, 10)

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([TRAINING, self.seed, step])
        batch, context, twins = self.shape(step)
        poses = np.stack([sample_poses(rng, context) for _ in range(batch)])
        index = np.sort(rng.permutation(context)[:twins])
        maps = rng.integers(0, self.maps, batch)
        levels = noise_levels(rng, batch, context, twins)
        return Batch(torch.from_numpy(maps), torch.from_numpy(poses), torch.from_numpy(index), *levels)


def sample_poses(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Camera positions of one sequence: a walk with turns, a walk there and back, or places scattered around one spot."""
    kind = rng.random()
    if kind < 0.35:
        reach = rng.choice([6, 12, 24])
        centre = rng.integers(0, LIMIT_STEPS + 1, 2)
        poses = centre + rng.integers(-reach, reach + 1, (frames, 2))
        again = rng.random(frames) < 0.25  # come back to exactly the same pose
        poses[again] = poses[rng.integers(0, frames, again.sum())]
        return np.clip(poses, 0, LIMIT_STEPS)
    stride = int(rng.integers(1, 5))
    half = frames if kind < 0.7 else (frames + 1) // 2
    poses, position = np.zeros((frames, 2), int), rng.integers(0, LIMIT_STEPS + 1, 2)
    direction = _direction(rng)
    for i in range(half):
        poses[i] = position
        step = position + stride * direction
        if rng.random() < 0.2 or (step < 0).any() or (step > LIMIT_STEPS).any():
            direction = _direction(rng)
            step = position + stride * direction
        position = np.clip(step, 0, LIMIT_STEPS)
    if half < frames:
        back = poses[:half][:: rng.choice([-1, 1])]
        poses[half:] = back[: frames - half]
    return poses


def _direction(rng: np.random.Generator) -> np.ndarray:
    options = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    return np.array(options[rng.integers(8)])


def noise_levels(rng: np.random.Generator, batch: int, context: int, twins: int) -> tuple[Tensor, ...]:
    """-> noise level told for the context, noise really mixed into it, noise level of the twins."""
    noisy = rng.random((batch, 1)) < 0.2
    told = np.where(noisy, rng.random((batch, context)) * 0.3, 0.0)
    # A little untold noise: the model must live with its own imperfect pictures, and with a quantized memory of them.
    real = np.where((rng.random((batch, 1)) < 0.5) & ~noisy, rng.random((batch, context)) * 0.06, told)
    uniform = rng.random((batch, twins))
    level = np.where(rng.random((batch, twins)) < 0.12, 1.0, 3 * uniform / (1 + 2 * uniform))
    return tuple(torch.from_numpy(part.astype(np.float32)) for part in (told, real, level))


def paint_maps(count: int) -> Tensor:
    """-> uint8 [count, 3, MAP_PIXELS, MAP_PIXELS], painted on all cores."""
    with multiprocessing.Pool() as pool:
        return torch.from_numpy(np.stack(pool.map(_map, range(count), chunksize=16)))


def _map(seed: int) -> np.ndarray:
    return (paint(seed, TRAINING) * 255).round().astype(np.uint8).transpose(2, 0, 1)


def cut_views(maps: Tensor, which: Tensor, poses: Tensor) -> Tensor:
    """Pictures at poses [B, F, 2] of maps `which` [B]. -> [B, F, 3, VIEW, VIEW] in -1..1."""
    span = torch.arange(VIEW, device=maps.device)
    rows, cols = ((poses[..., axis, None] * STEP_PIXELS + span) for axis in (0, 1))
    views = maps[which[:, None, None, None], :, rows[..., :, None], cols[..., None, :]]  # [B, F, VIEW, VIEW, 3]
    return views.permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def visibility(context: int, twins: Tensor, tokens: int) -> Tensor:
    """Boolean mask [S, S] over [context | twins]: the past in the context, and oneself."""
    frames = torch.cat([torch.arange(context, device=twins.device), twins])
    sees = torch.arange(context, device=twins.device) < frames[:, None]
    sees = torch.cat([sees, torch.zeros(len(frames), len(twins), dtype=torch.bool, device=twins.device)], 1)
    sees |= torch.eye(len(frames), dtype=torch.bool, device=twins.device)
    return sees.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)


def attention_by_frame(q: Tensor, k: Tensor, v: Tensor, context: int, twins: Tensor) -> Tensor:
    """What a masked call with `visibility` gives, in one unmasked call per frame: a third of the work, better on a CPU."""
    frames = context + len(twins)
    qs, ks, vs = (part.chunk(frames, 2) for part in (q, k, v))
    out = []
    for frame, past in enumerate([*range(context), *twins.tolist()]):
        keys, values = (torch.cat([*part[:past], part[frame]], 2) for part in (ks, vs))
        out.append(F.scaled_dot_product_attention(qs[frame], keys, values))
    return torch.cat(out, 2)


def training_loss(model: DemoWorld, maps: Tensor, batch: Batch, noise: torch.Generator) -> Tensor:
    """v-loss of an x-prediction on the noisy twins."""
    context = batch.poses.shape[1]
    clean = cut_views(maps, batch.maps, batch.poses)
    target = clean[:, batch.twins]
    mixed = torch.cat([batch.real, batch.level], 1)[..., None, None, None]
    x = torch.cat([clean, target], 1)
    x = x * (1 - mixed) + torch.randn(x.shape, generator=noise, device=x.device) * mixed

    rope = model.config.rope()
    poses = torch.cat([batch.poses, batch.poses[:, batch.twins]], 1)
    origins = F.pad(poses * (STEP_PIXELS / model.config.patch_pixels), (1, 0))
    turn = rope.rotation(origins.flatten(0, 1))
    cos, sin = (part.view(len(origins), 1, -1, part.shape[-1]) for part in turn)
    mask = None if x.device.type == "cpu" else visibility(context, batch.twins, rope.tokens_per_frame)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (_rotate(part.float(), cos, sin).to(v.dtype) for part in (q, k))
        if mask is None:
            return attention_by_frame(q, k, v, context, batch.twins)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    with torch.autocast(x.device.type, torch.bfloat16):
        predicted = model(x, torch.cat([batch.told, batch.level], 1), attend)[:, context:]
    error = ((predicted.float() - target) ** 2).mean((2, 3, 4))
    return (error * batch.level.clamp(min=0.1) ** -2).mean()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def make_optimizers(model: DemoWorld) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2 and min(p.shape) > 6]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-3, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def initialize(model: DemoWorld) -> None:
    """Zero the output projections, so that every block starts as the identity."""
    for block in model.blocks:
        for layer in (block.out, block.mlp_out):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    torch.nn.init.normal_(model.time_out.weight, std=0.01)
    with torch.no_grad():
        model.time_out.bias.zero_().view(6, -1)[[2, 5]] = 1.0  # gates open
    torch.nn.init.zeros_(model.patch_out.weight)


def save(weights: dict[str, Tensor], config: DemoWorldConfig, settings: dict[str, object], path: Path) -> None:
    """16-bit weights with the settings of their training in the metadata."""
    metadata = {"format": "pt", "model": "qvg-demo-world", "config": json.dumps(asdict(config)), "training": json.dumps(settings)}
    save_file({name: value.half().cpu().contiguous() for name, value in weights.items()}, path, metadata)


def train(options: argparse.Namespace) -> None:
    """The loop: trapezoid learning rate, running average of the weights."""
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    model = DemoWorld()
    initialize(model)
    model.to(device)
    noise = torch.Generator(device).manual_seed(options.seed)
    averaged = {name: value.detach().clone() for name, value in model.state_dict().items()}
    optimizers = make_optimizers(model)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    settings = {name: getattr(options, name) for name in ("steps", "seed", "batch", "maps")}
    settings |= {"torch": torch.__version__, "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
    print(json.dumps(settings), sum(p.numel() for p in model.parameters()), "parameters", flush=True)
    maps = paint_maps(options.maps).to(device)
    workers = 8 if device.type == "cuda" else 0
    loader = DataLoader(Batches(options.seed, options.steps, options.batch, options.maps), batch_size=None, num_workers=workers)
    started, recent = time.time(), torch.zeros((), device=device)
    for step, batch in enumerate(loader, 1):
        loss = training_loss(model, maps, Batch(*(part.to(device) for part in batch)), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        ramp = min(1.0, step / 100) * min(1.0, (options.steps - step + 1) / (0.4 * options.steps))
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * ramp
            optimizer.step()
            optimizer.zero_grad()
        decay = min(0.999, 1 - 10 / (step + 10))
        torch._foreach_lerp_(list(averaged.values()), list(model.state_dict().values()), 1 - decay)
        recent += loss.detach()
        if step % 100 == 0:
            print(f"step {step} loss {recent.item() / 100:.4f} {(time.time() - started) / step:.4f} s/step", flush=True)
            recent.zero_()
        if step % options.save_every == 0 or step == options.steps:
            save(averaged, model.config, {**settings, "step": step}, options.out)


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--batch", type=int, default=64, help="sequences of a short step")
    parser.add_argument("--maps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "demo_world.safetensors")
    parser.add_argument("--save-every", type=int, default=1000)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    train(options)


if __name__ == "__main__":
    main()
