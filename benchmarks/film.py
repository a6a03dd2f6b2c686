"""What FAST-AR's modules do on the demo film, a causal Wan whose positions have a time axis.

    python benchmarks/film.py agree [--save]    keys before RoPE of a film: how often layers agree that a place looks as it did
    python benchmarks/film.py modules [--save]  a camera that stands still: merging, a share of the tiles, prompt rows by mass and
                                                by buckets, with 16 bits and on `balanced`
    python benchmarks/film.py order [--save]    attention of the last block from 15 % of the tiles: alike, or blocks of the grid

Each takes `--scenes 5001,5003` and `--frames 48`. PSNR in dB against the exact film, of the mean squared error of all frames
behind the given ones.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import bootstrap_package  # noqa: F401
from comfyui_qvg.kernels.attention.reference import attention
from comfyui_qvg.qvg import PRESETS, KVCache, QVGConfig
from comfyui_qvg.qvg.attention import prompt as prompts
from comfyui_qvg.qvg.attention.tiles import TILE_TOKENS, make_order, tile_means
from comfyui_qvg.qvg.models.demo_film.directions import BLOCK_FRAMES, Direction, View
from comfyui_qvg.qvg.models.demo_film.weights import load_demo_film
from comfyui_qvg.qvg.models.wan.network import Prompt
from comfyui_qvg.qvg.positions.rope import rotate
from comfyui_qvg.qvg.sampling.film import LATENT_PIXELS, FilmPlan, FilmPrompts, given_blocks, roll_out
from rows import conditions, report

GIVEN_BLOCKS = 4
THRESHOLDS = (0.8, 0.9, 0.95, 0.98, 0.99)
SIDE = LATENT_PIXELS // 2
TOKENS = SIDE * SIDE
SHARE = 0.15
# Frames whose seconds (of the clock, for one frame, the middle one of three blocks) and bytes a row has.
LOOKED_AT = (15, 48, 60, 90, 300, 600)


class Films:
    """Films of one scene whose camera does one thing all the time."""

    def __init__(self, scene: int, camera: str, frames: int):
        self.model, self._codec = load_demo_film()
        self._prompts = FilmPrompts(self.model)
        self._plan = FilmPlan(
            scene, View(5 * scene % 36, int(camera != "stay"), 1.0), (Direction(camera, "day"),) * (frames // BLOCK_FRAMES)
        )
        self._seed = scene
        with torch.inference_mode():
            self._given = given_blocks(self._plan, self._codec, GIVEN_BLOCKS)

    def made(self, config: QVGConfig, look: Callable[[KVCache], None] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Pictures [F, 3, 128, 128] behind the given ones, and what the cache came to. `look` sees it at the end."""
        caches: list[KVCache] = []
        latents, seconds, sizes, began = [], [], [], time.process_time()
        directions = self._plan.directions
        for block in roll_out(self.model, self._prompts, directions, config, self._given, self._seed, caches=caches):
            latents.append(block.latent[0])
            seconds.append(block.seconds)
            sizes.append(block.cache.total)
            if len(latents) == len(directions):
                (cache,) = caches
                facts: dict[str, Any] = {
                    "bytes_of_exact": round(block.cache.total / cache.spec.exact_bytes(self._plan.frames), 4)
                }
                if cache.merged_rows is not None:
                    facts["rows_per_token"] = round(cache.merged_rows / (cache.layout.merged * TOKENS), 3)
                read = cache.explain()[-1]
                if look is not None:
                    look(cache)
        facts["cpu_s"] = round(time.process_time() - began)
        for frame in (frame for frame in LOOKED_AT if frame <= self._plan.frames):
            last = frame // BLOCK_FRAMES
            facts[f"seconds_{frame}"] = round(float(torch.tensor(seconds[max(0, last - 3) : last]).median()) / BLOCK_FRAMES, 4)
            facts[f"bytes_{frame}"] = sizes[last - 1]
        facts["read"] = read
        with torch.inference_mode():
            return self._codec.decode(torch.cat(latents[GIVEN_BLOCKS:])), facts


def psnr_db(one: Tensor, other: Tensor) -> float:
    """Of pictures in -1..1; 100 at most."""
    error = float(((one.clamp(-1, 1) - other.clamp(-1, 1)) / 2).square().mean())
    return round(min(100.0, -10 * float(torch.tensor(max(error, 1e-10)).log10())), 2)


def exact_history(cache: KVCache, which: int) -> Tensor:
    """Keys (0) or values (1) of all layers: [L, H, S, D]."""
    return torch.stack(
        [torch.cat([pair[which].values for pair in layer.state.history], 2)[0] for layer in cache.layers]  # type: ignore[union-attr]
    ).float()


def agree(scene: int, frames: int) -> list[dict[str, Any]]:
    """See the module docstring."""
    rows = []
    for camera in ("stay", "turn right"):
        keys: list[Tensor] = []
        Films(scene, camera, frames).made(PRESETS["exact"], lambda cache, keys=keys: keys.append(exact_history(cache, 0)))
        by_frame = keys[0].unflatten(2, (-1, TOKENS))
        steps = torch.nn.functional.cosine_similarity(by_frame[:, :, 1:], by_frame[:, :, :-1], dim=-1).amin(1)
        for threshold in THRESHOLDS:
            yes = steps >= threshold
            row = {"camera": camera, "threshold": threshold, "alike_by_layer": _rounded(yes.float().mean((1, 2)).tolist())}
            row |= {"alike_in_all": round(float(yes.all(0).float().mean()), 3)}
            row |= {"alike_in_any": round(float(yes.any(0).float().mean()), 3)}
            row |= {"rows_together": rows_of(by_frame.flatten(0, 1)[None], threshold)[0]}
            rows.append(row | {"rows_by_layer": rows_of(by_frame, threshold)})
    return rows


def rows_of(keys: Tensor, threshold: float) -> list[float]:
    """Rows a token where each group of heads decides for itself, by its worst: keys [groups, H, F, T, D]."""
    row, count = keys[:, :, 0].clone(), torch.ones(len(keys), TOKENS)
    begun = torch.full((len(keys),), float(TOKENS))
    for frame in range(1, keys.shape[2]):
        x = keys[:, :, frame]
        hit = torch.nn.functional.cosine_similarity(row, x, dim=-1).amin(1) >= threshold
        count = torch.where(hit, count + 1, 1.0)
        row = torch.where(hit[:, None, :, None], row + (x - row) / count[:, None, :, None], x)
        begun += (~hit).sum(1)
    return _rounded((begun / (keys.shape[2] * TOKENS)).tolist())


def modules(scene: int, frames: int) -> list[dict[str, Any]]:
    """See the module docstring."""
    films, exact = Films(scene, "stay", frames), PRESETS["exact"]
    pictures, facts = films.made(exact)
    rows: list[dict[str, Any]] = [{"way": "exact"} | facts]
    for threshold, key in ((0.99, "mean"), (0.99, "last"), (0.9, "mean"), (0.9, "last")):
        config = exact.with_changes(merge=threshold, merge_key=key, span_frames="auto")
        found, facts = films.made(config)
        rows.append({"way": f"merge {threshold:g}, {key}", "psnr_db": psnr_db(pictures, found)} | facts)
    share: dict[str, Any] = {"sparse": SHARE, "span_frames": "auto"}
    for name, config in (
        (f"sparse {SHARE:g}", exact.with_changes(**share)),
        ("balanced", PRESETS["balanced"]),
        (f"balanced, sparse {SHARE:g}", PRESETS["balanced"].with_changes(**share)),
        ("balanced, merge 0.99, mean", PRESETS["balanced"].with_changes(merge=0.99, span_frames="auto")),
    ):
        found, facts = films.made(config)
        rows.append({"way": name, "psnr_db": psnr_db(pictures, found)} | facts)
    for rule in prompts.RULES[1:]:
        read: list[tuple[int, int]] = []
        with _prompt_rule(rule, read):
            found, facts = films.made(exact)
        part = round(sum(some for some, _ in read) / sum(of for _, of in read), 3)
        rows.append({"way": f"prompt by {rule}", "psnr_db": psnr_db(pictures, found), "prompt_rows_read": part} | facts)
    return rows


class _prompt_rule:  # noqa: N801 (reads as a statement)
    """Within it, prompts are read by a rule; `read` gets how many rows of how many."""

    def __init__(self, rule: str, read: list[tuple[int, int]]):
        self._rule, self._read, self._plain = rule, read, Prompt.attend

    def __enter__(self) -> None:
        rule, read = self._rule, self._read

        def attend(prompt: Prompt, layer: int, q: Tensor) -> Tensor:
            rows = prompt.layers[layer]
            if not isinstance(rows, prompts.MergedPrompt):
                merged = prompts.merge_equal_rows(*rows)
                assert merged is not None
                rows = merged
            seen, some = prompts.attend_part(q, rows, rule)
            read.append((some, rows.keys.shape[2]))
            return seen

        Prompt.attend = attend  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        Prompt.attend = self._plain  # type: ignore[method-assign]


def order(scene: int, frames: int) -> list[dict[str, Any]]:
    """See the module docstring. Relative L2 error of the output, all layers and heads, by the queries of the last pass."""
    held: list[Tensor] = []
    queries: list[Tensor] = []
    plain = KVCache.attend

    def attend(cache: KVCache, layer: int, q: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
        if layer == 0:
            queries.clear()
        queries.append(q[0].float())
        return plain(cache, layer, q, k, v, **more)

    KVCache.attend = attend  # type: ignore[method-assign]
    try:
        films = Films(scene, "turn right", frames)
        films.made(PRESETS["exact"], lambda cache: held.extend([exact_history(cache, 0), exact_history(cache, 1)]))
        rope = films.model.config.rope(LATENT_PIXELS, LATENT_PIXELS)
    finally:
        KVCache.attend = plain  # type: ignore[method-assign]
    origins = torch.tensor([(float(frame), 0.0, 0.0) for frame in range(frames)])
    keys, values = rotate(held[0], rope.rotation(origins)), held[1]
    q = rotate(torch.stack(queries), rope.rotation(origins[-BLOCK_FRAMES:]))
    whole = attention(q, keys, values)[0]
    span = 16 * TOKENS
    rows = []
    for name, by in (("likeness", make_order), *((str(size), _blocks(size)) for size in ((1, 4, 4), (4, 2, 2), (16, 1, 1)))):
        seen = _from_tiles(q, keys, values, by, span)
        rows.append({"way": f"tiles by {name}", "relative_error": round(float((seen - whole).norm() / whole.norm()), 4)})
    return rows


def _blocks(size: tuple[int, int, int]) -> Callable[[Tensor], Tensor]:
    """An order of a span of 16 frames by blocks of the grid: frames x rows x columns, 16 tokens."""
    frames, lines, columns = size
    grid = torch.arange(16 * TOKENS).view(16 // frames, frames, SIDE // lines, lines, SIDE // columns, columns)
    tokens = grid.permute(0, 2, 4, 1, 3, 5).flatten()
    return lambda keys: tokens.expand(*keys.shape[:2], -1)


def _from_tiles(q: Tensor, keys: Tensor, values: Tensor, by: Callable[[Tensor], Tensor], span: int) -> Tensor:
    """Attention from a share of the tiles of whole spans and all that is behind them; tiles that are left out by their means."""
    parts = [slice(start, start + span) for start in range(0, keys.shape[2] - span + 1, span)]
    orders = torch.cat([by(keys[:, :, part]).long() + part.start for part in parts], 2)
    mean_keys, mean_values = (
        torch.cat([tile_means(x[:, :, part], by(keys[:, :, part])).dequantize() for part in parts], 2) for x in (keys, values)
    )
    near = slice(parts[-1].stop, None)
    tiles = mean_keys.shape[2]
    logits = q @ mean_keys.mT * q.shape[-1] ** -0.5 + torch.log(torch.tensor(float(TILE_TOKENS)))
    mass = torch.logaddexp(attention(q, keys[:, :, near], values[:, :, near])[1], logits.logsumexp(-1))
    # One choice for every 64 queries, as the cache makes it.
    shares = (logits - mass[..., None]).unflatten(2, (-1, 64)).amax(3)
    best = torch.zeros_like(shares, dtype=torch.bool).scatter_(3, shares.topk(math.ceil(SHARE * tiles - 1e-9)).indices, True)
    best = best.repeat_interleave(64, 2)
    read = torch.zeros(*q.shape[:3], keys.shape[2], dtype=torch.bool)
    read.scatter_(3, orders[:, :, None].expand(-1, -1, q.shape[2], -1), best.repeat_interleave(TILE_TOKENS, 3))
    read[..., near] = True
    scores = torch.cat([q @ keys.mT * q.shape[-1] ** -0.5, logits], 3)
    seen = torch.cat([read, ~best], 3)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ torch.cat([values, mean_values], 2)


def _rounded(numbers: Sequence[float]) -> list[float]:
    return [round(number, 3) for number in numbers]


PARTS = {"agree": agree, "modules": modules, "order": order}


def main() -> int:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=PARTS)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--scenes", default="5001,5003")
    parser.add_argument("--frames", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(1)
    where = conditions(torch.device("cpu"))
    for scene in map(int, options.scenes.split(",")):
        for row in PARTS[options.what](scene, options.frames):
            report("film_modules", {"part": options.what, "scene": scene, "frames": options.frames} | row | where, options.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
