"""What the film model is shown in each step of its training: clips of a film, drawn with gaps and true times.

A clip is a few blocks of 3 frames. Blocks side by side in the clip may lie far apart in the film, so that a place comes back into
view without the computing of what lies between. How far apart is drawn anew each time, and only one kind of clip comes back after
a whole turn: otherwise a model learns to copy what was there 36 frames ago, wherever that is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from bootstrap_package import comfyui_qvg  # noqa: F401  (first: it names the repository `comfyui_qvg`)
from comfyui_qvg.qvg.models.demo_film.directions import (
    BLOCK_FRAMES,
    CAMERAS,
    DIRECTIONS,
    LIGHTS,
    LOOKS,
    SWING_COLUMNS,
    TURN_COLUMNS,
    VIEW_COLUMNS,
    Direction,
    Track,
    View,
    follow,
)
from comfyui_qvg.qvg.models.demo_film.scenes import TRAINING, Scene
from torch import Tensor

SIGMAS = (1.0, 0.9375, 5 / 6, 0.625)  # noise levels of the four steps of Self-Forcing
LONGEST_BLOCKS = 72  # of a film, 216 frames
_PANS = ("turn right", "turn left")
_SEEN, _UNSEEN, _REMEMBERED = 1.0, 0.2, 2.0  # weights of what the block before shows, of what no block shows, of the rest
_RULER = 2.0

Rng = np.random.Generator


@dataclass(frozen=True)
class Layout:
    """What the clips of one step share. `targets`: a block for each noisy twin; `told_late`: blocks up to this one are remembered
    as if the last prompt had been there from the start (the product's recache); `true_blocks`: never replaced by predictions."""

    blocks: int
    targets: tuple[int, ...]
    true_blocks: int
    told_late: int = 0


@dataclass(frozen=True)
class Clip:
    """One film's part. `prompts`: index into DIRECTIONS for each block; `prompts_known`: those that its memory was made under."""

    scene: int
    track: Track
    prompts: list[int]
    kind: str

    def prompts_known(self, told_late: int) -> list[int]:
        """Prompt of each block as context."""
        return [self.prompts[max(block, told_late)] for block in range(len(self.prompts))]


@dataclass(frozen=True)
class Batch:
    """Clips of one step as tensors."""

    clips: list[Clip]
    layout: Layout
    times: Tensor  # [B, blocks * 3]
    latents: Tensor  # [B, blocks * 3, 16, 16, 16]
    known: Tensor  # [B, targets, 3, 8]: by column, 0 seen in the block before, 1 seen earlier only, 2 never seen
    weights: Tensor  # [B, targets * 3, 1, 16, 16]


# Pieces of films ----------------------------------------------------------------------------------------------------------


def _pick(rng: Rng, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _view(rng: Rng, heading: int, step: int = 0) -> View:
    daylight = float(rng.integers(2)) if rng.random() < 0.6 else float(rng.random())
    return View(heading % TURN_COLUMNS, step, daylight)


def _join(*pieces: Track) -> Track:
    return Track(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))


def _pan(rng: Rng, step: int) -> str:
    """A camera that moves by `step`."""
    return "swing" if rng.random() < 0.3 else _PANS[step < 0]


def _ending_at(rng: Rng, heading: int, light: str, camera: str, step: int, first_time: int) -> tuple[Track, View]:
    """One block whose last frame stands at `heading`."""
    if camera in LOOKS or camera == "swing":
        camera = "stay"
    moved = {"turn right": 1, "turn left": -1, "stay": 0}[camera]
    return follow(_view(rng, heading - BLOCK_FRAMES * moved, step), [Direction(camera, light)], first_time)


def _entry(rng: Rng, first_column: int, columns: int, step: int) -> int:
    """The heading from which the next steps show more and more of some columns."""
    overlap = int(rng.integers(0, 4))
    return first_column - VIEW_COLUMNS + overlap if step > 0 else first_column + columns - overlap


def _index(direction: Direction) -> int:
    return DIRECTIONS.index(direction)


def _gap(rng: Rng) -> int:
    """Blocks left out."""
    return int(rng.integers(0, 13)) if rng.random() < 0.5 else int(rng.integers(0, LONGEST_BLOCKS - 14))


def _old(rng: Rng, blocks: int, lo: int | None = None) -> tuple[Track, list[int], int, int]:
    """A pan. -> frames, prompts, first column that it shows, how many columns."""
    step = 1 if rng.random() < 0.5 else -1
    shown = BLOCK_FRAMES * blocks + VIEW_COLUMNS - 1
    lo = int(rng.integers(TURN_COLUMNS)) if lo is None else lo
    start = lo - 1 if step > 0 else lo + BLOCK_FRAMES * blocks
    direction = Direction(_PANS[step < 0], _pick(rng, LIGHTS))
    track, _ = follow(_view(rng, start, step), [direction] * blocks)
    return track, [_index(direction)] * blocks, lo, shown


# Kinds of clips ------------------------------------------------------------------------------------------------------------


def _local(rng: Rng, layout: Layout) -> tuple[Track, list[int]]:
    """Blocks without a gap; in most of them the prompt changes."""
    if rng.random() < 0.3:
        return _turning_round(rng, layout)
    first = Direction(_pick(rng, CAMERAS if rng.random() < 0.5 else _PANS), _pick(rng, LIGHTS))
    directions = [first] * layout.blocks
    edge = layout.told_late or int(rng.integers(2, layout.blocks - 1))
    if layout.told_late or rng.random() < 0.6:
        camera = first.camera if rng.random() < 0.2 else _pick(rng, CAMERAS if rng.random() < 0.6 else _PANS)
        directions[edge:] = [Direction(camera, _pick(rng, LIGHTS))] * (layout.blocks - edge)
    step = int(rng.choice([-1, 0, 1]))
    track, _ = follow(_view(rng, int(rng.integers(TURN_COLUMNS)), step), directions)
    return track, [_index(direction) for direction in directions]


def _turning_round(rng: Rng, layout: Layout) -> tuple[Track, list[int]]:
    """A swing that comes to one of its marks in the middle of the clip: the place alone says that it must turn."""
    step = 1 if rng.random() < 0.5 else -1
    mark = SWING_COLUMNS if step > 0 else 0
    ahead = int(rng.integers(1, BLOCK_FRAMES * layout.blocks))
    swing = Direction("swing", _pick(rng, LIGHTS))
    directions = [swing] * layout.blocks
    if layout.told_late or rng.random() < 0.3:
        edge = layout.told_late or int(rng.integers(1, layout.blocks - 1))
        directions[:edge] = [Direction(_PANS[step < 0], _pick(rng, LIGHTS))] * edge
        ahead = max(ahead, BLOCK_FRAMES * edge)  # a pan passes the mark
    track, _ = follow(_view(rng, mark - step * ahead, step), directions)
    return track, [_index(direction) for direction in directions]


def _whole_turn(rng: Rng, layout: Layout) -> tuple[Track, list[int]]:
    """A piece, and the same places one or more whole turns (or whole swings) later under the same prompt; or under one that
    changes there, so that what was here a turn ago is not what comes."""
    step = 1 if rng.random() < 0.5 else -1
    swings = rng.random() < 0.25
    direction = Direction("swing" if swings else _PANS[step < 0], _pick(rng, LIGHTS))
    old = layout.true_blocks
    start = _view(rng, int(rng.integers(SWING_COLUMNS + 1 if swings else TURN_COLUMNS)), step)
    turns = int(rng.choice([1, 1, 1, 2, 3, 5]))
    late = TURN_COLUMNS // BLOCK_FRAMES * turns - 1
    directions = [direction] * (late + layout.blocks - old)
    if rng.random() < 0.5:
        edge = late + int(rng.integers(1, layout.blocks - old - 1))
        cameras = ("stay", "stay", _PANS[step > 0], _PANS[step < 0], "swing", _pick(rng, tuple(LOOKS)))
        directions[edge:] = [Direction(_pick(rng, cameras), _pick(rng, LIGHTS))] * (len(directions) - edge)
    track, _ = follow(start, directions)
    blocks = [*range(old), *range(late, late + layout.blocks - old)]
    return _blocks(track, blocks), [_index(directions[block]) for block in blocks]


def _blocks(track: Track, blocks: Sequence[int]) -> Track:
    return track.part((np.array(blocks)[:, None] * BLOCK_FRAMES + np.arange(BLOCK_FRAMES)).ravel())


def _round_and_round(rng: Rng, pieces: Sequence[int]) -> tuple[Track, list[int]]:
    """Pieces of so many blocks, one or more whole turns after each other, each after the first led in by a block."""
    step = 1 if rng.random() < 0.5 else -1
    direction = Direction(_PANS[step < 0], _pick(rng, LIGHTS))
    turn, blocks, late = TURN_COLUMNS // BLOCK_FRAMES, [*range(pieces[0])], 0
    for piece in pieces[1:]:
        late += turn * int(rng.choice([1, 1, 2]))
        blocks += range(late - 1, late - 1 + piece)
    track, _ = follow(_view(rng, int(rng.integers(TURN_COLUMNS)), step), [direction] * (blocks[-1] + 1))
    return _blocks(track, blocks), [_index(direction)] * len(blocks)


def _return_pan(rng: Rng, layout: Layout) -> tuple[Track, list[int]]:
    """A piece, a gap of any length, and a pan into the same places from either side."""
    old = layout.true_blocks
    track, prompts, lo, shown = _old(rng, old)
    late, _, told = _coming_back(rng, lo, shown, old + _gap(rng), layout.blocks - old, layout.told_late > 0)
    return _join(track, late), prompts + told


def _coming_back(rng: Rng, lo: int, shown: int, time: int, blocks: int, change: bool) -> tuple[Track, View, list[int]]:
    """One block that ends beside some columns, then a pan over them. `time`: the first block's."""
    step = 1 if rng.random() < 0.5 else -1
    now = Direction(_pan(rng, step), _pick(rng, LIGHTS))
    before = Direction(now.camera, now.light)
    if change or rng.random() < 0.5:
        before = Direction(_pick(rng, (*_PANS, "stay")), _pick(rng, LIGHTS))
    if before.camera == "swing":
        before = Direction(_PANS[step < 0], before.light)
    lead, view = _ending_at(rng, _entry(rng, lo, shown, step), before.light, before.camera, step, time * BLOCK_FRAMES)
    view = View(view.heading, step, view.daylight)
    if now.camera == "swing" and before.camera != _PANS[step < 0]:
        now = Direction(_PANS[step < 0], now.light)  # the direction of a swing must have been seen
    late, view = follow(view, [now] * (blocks - 1), (time + 1) * BLOCK_FRAMES)
    first = _index(Direction("swing", before.light)) if now.camera == "swing" and rng.random() < 0.7 else _index(before)
    return _join(lead, late), view, [first] + [_index(now)] * (blocks - 1)


def _return_cut(rng: Rng, layout: Layout) -> tuple[Track, list[int]]:
    """A piece, a gap, a cut to one of its places, named by the prompt alone; then a pan from there."""
    old = layout.true_blocks
    look = _pick(rng, tuple(LOOKS))
    slack = BLOCK_FRAMES * old - 1
    track, prompts, _, _ = _old(rng, old, LOOKS[look] - int(rng.integers(0, slack + 1)))
    light = _pick(rng, LIGHTS)
    before = Direction(_pick(rng, CAMERAS), light)
    now = Direction(look, light if rng.random() < 0.5 else _pick(rng, LIGHTS))
    then = now if layout.told_late or rng.random() < 0.2 else Direction(_pick(rng, (*_PANS, "swing")), _pick(rng, LIGHTS))
    directions = [before, now] + [then] * (layout.blocks - old - 2)
    start = _view(rng, int(rng.integers(TURN_COLUMNS)), int(rng.choice([-1, 1])))
    late, _ = follow(start, directions, (old + _gap(rng)) * BLOCK_FRAMES)
    return _join(track, late), prompts + [_index(direction) for direction in directions]


def _third_time(rng: Rng, layout: Layout) -> tuple[Track, list[int]]:
    """A piece, a return to it, and another: when the first return is the model's own, a copy of a copy."""
    old = layout.true_blocks
    middle = (layout.blocks - old) // 2
    if rng.random() < 0.4:
        return _round_and_round(rng, [old, middle, layout.blocks - old - middle])
    track, prompts, lo, shown = _old(rng, old)
    time = old + _gap(rng) // 2
    again, _, told = _coming_back(rng, lo, shown, time, middle, False)
    time += middle + _gap(rng) // 2
    once_more, _, told_more = _coming_back(rng, lo, shown, time, layout.blocks - old - middle, False)
    return _join(track, again, once_more), prompts + told + told_more


def _long(rng: Rng, layout: Layout) -> tuple[Track, list[int]]:
    """A long film under changing prompts, some of its blocks left out; the last 12 go on without a gap."""
    whole = int(rng.integers(layout.blocks, LONGEST_BLOCKS + 1)) if rng.random() < 0.6 else layout.blocks
    constant = rng.random() < 0.35
    directions = [Direction(_pick(rng, _PANS if rng.random() < 0.65 else ("swing",)), _pick(rng, LIGHTS))] * whole
    block = int(rng.integers(3, 16))
    while not constant and block < whole:
        camera = _pick(rng, _PANS if rng.random() < 0.5 else CAMERAS)
        directions[block:] = [Direction(camera, _pick(rng, LIGHTS))] * (whole - block)
        block += int(rng.integers(2, 16))
    track, _ = follow(_view(rng, int(rng.integers(TURN_COLUMNS)), 1 if rng.random() < 0.5 else -1), directions)
    early = np.sort(rng.choice(whole - 12, layout.blocks - 12, replace=False))
    blocks = [*early.tolist(), *range(whole - 12, whole)]
    return _blocks(track, blocks), [_index(directions[block]) for block in blocks]


KINDS: dict[str, Callable[[Rng, Layout], tuple[Track, list[int]]]] = {
    "local": _local,
    "turn": _whole_turn,
    "pan": _return_pan,
    "cut": _return_cut,
    "third": _third_time,
    "long": _long,
}


# Batches -------------------------------------------------------------------------------------------------------------------


def choose(rng: Rng, step: int, films: int, longest: int, chained: bool) -> tuple[str, Layout, int]:
    """Kind, layout and number of clips of a step. `chained`: to be shown again with predictions, so all must come from memory."""
    shares = {"local": 0.2, "turn": 0.12, "pan": 0.36, "cut": 0.32, "third": 0.0, "long": 0.0}
    if step >= 900:
        shares = {"local": 0.19, "turn": 0.19, "pan": 0.2, "cut": 0.15, "third": 0.14, "long": 0.13}
    if chained:
        shares |= {"local": 0.0, "third": shares["third"] * 2}
    chances = np.array(list(shares.values()))
    kind = str(rng.choice(list(shares), p=chances / chances.sum()))
    recached = rng.random() < 0.5
    if kind == "local":
        edge = int(rng.integers(2, 5)) if recached and rng.random() < 0.6 else 0
        return kind, Layout(6, tuple(range(edge or 1, 6)), 6, edge), films
    if kind == "third":
        return kind, Layout(8, (3, 4, 6, 7, 6, 7), 2), films
    if kind == "long":
        blocks = int(rng.integers(14, longest + 1))
        return kind, Layout(blocks, (), blocks - 10), max(1, films // 2)
    old = int(rng.integers(2, 4))
    changed = recached and kind != "turn" and rng.random() < 0.5
    ahead = tuple(range(old + 1, old + 4))
    return kind, Layout(old + 4, ahead + ahead, old, old + 1 if changed else 0), films


def known_columns(track: Track, targets: Sequence[int]) -> np.ndarray:
    """How each column of the targets' frames can be known. -> [targets, 3, 8], see `Batch.known`."""
    shown = (track.headings[:, None] + np.arange(VIEW_COLUMNS)) % TURN_COLUMNS
    by_block = shown.reshape(-1, BLOCK_FRAMES, VIEW_COLUMNS)
    known = np.full((len(targets), BLOCK_FRAMES, VIEW_COLUMNS), 2)
    for row, block in zip(known, targets, strict=True):
        row[np.isin(by_block[block], by_block[:block])] = 1
        row[np.isin(by_block[block], by_block[max(0, block - 1) : block])] = 0
    return known


def _most_remembered(track: Track, layout: Layout, twins: int) -> tuple[int, ...]:
    """The blocks among the last 11 that show most of what only memory has."""
    candidates = range(layout.blocks - 11, layout.blocks)
    known = known_columns(track, candidates)
    score = (known == 1).sum((1, 2)) - 0.5 * (known == 2).sum((1, 2)) + np.arange(11) * 1e-3
    return tuple(sorted(layout.blocks - 11 + int(i) for i in np.argsort(-score, kind="stable")[:twins]))


def draw(seed: int, step: int, films: int, longest: int, encode: Callable[[Tensor], Tensor], chained: bool = False) -> Batch:
    """The batch of a step: a pure function of seed and step (and of the encoder)."""
    rng = np.random.default_rng([TRAINING, seed, step])
    kind, layout, count = choose(rng, step, films, longest, chained)
    clips = []
    for _ in range(count):
        track, prompts = KINDS[kind](rng, layout)
        clips.append(Clip(int(rng.integers(2**31)), track, prompts, kind))
    if not layout.targets:
        targets = _most_remembered(clips[0].track, layout, 6)
        layout = Layout(layout.blocks, targets, layout.true_blocks)
    known = torch.from_numpy(np.stack([known_columns(clip.track, layout.targets) for clip in clips]))
    latents = torch.stack([encode(Scene(clip.scene, TRAINING).frames(clip.track)) for clip in clips])
    times = torch.from_numpy(np.stack([clip.track.times for clip in clips]))
    return Batch(clips, layout, times, latents, known, _weights(known))


def _weights(known: Tensor) -> Tensor:
    """Of each latent pixel in the loss. The ruler is known wherever the heading is."""
    by_column = torch.tensor([_SEEN, _REMEMBERED, _UNSEEN])[known].flatten(1, 2)
    weights = by_column.repeat_interleave(2, -1)[:, :, None, None].repeat(1, 1, 1, 2 * VIEW_COLUMNS, 1)
    weights[:, :, :, :2] = _RULER
    return weights
