"""Train the demo film model and write assets/demo_film.safetensors.

    python tools/train_demo_film.py codec   RUN                    the pictures' encoder and decoder, two minutes of one core
    python tools/train_demo_film.py warm    RUN --weights assets/demo_film.safetensors    a run that begins with a written file
    python tools/train_demo_film.py train   RUN                    goes on from the newest checkpoint in RUN until it is stopped
    python tools/train_demo_film.py decay   RUN --from 4000 --steps 600    a branch whose learning rate falls to nothing
    python tools/train_demo_film.py export  RUN --checkpoint decayed --out assets/demo_film.safetensors
    python tools/train_demo_film.py average RUN --weights EARLIER LATER    the mean of two files

Every scene, clip, noise and initial weight comes from the seed and the step's number, so that a run which was stopped and taken
up again gives the same weights as one that was not. Teacher forcing: a clip holds clean blocks at noise level 0 and noisy twins
of some of them; a twin sees the clean blocks before its own and itself, exactly what the sampler shows the model. What is shown,
and in which clips: `demo_film_clips.py`. Scenes come from the TRAINING domain only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bootstrap_package import comfyui_qvg  # noqa: F401  (first: it names the repository `comfyui_qvg`)
from comfyui_qvg.qvg.models.common.modulation import sines
from comfyui_qvg.qvg.models.common.shipped_weights import read_shipped
from comfyui_qvg.qvg.models.demo_film.directions import BLOCK_FRAMES, TURN_COLUMNS, Track, text_rows
from comfyui_qvg.qvg.models.demo_film.pictures import PictureCodec, fit_linear
from comfyui_qvg.qvg.models.demo_film.scenes import JUDGED, TRAINING, Scene
from comfyui_qvg.qvg.models.demo_film.weights import CONFIG, MODEL, WEIGHTS, read_demo_film, write_demo_film
from comfyui_qvg.qvg.models.wan.network import Attend, CausalWan, Prompt
from comfyui_qvg.qvg.positions.rope import Rotation, rotate
from demo_film_clips import SIGMAS, Batch, draw
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

LATENT = 16
GROUP = 4  # steps that may show the same clip again, and so the distance of possible checkpoints
WARM_UP = 50
GUIDED_LAYER, GUIDED_HEAD = 2, 0


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights, beside the step's number."""

    seed: int = 0
    films: int = 2
    longest_blocks: int = 20
    matrix_rate: float = 2e-3
    other_rate: float = 1e-3
    sharp_rate: float = 4e-3
    full_rate_steps: int = 3000  # afterwards the rates fall with the root of the step
    # One head is told where to look, in full until `guided_until` and less and less for as long again: see `Guide`.
    guide: float = 0.1
    guided_until: int = 2500
    echo_from: int = 1200
    echo_share: float = 0.35
    # Cropped clips show the ruler and 3 of the 7 rows of tokens below it: half the tokens, a quarter of the attention.
    crop_until: int = 1500
    crop_share: float = 0.9
    crop_share_late: float = 0.6
    # A run that starts from a written file: its fingerprint, and the steps that it had. Its optimizers begin anew.
    warm_from: str = ""
    warm_step: int = 0


# Start ---------------------------------------------------------------------------------------------------------------------


def initialize(model: CausalWan) -> None:
    """Every block the identity, patches in and out by an orthonormal matrix (the velocity is the input), attention sharp."""
    for block in model.blocks:
        for layer in (block.self_attn.o, block.ffn[2], block.cross_attn.o):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    nn.init.normal_(model.time_projection[1].weight, std=0.01)
    with torch.no_grad():
        model.time_projection[1].bias.zero_().view(6, -1)[[2, 5]] = 1.0  # gates open
    _pass_through(model)
    _sharpen(model)


@torch.no_grad()
def _pass_through(model: CausalWan) -> None:
    """The noise, which is to be returned, keeps a straight path; a constant (root mean square 0.7) steadies the last norm."""
    width, values = CONFIG.width, 4 * CONFIG.channels
    basis, _ = torch.linalg.qr(torch.cat([torch.ones(width, 1), torch.randn(width, values + 1)], 1))
    patch, constant = basis[:, 1 : values + 1], basis[:, values + 1]
    model.patch_embedding.weight.copy_(patch.view(width, CONFIG.channels, 1, 2, 2))
    model.patch_embedding.bias.copy_(constant * 0.7 * width**0.5)
    model.head.head.weight.copy_(patch.T.view(CONFIG.channels, 2, 2, width).permute(1, 2, 0, 3).flatten(0, 2))
    model.head.head.weight.mul_((0.25 + 0.49) ** 0.5)
    model.head.head.bias.zero_()


@torch.no_grad()
def _sharpen(model: CausalWan) -> None:
    """Larger norm weights and a random bias where RoPE turns quickly enough to tell one token from its neighbour."""
    fast = [*range(20), *range(44, 58), *range(86, 100)]
    channels = torch.tensor([head * CONFIG.head_dim + channel for head in range(CONFIG.heads) for channel in fast])
    for block in model.blocks:
        attention = block.self_attn
        for norm in (attention.norm_q, attention.norm_k):
            norm.weight[channels] = 2.5
        for layer in (attention.q, attention.k):
            layer.bias[channels] = 0.5 * torch.randn(len(channels))
    guided = slice(GUIDED_HEAD * CONFIG.head_dim, (GUIDED_HEAD + 1) * CONFIG.head_dim)
    attention = model.blocks[GUIDED_LAYER].self_attn
    for norm in (attention.norm_q, attention.norm_k):
        norm.weight[guided] = 1.5  # this one is to go by what is there, not by how far away it is
    for layer in (attention.q, attention.k):
        layer.bias[guided] = 0


def make_optimizers(model: CausalWan, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the rest, faster where attention's sharpness is learned."""
    named = dict(model.named_parameters())
    matrices = [n for n, p in named.items() if n.startswith("blocks.") and p.ndim == 2]
    sharp = [n for n in named if "self_attn.norm_" in n or n.endswith(("self_attn.q.bias", "self_attn.k.bias"))]
    rest = [n for n in named if n not in {*matrices, *sharp}]
    adam: dict[str, Any] = {"weight_decay": 0.0, "betas": (0.9, 0.98), "foreach": True}
    return [
        Muon([named[n] for n in matrices], recipe.matrix_rate),
        torch.optim.AdamW([named[n] for n in rest], lr=recipe.other_rate, **adam),
        torch.optim.AdamW([named[n] for n in sharp], lr=recipe.sharp_rate, **adam),
    ]


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon (momentum 0.95, Nesterov, rates matched to AdamW's) in float32, matrices of one shape at a time: a CPU
    multiplies bfloat16 slowly."""

    def __init__(self, matrices: Sequence[Tensor], lr: float, weight_decay: float = 0.02):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step."""
        group = self.param_groups[0]
        shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            shapes[parameter.shape].append(parameter)
        for same in shapes.values():
            updates = []
            for parameter in same:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 0.05)
                updates.append(parameter.grad.lerp(momentum, 0.95))
            rate = group["lr"] * 0.2 * max(same[0].shape) ** 0.5
            for parameter, update in zip(same, orthogonalized(torch.stack(updates)), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Newton-Schulz, five times (Jordan 2024), for [N, rows, columns]."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


# One step -------------------------------------------------------------------------------------------------------------------


class BlockPrompts(Prompt):
    """Cross-attention with a prompt for each block of each clip, with gradients. `which` [B, blocks] into `text`."""

    def __init__(self, model: CausalWan, text: Tensor, which: Tensor):
        used, rows = which.unique(return_inverse=True)
        padded = F.pad(text[used], (0, 0, 0, CONFIG.text_tokens - text.shape[1]))
        embedded = model.text_embedding(padded)
        super().__init__([block.cross_attn.keys_values(embedded) for block in model.blocks])
        self.rows = rows

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """See `Prompt`."""
        keys, values = (part[self.rows].transpose(1, 2) for part in self.layers[layer])  # [B, H, blocks, 8, D]
        queries = q.unflatten(2, (self.rows.shape[1], -1))
        scores = (queries @ keys.mT) * CONFIG.head_dim**-0.5
        return (scores.softmax(-1) @ values).flatten(2, 3)


def velocity(
    model: CausalWan,
    batch: Batch,
    clean: Tensor,
    twins: Tensor,
    level: Tensor,
    text: Tensor,
    rows: Sequence[int],
    guide: Guide | None = None,
) -> Tensor:
    """Clean blocks [B, (blocks - 1) * 3, ...], noisy twins [B, targets * 3, ...] at `level` [B, targets] -> the twins' velocity.

    `rows`: of the 8 rows of tokens those that the latents hold.
    """
    targets, past = batch.layout.targets, clean.shape[1]
    times = torch.cat([batch.times[:, :past], frames_of(batch.times, targets)], 1)
    t = torch.cat([torch.zeros(len(times), past), level.repeat_interleave(BLOCK_FRAMES, 1) * 1000], 1)
    known = [[*clip.prompts_known(batch.layout.told_late)[:-1], *(clip.prompts[b] for b in targets)] for clip in batch.clips]
    turn, order = rotation(times, rows), [*range(past // BLOCK_FRAMES), *targets]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        here = guide if layer == GUIDED_LAYER else None
        out: Tensor = BlockAttention.apply(q, k, v, turn, order, past // BLOCK_FRAMES, here)
        return out

    return forward(model, torch.cat([clean, twins], 1), t, BlockPrompts(model, text, torch.tensor(known)), attend, past)


def forward(model: CausalWan, x: Tensor, t: Tensor, prompts: BlockPrompts, attend: Attend, past: int) -> Tensor:
    """`CausalWan.forward` for the frames after the first `past`. Of those before, nothing is asked in the last block but keys and
    values, which saves a tenth of the work."""
    level = model.time_embedding(sines(t))
    tokens, shared = model._tokens(x), model._shared(level)
    for layer, block in enumerate(model.blocks[:-1]):
        tokens = block(tokens, shared, layer, attend, prompts)
    last, layer = model.blocks[-1], len(model.blocks) - 1
    before = past * (tokens.shape[1] // x.shape[1])
    seen_k, seen_v = last.keys_values(tokens[:, :before], shared[:, :past])

    def attend_last(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(layer, q, torch.cat([seen_k, k], 2), torch.cat([seen_v, v], 2))

    prompts.rows = prompts.rows[:, past // BLOCK_FRAMES :]
    tokens = last(tokens[:, before:], shared[:, past:], layer, attend_last, prompts)
    sizes = {"f": x.shape[1] - past, "h": x.shape[3] // 2, "p": 2, "q": 2}
    latents: Tensor = rearrange(model.head(tokens, level[:, past:]), "b (f h w) (p q c) -> b f c (h p) (w q)", **sizes)
    return latents


def rotation(times: Tensor, rows: Sequence[int]) -> Rotation:
    """Of frames at times [B, F] with some of their rows -> [B, 1, tokens, D/2]."""
    whole = CONFIG.rope(LATENT, LATENT).rotation(F.pad(times.flatten()[:, None].float(), (0, 2)))
    parts = (part.view(*times.shape, LATENT // 2, LATENT // 2, -1)[:, :, list(rows)].flatten(1, 3) for part in whole)
    return Rotation(*(part.unsqueeze(1).contiguous() for part in parts))


@dataclass(frozen=True)
class Guide:
    """Where one head is told to look: at the places of the world that a token shows, in all blocks before its own.

    It takes two steps to remember a place by what it looks like (to read the ruler, to look for what shows the same column), and
    neither is of use without the other: left to itself a small model copies from fixed distances in time instead. So for a while
    the loss has a part that grows with minus the logarithm of the share of attention that goes there, and then no more.
    """

    places: Tensor  # [B, tokens]
    weight: float  # four times as much for noisy twins' tokens that the block before does not show
    found: list[Tensor]  # filled by the backward pass: shares of attention that are right, of those tokens

    def slope(self, share: Tensor, own: Tensor, seen: Sequence[slice], size: int) -> tuple[Tensor, Tensor]:
        """Of one block, with attention `share` [B, Q, keys], places `own` [B, Q].

        -> what a score's gradient is, divided by `share`; the right share of a twin's tokens that the block before does not show.
        """
        keys = torch.cat([self.places[:, part] for part in seen], 1)
        right = own[:, :, None] == keys[:, None]
        right[:, :, -size:] = False
        asked = right.any(-1, keepdim=True)
        hard = asked & ~right[:, :, -2 * size : -size].any(-1, keepdim=True) if len(seen) > 1 else torch.zeros_like(asked)
        found = (share * right).sum(-1, keepdim=True).clamp(min=1e-6)
        return (1 - right / found) * (asked + 3.0 * hard), found[hard]


def places_of(batch: Batch, order: Sequence[int], rows: Sequence[int]) -> Tensor:
    """A number for each token's place in the world: column and row. -> [B, tokens]"""
    headings = torch.from_numpy(np.stack([clip.track.headings for clip in batch.clips]))
    columns = (frames_of(headings, order)[..., None, None] + torch.arange(LATENT // 2)) % TURN_COLUMNS
    return (columns * LATENT + torch.tensor(list(rows))[:, None]).flatten(1)


class BlockAttention(torch.autograd.Function):
    """Block `order[i]` sees the clean blocks before it and itself; the first `past` blocks are the clean ones. Queries may be
    those of the last blocks alone.

    Rotation, and softmax block by block, with gradients written out: on a CPU a third of what autograd takes, which fills a
    tensor of the whole length with zeros for every slice.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, turn: Rotation, order: Sequence[int], past: int, guide: Guide | None = None
    ) -> Tensor:
        """q [B, H, Q, D], k, v [B, H, S, D] before RoPE -> [B, H, Q, D]."""
        skipped = k.shape[2] - q.shape[2]
        late = Rotation(*(part[:, :, skipped:] for part in turn))
        ctx.order, ctx.past, ctx.films, ctx.guide = order, past, len(q), guide
        ctx.size, ctx.scale, ctx.skipped = k.shape[2] // len(order), q.shape[3] ** -0.5, skipped
        q, k, v = (part.flatten(0, 1) for part in (rotate(q, late).mul_(ctx.scale), rotate(k, turn), v.contiguous()))
        out, weights = torch.empty_like(q), []
        for own, seen in _stretches(ctx):
            share = torch.cat([q[:, own] @ k[:, part].mT for part in seen], -1).softmax(-1)
            out[:, own] = sum(s @ v[:, part] for s, part in zip(_split(share, seen), seen, strict=True))
            weights.append(share)
        ctx.save_for_backward(q, k, v, out, *turn, *weights)
        return out.unflatten(0, (ctx.films, -1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of q, k and v."""
        q, k, v, out, cos, sin, *weights = ctx.saved_tensors
        grad = grad.contiguous().flatten(0, 1)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        inner = (grad * out).sum(-1, keepdim=True)
        for (own, seen), share in zip(_stretches(ctx), weights, strict=True):
            slope = torch.cat([grad[:, own] @ v[:, part].mT for part in seen], -1).sub_(inner[:, own])
            if ctx.guide is not None:
                _add_guide(ctx, slope, share, own, seen)
            slope.mul_(share)
            dq[:, own] = sum(d @ k[:, part] for d, part in zip(_split(slope, seen), seen, strict=True))
            for d, s, part in zip(_split(slope, seen), _split(share, seen), seen, strict=True):
                dk[:, part] += d.mT @ q[:, own]
                dv[:, part] += s.mT @ grad[:, own]
        dq, dk, dv = (part.unflatten(0, (ctx.films, -1)) for part in (dq.mul_(ctx.scale), dk, dv))
        late = Rotation(cos[:, :, ctx.skipped :], -sin[:, :, ctx.skipped :])
        return rotate(dq, late), rotate(dk, Rotation(cos, -sin)), dv, None, None, None, None


def _add_guide(ctx: Any, slope: Tensor, share: Tensor, own: slice, seen: Sequence[slice]) -> None:
    guide, heads = ctx.guide, slope.view(ctx.films, -1, *slope.shape[1:])
    shares = share.view_as(heads)[:, GUIDED_HEAD]
    extra, found = guide.slope(shares, guide.places[:, own], seen, ctx.size)  # its own block is the last that a block sees
    heads[:, GUIDED_HEAD] += extra * (guide.weight / guide.places.numel())
    guide.found.append(found)


def _stretches(ctx: Any) -> list[tuple[slice, list[slice]]]:
    """For each block with queries: its place among the queries, the stretches of keys that it sees."""
    size, first = ctx.size, ctx.skipped // ctx.size
    out = []
    for i, block in enumerate(ctx.order[first:], first):
        own = slice(i * size, (i + 1) * size)
        seen = [slice(0, own.stop)] if i < ctx.past else [slice(0, block * size), own]
        out.append((slice(own.start - ctx.skipped, own.stop - ctx.skipped), seen))
    return out


def _split(x: Tensor, seen: Sequence[slice]) -> list[Tensor]:
    return list(x.split([part.stop - part.start for part in seen], -1))


def frames_of(x: Tensor, blocks: Sequence[int]) -> Tensor:
    """Frames of some blocks of x [B, F, ...]."""
    return x.unflatten(1, (-1, BLOCK_FRAMES))[:, list(blocks)].flatten(1, 2)


@dataclass
class Echo:
    """A clip to be shown again, with the model's own predictions in the place of some blocks."""

    batch: Batch
    context: Tensor


class Trainer:
    """Model, optimizers and what passes from step to step."""

    def __init__(self, recipe: Recipe, codec: PictureCodec):
        self.recipe, self.codec, self.step = recipe, codec, 0
        torch.manual_seed(recipe.seed)
        self.model = CausalWan(CONFIG)
        initialize(self.model)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.optimizers = make_optimizers(self.model, recipe)
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.text, self.echo = text_rows(), Echo(None, None)  # type: ignore[arg-type]  # set by the first step
        self.errors: dict[str, list[float]] = defaultdict(list)

    def run_step(self, share_of_rate: float = 1.0) -> None:
        """One step. `share_of_rate`: for the branch that decays."""
        batch, context, rows = self._material()
        noise = torch.Generator().manual_seed(hash_of(self.recipe.seed, self.step))
        rng = np.random.default_rng([TRAINING, self.recipe.seed, self.step, 1])
        target = frames_of(batch.latents, batch.layout.targets)
        level = twin_levels(rng, len(batch.clips), batch.layout.targets)
        sigma = level.repeat_interleave(BLOCK_FRAMES, 1)[..., None, None, None]
        random = torch.randn(target.shape, generator=noise)
        twins = (1 - sigma) * target + sigma * random
        clean = spoiled(context[:, :-BLOCK_FRAMES], rng, noise)
        pixels = [2 * row + half for row in rows for half in range(2)]
        twins, clean, random, target = (part[..., pixels, :] for part in (twins, clean, random, target))
        weights = batch.weights[..., pixels, :]
        guide = self._guide(batch, rows)
        v = velocity(self.model, batch, clean, twins, level, self.text, rows, guide)
        error = (v - (random - target)).square()
        ((weights * error).mean() / weights.mean()).backward()
        self._update(share_of_rate)
        self._note(batch, level, error.detach())
        if guide is not None:
            found = torch.cat(guide.found)
            if len(found):
                self.errors["found"].append(float(found.mean()))
        self.echo = self._echo(batch, context, (twins - sigma * v).detach(), pixels, rng)
        self.step += 1

    def _material(self) -> tuple[Batch, Tensor, list[int]]:
        """The clips of this step, their context (fresh, or that of the step before with its predictions), and rows of tokens."""
        recipe, group = self.recipe, self.step // GROUP
        rng = np.random.default_rng([TRAINING, recipe.seed, group, 2])
        chained = self.step >= recipe.echo_from and rng.random() < recipe.echo_share
        length = int(rng.choice([2, 4])) if chained else 1
        rng = np.random.default_rng([TRAINING, recipe.seed, self.step // length, length, 5])
        rows = [*range(LATENT // 2)]
        if rng.random() < (recipe.crop_share if self.step < recipe.crop_until else recipe.crop_share_late):
            first = int(rng.integers(1, 6))
            rows = [0, *range(first, first + 3)]
        if self.step % length:
            return self.echo.batch, self.echo.context, rows
        batch = draw(recipe.seed, self.step, recipe.films, recipe.longest_blocks, self._encode, chained)
        return batch, batch.latents, rows

    def _guide(self, batch: Batch, rows: Sequence[int]) -> Guide | None:
        recipe = self.recipe
        weight = recipe.guide * min(1.0, max(0.0, 2 - self.step / recipe.guided_until))
        order = [*range(batch.layout.blocks - 1), *batch.layout.targets]
        return Guide(places_of(batch, order, rows), weight, []) if weight > 0 else None

    @torch.no_grad()
    def _encode(self, pictures: Tensor) -> Tensor:
        return self.codec.encode(pictures)

    def _echo(self, batch: Batch, context: Tensor, predicted: Tensor, pixels: list[int], rng: np.random.Generator) -> Echo:
        context = context.clone().unflatten(1, (-1, BLOCK_FRAMES))
        predictions = predicted.unflatten(1, (-1, BLOCK_FRAMES))
        for twin in rng.permutation(len(batch.layout.targets)):
            block = batch.layout.targets[twin]
            if block >= batch.layout.true_blocks and rng.random() < 0.75:
                context[:, block, :, :, pixels] = predictions[:, twin]
        return Echo(batch, context.flatten(1, 2))

    def _update(self, share_of_rate: float) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        step = self.step + 1
        ramp = (
            min(1.0, (step - self.recipe.warm_step) / WARM_UP)
            * min(1.0, (self.recipe.full_rate_steps / step) ** 0.5)
            * share_of_rate
        )
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * ramp
            optimizer.step()
            optimizer.zero_grad()
        decay = min(0.998, 1 - 8 / (step - self.recipe.warm_step + 8))
        torch._foreach_lerp_(list(self.average.values()), list(self.model.state_dict().values()), 1 - decay)

    def _note(self, batch: Batch, level: Tensor, error: Tensor) -> None:
        """Mean square error of the clean picture from pure noise, below the ruler, by how a column can be known."""
        kind = batch.clips[0].kind
        by_column = error[..., 2:, :].mean((2, 3)).unflatten(-1, (-1, 2)).mean(-1)  # [B, targets * 3, 8]
        by_column = by_column.unflatten(1, (-1, BLOCK_FRAMES))
        pure = (level == 1)[:, :, None, None]
        for name, known in (("near", 0), (kind, 1), ("new", 2)):
            chosen = pure & (batch.known == known)
            if chosen.any():
                self.errors[name].append(float(by_column[chosen].mean()))

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds."""
        assert self.step % GROUP == 0
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        return {
            "step": self.step,
            "recipe": vars(self.recipe),
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": optimizers,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        if state["recipe"] != vars(self.recipe):
            raise SystemExit(f"the checkpoint was made by {state['recipe']}, this run is {vars(self.recipe)}; use another folder")
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average = {name: value.clone() for name, value in state["average"].items()}
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def hash_of(seed: int, step: int) -> int:
    """A seed for torch's generators, one for each step."""
    return int(np.random.SeedSequence([TRAINING, seed, step, 3]).generate_state(1, np.uint64)[0] >> 1)


def twin_levels(rng: np.random.Generator, films: int, targets: Sequence[int]) -> Tensor:
    """Noise level of each twin; a second twin of the same block takes one of the two lower levels, and the first a higher one."""
    columns = []
    for twin, block in enumerate(targets):
        if targets.count(block) == 1:
            chances = [0.45, 0.15, 0.15, 0.25]
        else:
            chances = [0.75, 0.25, 0, 0] if targets.index(block) == twin else [0, 0, 0.4, 0.6]
        columns.append(rng.choice(SIGMAS, films, p=chances))
    return torch.tensor(np.stack(columns, 1), dtype=torch.float32)


def spoiled(context: Tensor, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
    """A little untold noise: the model must live with its own imperfect pictures, and with a quantized memory of them."""
    if rng.random() > 0.6:
        return context
    share = torch.from_numpy(rng.random((len(context), context.shape[1] // BLOCK_FRAMES)) * 0.08).float()
    share = share.repeat_interleave(BLOCK_FRAMES, 1)[..., None, None, None]
    return (1 - share) * context + share * torch.randn(context.shape, generator=noise)


# The commands ---------------------------------------------------------------------------------------------------------


def train_codec(run: Path, steps: int = 1500) -> None:
    """Principal components, then the decoder's correction."""
    torch.manual_seed(0)
    codec = PictureCodec()
    rng = np.random.default_rng([TRAINING, 0, 4])
    fit_linear(codec, some_pictures(rng, 100, 8, TRAINING))
    save(codec.state_dict(), run / "codec.pt")
    unseen = some_pictures(np.random.default_rng([JUDGED, 0, 4]), 16, 4, JUDGED)
    optimizer = torch.optim.AdamW(codec.correction.parameters(), 2e-3, weight_decay=0.0)
    for step in range(steps + 1):
        if step % 250 == 0:
            with torch.no_grad():
                error = float((codec.decode(codec.encode(unseen)) - unseen).square().mean())
            print(f"codec step {step}: {10 * np.log10(4 / error):.2f} dB on unseen pictures", flush=True)
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, step / 50 + 0.02, 2 * (1 - step / (steps + 1)))
        pictures = some_pictures(rng, 3, 4, TRAINING)
        with torch.no_grad():
            latents = codec.encode(pictures)
        latents = latents + torch.randn_like(latents) * 0.03  # a model's latents are not exact either
        (codec.decoder(latents) + codec.correction(latents) - pictures).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        codec.zero_grad()
    save(codec.state_dict(), run / "codec_decoder.pt")


def some_pictures(rng: np.random.Generator, scenes: int, frames: int, domain: int) -> Tensor:
    """Frames of scenes at random headings."""
    pictures = []
    for _ in range(scenes):
        track = Track(rng.integers(0, 216, frames), rng.integers(0, TURN_COLUMNS, frames), rng.random(frames))
        pictures.append(Scene(int(rng.integers(2**31)), domain).frames(track))
    return torch.cat(pictures)


def save(state: Any, path: Path) -> None:
    """Whole or not at all."""
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def new_trainer(run: Path, recipe: Recipe) -> Trainer:
    """With the encoder of this run."""
    codec = PictureCodec()
    codec.load_state_dict(torch.load(run / "codec.pt"))
    return Trainer(recipe, codec.requires_grad_(False))


def warm(run: Path, weights: Path, seed: int) -> None:
    """A run's first checkpoint and codec out of a written file, as if its steps had been this run's."""
    metadata, _ = read_shipped(weights, "demo film", MODEL, torch.float32)
    written, step = read_demo_film(weights), json.loads(metadata["training"])["step"]
    recipe = Recipe(seed=seed, warm_from=hashlib.sha256(weights.read_bytes()).hexdigest(), warm_step=step // GROUP * GROUP)
    save(written.codec, run / "codec.pt")
    save(written.codec, run / "codec_decoder.pt")
    trainer = new_trainer(run, recipe)
    trainer.model.load_state_dict(written.network)
    trainer.average = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    trainer.step = recipe.warm_step
    save(trainer.state(), run / "latest.pt")


def recipe_of(run: Path, seed: int) -> Recipe:
    """What the run began with; a run that has no checkpoint yet begins from nothing."""
    if not (run / "latest.pt").exists():
        return Recipe(seed=seed)
    saved = torch.load(run / "latest.pt")["recipe"]
    return Recipe(seed=seed, warm_from=saved.get("warm_from", ""), warm_step=saved.get("warm_step", 0))


def train(run: Path, recipe: Recipe, steps: int, save_seconds: float, keep_every: int) -> None:
    """Until step `steps`, from the newest checkpoint."""
    trainer = new_trainer(run, recipe)
    if (run / "latest.pt").exists():
        trainer.load(torch.load(run / "latest.pt"))
    print(json.dumps(vars(recipe)), "from step", trainer.step, flush=True)
    report, saved = Report(trainer), time.time()
    while trainer.step < steps:
        trainer.run_step()
        report.every(20)
        if trainer.step % GROUP == 0 and (time.time() - saved > save_seconds or trainer.step == steps):
            save(trainer.state(), run / "latest.pt")
            saved = time.time()
        if trainer.step % keep_every == 0:
            save(trainer.state(), run / f"step_{trainer.step:06d}.pt")


def decay(run: Path, recipe: Recipe, start: int, steps: int) -> None:
    """Go on from a kept checkpoint with a rate that falls to nothing; the run itself goes on from where it was."""
    trainer = new_trainer(run, recipe)
    trainer.load(torch.load(run / f"step_{start:06d}.pt"))
    report = Report(trainer)
    path = run / f"decayed_{start:06d}_{steps}.pt"
    if path.exists():
        trainer.load(torch.load(path))
    while trainer.step < start + steps:
        trainer.run_step((start + steps - trainer.step) / steps)
        report.every(20)
        if trainer.step % 40 == 0 or trainer.step == start + steps:
            save(trainer.state(), path)


def export(run: Path, checkpoint: str, out: Path) -> None:
    """The running average of a checkpoint and the codec, in 16 bits."""
    state = torch.load(run / f"{checkpoint}.pt")
    codec = torch.load(run / ("codec_decoder.pt" if (run / "codec_decoder.pt").exists() else "codec.pt"))
    settings = {**state["recipe"], "step": state["step"], "checkpoint": checkpoint, "torch": torch.__version__}
    write_demo_film(out, state["average"], codec, settings)


def average(earlier: Path, later: Path, out: Path) -> None:
    """The mean of two written files, one trained on from the other (weight averaging, Izmailov et al. 2018): it keeps what the
    later one learned, and its copies of copies fade more slowly than those of either."""
    files = [read_demo_film(path) for path in (earlier, later)]
    if any(not torch.equal(weight, files[1].codec[name]) for name, weight in files[0].codec.items()):
        raise SystemExit(f"{earlier} and {later} have different encoders; average two files of one run")
    network = {name: (weight + files[1].network[name]) / 2 for name, weight in files[0].network.items()}
    metadata, _ = read_shipped(later, "demo film", MODEL, torch.float32)
    mixed = {"mean_of": [hashlib.sha256(path.read_bytes()).hexdigest() for path in (earlier, later)]}
    write_demo_film(out, network, files[1].codec, {**json.loads(metadata["training"]), **mixed})


class Report:
    """Prints errors now and then."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.started, self.sums = trainer, time.time(), 0

    def every(self, steps: int) -> None:
        """Print if it is time."""
        trainer, now = self.trainer, time.time()
        if trainer.step % steps:
            return
        means = {name: round(float(np.mean(values)), 3) for name, values in sorted(trainer.errors.items())}
        print(trainer.step, f"{(now - self.started) / steps:.2f} s/step", json.dumps(means), flush=True)
        trainer.errors.clear()
        self.started = now


def main() -> None:
    """Read the options and run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("codec", "warm", "train", "decay", "export", "average"))
    parser.add_argument("run", type=Path, help="folder of checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40000)
    parser.add_argument("--from", type=int, default=0, dest="start", help="of a decay: step of a kept checkpoint")
    parser.add_argument("--checkpoint", default="latest", help="of an export: name of a file in RUN")
    weights = "of a warm start: the file to go on from; of an average: the two files"
    parser.add_argument("--weights", type=Path, nargs="+", default=[WEIGHTS], help=weights)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--save-seconds", type=float, default=240)
    parser.add_argument("--keep-every", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if len(options.weights) != (2 if options.command == "average" else 1):
        parser.error(f"--weights names {len(options.weights)} files; an average takes two, everything else one")
    if options.command == "average":
        average(*options.weights, options.out)
        return
    options.run.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of(options.run, options.seed)
    if options.command == "codec":
        train_codec(options.run)
    elif options.command == "warm":
        warm(options.run, options.weights[0], options.seed)
    elif options.command == "train":
        train(options.run, recipe, options.steps, options.save_seconds, options.keep_every)
    elif options.command == "export":
        export(options.run, options.checkpoint, options.out)
    else:
        decay(options.run, recipe, options.start, options.steps)


if __name__ == "__main__":
    main()
