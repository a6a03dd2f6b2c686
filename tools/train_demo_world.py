"""Train the demo world model and write assets/demo_world.safetensors.

    python tools/train_demo_world.py --steps 9000 --seed 0

Reproducible on one machine: every picture, path and noise level comes from the seed, and one thread does the arithmetic.
Teacher forcing: each sequence holds clean context frames and noisy twins of some of them; a twin sees the clean frames before
it and itself, exactly what the sampler shows the model. Maps come from the TRAINING domain only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from bootstrap_package import comfyui_qvg  # noqa: E402, F401  (names the repository `comfyui_qvg`)
from comfyui_qvg.qvg.models.demo_world import STEP_PIXELS, DemoWorld, DemoWorldConfig  # noqa: E402
from comfyui_qvg.qvg.models.painted_map import MAP_PIXELS, TRAINING, paint  # noqa: E402

LIMIT_STEPS = (MAP_PIXELS - 64) // STEP_PIXELS  # camera positions along one side of a map
MAP_POOL = 600


class MapPool:
    """Maps to draw from; one is replaced by a new one at every step, so the stock never ends."""

    def __init__(self) -> None:
        self.maps = [self._map(seed) for seed in range(MAP_POOL)]
        self.next_seed = MAP_POOL

    @staticmethod
    def _map(seed: int) -> np.ndarray:
        return (paint(seed, TRAINING) * 255).round().astype(np.uint8)

    def refresh(self) -> None:
        self.maps[self.next_seed % MAP_POOL] = self._map(self.next_seed)
        self.next_seed += 1

    def views(self, rng: np.random.Generator, poses: np.ndarray) -> Tensor:
        """poses [F, 2] in camera steps -> pictures [F, 3, 64, 64] in -1..1, all of one map."""
        world = self.maps[rng.integers(MAP_POOL)]
        pixels = poses * STEP_PIXELS
        frames = np.stack([world[r : r + 64, c : c + 64] for r, c in pixels])
        return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def sample_poses(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Camera positions of one sequence: a walk with turns, a walk there and back, or places scattered around one spot."""
    kind = rng.random()
    if kind < 0.35:
        reach = rng.choice([6, 12, 24])
        centre = rng.integers(0, LIMIT_STEPS + 1, 2)
        poses = centre + rng.integers(-reach, reach + 1, (frames, 2))
        twins = rng.random(frames) < 0.25  # come back to exactly the same pose
        poses[twins] = poses[rng.integers(0, frames, twins.sum())]
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


def sample_batch(rng: np.random.Generator, pool: MapPool, batch: int, context: int, twins: int) -> tuple[Tensor, ...]:
    """-> clean pictures, their noise levels, poses, and for each twin the index of the frame it is a copy of."""
    poses = np.stack([sample_poses(rng, context) for _ in range(batch)])
    clean = torch.stack([pool.views(rng, p) for p in poses])
    index = np.sort(rng.permutation(context)[:twins])[None].repeat(batch, 0)
    return clean, torch.from_numpy(poses).float(), torch.from_numpy(index)


def noise_levels(rng: np.random.Generator, batch: int, context: int, twins: int) -> tuple[Tensor, Tensor, Tensor]:
    """-> noise level told for the context, noise really mixed into it, noise level of the twins. All [B, frames]."""
    told = np.zeros((batch, context))
    noisy = rng.random((batch, 1)) < 0.2
    told = np.where(noisy, rng.random((batch, context)) * 0.3, told)
    # A little untold noise: the model must live with its own imperfect pictures, and with a quantized memory of them.
    real = np.where((rng.random((batch, 1)) < 0.5) & ~noisy, rng.random((batch, context)) * 0.06, told)
    uniform = rng.random((batch, twins))
    level = np.where(rng.random((batch, twins)) < 0.12, 1.0, 3 * uniform / (1 + 2 * uniform))
    return tuple(torch.from_numpy(a.astype(np.float32)) for a in (told, real, level))


def block_causal_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, context: int) -> Tensor:
    """Attention over [context | twins], all [B, H, frames * S, D]: every frame sees the context before it, and itself.

    One unmasked call per frame does a third of the work of one masked call over everything. `index` [B, twins] must be the
    same for the whole batch.
    """
    frames = context + index.shape[1]
    qs, ks, vs = (part.chunk(frames, 2) for part in (q, k, v))
    out = []
    for frame, past in enumerate([*range(context), *index[0].tolist()]):
        keys, values = (torch.cat([*part[:past], part[frame]], 2) for part in (ks, vs))
        out.append(F.scaled_dot_product_attention(qs[frame], keys, values))
    return torch.cat(out, 2)


def training_loss(
    model: DemoWorld, rng: np.random.Generator, noise: torch.Generator, pool: MapPool, shape: tuple[int, int, int]
) -> Tensor:
    """v-loss of an x-prediction on the noisy twins."""
    batch, context, twins = shape
    clean, poses, index = sample_batch(rng, pool, batch, context, twins)
    told, real, level = noise_levels(rng, batch, context, twins)
    target = torch.gather(clean, 1, index[..., None, None, None].expand(-1, -1, *clean.shape[2:]))
    x = torch.cat([clean, target], 1)
    mixed = torch.cat([real, level], 1)[..., None, None, None]
    x = x * (1 - mixed) + torch.randn(x.shape, generator=noise) * mixed

    rope = model.config.rope()
    poses = torch.cat([poses, torch.gather(poses, 1, index[..., None].expand(-1, -1, 2))], 1)
    origins = F.pad(poses * STEP_PIXELS / model.config.patch_pixels, (1, 0))
    rotations = [rope.rotation(o) for o in origins]
    cos, sin = (torch.stack(part)[:, None] for part in zip(*rotations, strict=True))

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (_rotate_train(part.float(), cos, sin).to(v.dtype) for part in (q, k))
        return block_causal_attention(q, k, v, index, context)

    with torch.autocast("cpu", torch.bfloat16):
        predicted = model(x, torch.cat([told, level], 1), attend)[:, context:]
    weight = level.clamp(min=0.1) ** -2
    error = ((predicted.float() - target) ** 2).mean((2, 3, 4))
    return (error * weight).mean()


def _rotate_train(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
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


def save(model_state: dict[str, Tensor], config: DemoWorldConfig, settings: dict[str, object], path: Path) -> None:
    """16-bit weights with the settings of their training in the metadata."""
    from dataclasses import asdict

    metadata = {"format": "pt", "model": "qvg-demo-world", "config": json.dumps(asdict(config)), "training": json.dumps(settings)}
    save_file({name: value.half().contiguous() for name, value in model_state.items()}, path, metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "demo_world.safetensors")
    parser.add_argument("--save-every", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng, noise = np.random.default_rng([TRAINING, args.seed]), torch.Generator().manual_seed(args.seed)
    model = DemoWorld()
    initialize(model)
    averaged = {name: value.detach().clone() for name, value in model.state_dict().items()}
    optimizers = make_optimizers(model)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    pool = MapPool()
    settings: dict[str, object] = {"steps": args.steps, "seed": args.seed, "torch": torch.__version__}
    print(json.dumps(settings), sum(p.numel() for p in model.parameters()), flush=True)
    started, recent = time.time(), []
    for step in range(1, args.steps + 1):
        pool.refresh()
        # Short sequences teach pictures and copying; long ones teach to find one place among many.
        long = step > args.steps // 3 and step % 4 == 0
        loss = training_loss(model, rng, noise, pool, (1, 40, 10) if long else (5, 8, 8))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        ramp = min(1.0, step / 100) * min(1.0, (args.steps - step + 1) / (0.4 * args.steps))
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * ramp
            optimizer.step()
            optimizer.zero_grad()
        decay = min(0.999, 1 - 10 / (step + 10))
        for name, value in model.state_dict().items():
            averaged[name].lerp_(value, 1 - decay)
        recent.append(loss.item())
        if step % 50 == 0:
            print(f"step {step} loss {np.mean(recent):.4f} {(time.time() - started) / step:.3f} s/step", flush=True)
            recent = []
        if step % args.save_every == 0 or step == args.steps:
            save(averaged, model.config, {**settings, "step": step}, args.out)


if __name__ == "__main__":
    main()
