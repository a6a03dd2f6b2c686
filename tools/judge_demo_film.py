"""Judge the demo film model on unseen scenes: how well it comes back to places, how long that lasts, whether prompts are obeyed.

    python tools/judge_demo_film.py                                  the shipped file, 8 films x 2 seeds: half an hour of one core
    python tools/judge_demo_film.py --weights out.safetensors --films 2 --seeds 1 --only turn,mirror

Twelve real blocks are given (36 frames, one whole turn), so the truth is known. PSNR is of decoded pictures against the decoded
latents of the real film, the mean over the frames named. `window`: the exact memory of the newest 12 frames alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bootstrap_package import comfyui_qvg  # noqa: F401  (first: it names the repository `comfyui_qvg`)
from comfyui_qvg.qvg.config import QVGConfig
from comfyui_qvg.qvg.metrics import psnr_db
from comfyui_qvg.qvg.models.demo_film.directions import BLOCK_FRAMES, LOOKS, Direction, View
from comfyui_qvg.qvg.models.demo_film.pictures import PictureCodec
from comfyui_qvg.qvg.models.demo_film.weights import WEIGHTS, load_demo_film
from comfyui_qvg.qvg.models.wan.network import CausalWan
from comfyui_qvg.qvg.sampling.film import FilmPlan, FilmPrompts, given_blocks, roll_out
from torch import Tensor

GIVEN = 12
EXACT = QVGConfig(codec="none")
MEMORIES = {
    "exact": EXACT,
    "window": EXACT.with_changes(span_frames=1, sink_frames=0, recent_frames=1, window_frames=12),
    "balanced": QVGConfig.preset("balanced"),
    "qvg": QVGConfig.preset("qvg"),
}
Films = Callable[[int], FilmPlan]


@dataclass(frozen=True)
class Judge:
    """One model and what it is judged with."""

    model: CausalWan
    codec: PictureCodec
    prompts: FilmPrompts

    def decode(self, latents: Tensor) -> Tensor:
        """-> [F, H, W, 3] in 0..1."""
        return (self.codec.decode(latents).movedim(1, -1) + 1) / 2

    def truth(self, plan: FilmPlan) -> Tensor:
        """Decoded latents of the real film."""
        return self.decode(self.codec.encode(plan.pictures()))

    def film(self, plan: FilmPlan, memory: str, seed: int, recache: bool = False) -> Tensor:
        """What the model makes of it."""
        given = given_blocks(plan, self.codec, GIVEN)
        blocks = roll_out(self.model, self.prompts, plan.directions, MEMORIES[memory], given, seed, recache)
        return self.decode(torch.cat([block.latent[0] for block in blocks]))


def _plan(scene: int, heading: int, parts: Sequence[tuple[str, str, int]], step: int = 1) -> FilmPlan:
    """`parts`: camera, light, blocks. The light is what the first prompt says from the start."""
    directions = tuple(Direction(camera, light) for camera, light, blocks in parts for _ in range(blocks))
    return FilmPlan(scene, View(heading, step, float(directions[0].light == "day")), directions)


def _light(film: int) -> str:
    return ("day", "night")[film // 2 % 2]


def turns(film: int, blocks: int = 36) -> FilmPlan:
    """Round and round, half of the films to the right, half by day."""
    return _plan(film, 5 * film, [(("turn right", "turn left")[film % 2], _light(film), blocks)])


def mirror(film: int) -> FilmPlan:
    """A whole turn, and back."""
    there, back = ("turn right", "turn left")[:: 1 - 2 * (film % 2)]
    return _plan(film, 5 * film, [(there, _light(film), GIVEN), (back, _light(film), 12)])


def swing(film: int) -> FilmPlan:
    """There and back between two marks."""
    return _plan(film, 4 + film, [("swing", _light(film), 36)], step=(1, -1)[film % 2])


def cut(film: int) -> FilmPlan:
    """A whole turn, then a cut to a place by its name, and a pan from there."""
    return _plan(film, 5 * film, [("turn right", "day", GIVEN), (list(LOOKS)[film % 4], "day", 2), ("turn left", "day", 4)])


def switch(film: int) -> tuple[FilmPlan, FilmPlan]:
    """A film whose prompt changes after the given blocks, and the same without the change."""
    old = ("turn right", _light(film))
    new = (("turn left", old[1]), ("turn right", "night" if old[1] == "day" else "day"), ("stay", old[1]), ("look south", old[1]))
    start, blocks = 5 * film, 9
    return _plan(film, start, [(*old, GIVEN), (*new[film % 4], blocks)]), _plan(film, start, [(*old, GIVEN + blocks)])


def by_frame(judge: Judge, films: Films, memory: str, count: int, seeds: int) -> np.ndarray:
    """PSNR to the truth. -> [films, seeds, frames]"""
    rows = []
    for film in range(count):
        plan = films(film)
        truth = judge.truth(plan)
        rows.append([psnr_db(judge.film(plan, memory, seed), truth).numpy() for seed in range(seeds)])
    return np.array(rows)


def mean(rows: np.ndarray, first: int, stop: int) -> str:
    """Mean over films and seeds, and the standard error over films."""
    films = rows[..., first:stop].mean((1, 2))
    return f"{films.mean():.1f} ± {films.std(ddof=min(1, len(films) - 1)) / len(films) ** 0.5:.1f}"


def judge_returns(judge: Judge, name: str, films: Films, memories: Sequence[str], count: int, seeds: int) -> None:
    """One table: PSNR by 12 frames after the given ones, for each memory."""
    for memory in memories:
        started = time.time()
        rows = by_frame(judge, films, memory, count, seeds)
        parts = [mean(rows, first, first + 12) for first in range(GIVEN * BLOCK_FRAMES, rows.shape[-1], 12)]
        print(f"{name:7} {memory:9} by 12 frames from 36: {', '.join(parts)}   ({time.time() - started:.0f} s)", flush=True)


def judge_switch(judge: Judge, count: int, seeds: int) -> None:
    """How much nearer to the new prompt's film than to the old one's, 24 frames after the change."""
    for recache in (False, True):
        for kind in range(min(4, count)):
            near, far = [], []
            for film in range(kind, count, 4):
                plan, unchanged = switch(film)
                new, old = judge.truth(plan)[60:63], judge.truth(unchanged)[60:63]
                for seed in range(seeds):
                    made = judge.film(plan, "exact", seed, recache)[60:63]
                    near.append(float(psnr_db(made, new).mean()))
                    far.append(float(psnr_db(made, old).mean()))
            what = switch(kind)[0].directions[-1].text
            gain = np.mean(near) - np.mean(far)
            print(
                f"switch  to {what:18} recache {recache!s:5}: new {np.mean(near):.1f}, old {np.mean(far):.1f}, {gain:+.1f} dB",
                flush=True,
            )


def main() -> None:
    """Read the options and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--films", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="turn,mirror,swing,cut,switch,long")
    parser.add_argument("--memories", default="exact,window")
    parser.add_argument("--picture", type=Path, help="a strip of each film's frames: truth above, exact memory below")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, codec = load_demo_film(options.weights)
    judge = Judge(model, codec, FilmPrompts(model))
    only, memories = options.only.split(","), options.memories.split(",")
    kinds: dict[str, Films] = {"turn": turns, "mirror": mirror, "swing": swing, "cut": cut, "long": lambda film: turns(film, 72)}
    print(
        json.dumps({"weights": options.weights.name, "films": options.films, "seeds": options.seeds, "torch": torch.__version__})
    )
    with torch.inference_mode():
        for name in only:
            if name == "switch":
                judge_switch(judge, options.films, options.seeds)
            else:
                judge_returns(judge, name, kinds[name], memories if name != "long" else ["exact"], options.films, options.seeds)
        if options.picture:
            _strips(judge, [kinds[name] for name in only if name in kinds], options.picture)


def _strips(judge: Judge, films: Sequence[Films], path: Path) -> None:
    from PIL import Image

    rows = []
    for plan in (kind(film) for kind in films for film in range(2)):
        for frames in (judge.truth(plan), judge.film(plan, "exact", 0)):
            shown = frames[30 :: max(1, (plan.frames - 30) // 16)][:16]
            rows.append((shown * 255).round().byte().transpose(0, 1).flatten(1, 2))
    Image.fromarray(torch.cat(rows)[::2, ::2].contiguous().numpy()).save(path)


if __name__ == "__main__":
    main()
