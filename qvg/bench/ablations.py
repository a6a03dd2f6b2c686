"""`qvg bench ablations`: what the Quant VideoGen paper takes apart, on a trained model's own keys and values -> ablations.csv.

Every row is a factor by which the mean squared error falls (all layers, heads and spans together), beside the paper's number
where it has one (arXiv 2602.02958, figure 6, tables 4 and 5, and the text on stages).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache import KVCache
from ..codec import QVGCodec, RTNCodec
from ..codec.base import Codec, EncodeHint
from ..codec.span import Codebook
from ..config import QVGConfig
from ..demo.memories import EXACT
from ..demo.walk import plan_walk, settings
from ..errors import ConfigError, MediaError, quoted, shown
from ..files import written_whole
from ..models.demo_film.directions import BLOCK_FRAMES
from ..models.demo_film.weights import WEIGHTS, load_demo_film
from ..models.demo_world import DemoWorldDenoiser, load_demo_world
from ..sampling import generate
from ..sampling.film import FilmPrompts, given_blocks, roll_out
from .films import GIVEN_FRAMES, KINDS, FilmCase
from .recording import Recording, recorded, spans_of
from .walks import FIRST_SEED, PATHS

FRAMES, FILM_FRAMES = 70, 72
MOST_WORLDS = 1000
# A centroid for 128 tokens, as in the paper's chunks (256 for 29,640 to 37,440). Its table of centroids was made on 68,500: 512,
# 256, 128 and 64 of them are as dense as 15, 8, 4 and 2 here. With as many as the paper's every eighth token of the demo would
# be a centroid, and smoothing would look five to ten times as good.
SPAN_TOKENS = 2048
CLUSTERS = 16
_PAPER = {
    ("smoothing, 2 bits", "keys"): 6.93,
    ("smoothing, 2 bits", "values"): 2.62,
    ("smoothing, 4 bits", "keys"): 7.08,
    ("smoothing, 4 bits", "values"): 2.65,
    ("first stage", "keys"): 5.83,
    **{(f"{name} stage", "keys"): 1.10 for name in ("second", "third", "fourth")},
    **{(f"{count} centroids", "keys"): gain for count, gain in ((2, 4.832), (4, 5.307), (8, 5.834), (16, 6.428))},
    **{(f"{count} centroids", "values"): gain for count, gain in ((2, 1.924), (4, 2.056), (8, 2.199), (16, 2.356))},
}


class AblationRow(NamedTuple):
    """By what factor `what` lowers the squared error of keys or values, and the paper's factor. `bits`: per value, codebooks
    included, of the better side."""

    instrument: str
    seed: int
    what: str
    against: str
    tensor: str
    gain: float
    paper: float | None
    bits: float


class _Side(NamedTuple):
    """One of two things that are compared: a codec, spans of so many tokens, and how a span's codebook begins."""

    codec: Codec
    tokens: int = SPAN_TOKENS
    warm: bool = False


def _qvg(**changes: object) -> QVGCodec:
    return QVGCodec(QVGConfig(clusters=CLUSTERS, iterations=6).with_changes(**changes))


def _plain(**changes: object) -> RTNCodec:
    return RTNCodec(QVGConfig(codec="rtn").with_changes(**changes))


def comparisons(tokens: int = SPAN_TOKENS) -> Iterator[tuple[str, str, _Side, _Side]]:
    """What is compared: a name, what against, and both sides, the better one first. Spans of so many tokens."""
    for bits in (2, 4):
        yield f"smoothing, {bits} bits", "plain rounding", _Side(_qvg(bits=bits), tokens), _Side(_plain(bits=bits), tokens)
    yield "first stage", "plain rounding", _Side(_qvg(), tokens), _Side(_plain(), tokens)
    for stages, name in ((2, "second"), (3, "third"), (4, "fourth")):
        more, fewer = (_Side(_qvg(num_stages=count), tokens) for count in (stages, stages - 1))
        yield f"{name} stage", "one stage fewer", more, fewer
    for clusters in (2, 4, 8, 16, 32, 64):
        yield f"{clusters} centroids", "plain rounding", _Side(_qvg(clusters=clusters), tokens), _Side(_plain(), tokens)
    for share in (2, 4, 8):
        yield f"spans of {tokens} tokens", f"of {tokens // share}", _Side(_qvg(), tokens), _Side(_qvg(), tokens // share)
    for group in (16, 32, 64):
        yield f"groups of {group} channels", "of 128", _Side(_qvg(group_size=group), tokens), _Side(_qvg(group_size=128), tokens)
    for iterations in (2, 6):
        cold = _Side(_qvg(iterations=iterations), tokens // 2)
        yield f"warm start, {iterations} iterations", "tokens drawn afresh", cold._replace(warm=True), cold
    yield "20 iterations", "6", _Side(_qvg(iterations=20), tokens), _Side(_qvg(), tokens)


@torch.no_grad()
def ablations(recording: Recording, tokens: int = SPAN_TOKENS) -> Iterator[AblationRow]:
    """Every comparison on a recording. ConfigError where it does not hold a span and, for warm starts, another half."""
    if recording.tokens < tokens:
        raise ConfigError(f"the recording holds {recording.tokens} tokens, but spans are {tokens} long; record a longer run")
    known: dict[tuple[object, ...], tuple[float, float]] = {}
    for what, against, better, worse in comparisons(tokens):
        for name, tensors in (("keys", recording.keys), ("values", recording.values)):
            sides = []
            for side in (better, worse):
                config = getattr(side.codec, "config", None)
                key = (name, type(side.codec), config, side.tokens, side.warm)
                if key not in known:
                    known[key] = _error(side, tensors)
                sides.append(known[key])
            gain = sides[1][0] / sides[0][0]
            yield AblationRow(
                recording.instrument, recording.seed, what, against, name, gain, _PAPER.get((what, name)), sides[0][1]
            )


def _error(side: _Side, tensors: Sequence[Tensor]) -> tuple[float, float]:
    """Mean squared error over all spans but, where codebooks start warm, each layer's first; and bits per value."""
    total = bits = 0.0
    values = 0
    for spans in spans_of(tensors, side.tokens):
        codebook: Codebook | None = None
        for number, x in enumerate(spans):
            span = side.codec.encode(x, EncodeHint(number, warm=codebook if side.warm else None, checked=True))
            codebook = span.codebook
            out = side.codec.decode(span, slice(0, x.shape[2]), slice(0, x.shape[1]), torch.empty_like(x))
            total += float((out - x).double().square().sum())
            bits += 8.0 * sum(tensor.untyped_storage().nbytes() for tensor in span.tensors().values())
            values += x.numel()
    return total / values, bits / values


def record_demo_world(seed: int, frames: int = FRAMES) -> Recording:
    """A walk through a world that was not trained on, with the exact cache."""
    model = load_demo_world()
    plan = plan_walk(PATHS[0], frames, seed)
    with KVCache(model.config.cache_spec(), EXACT, model.config.rope()) as cache:
        for _ in generate(DemoWorldDenoiser(model), cache, plan.origins, settings(plan.seed), plan.given(model)):
            pass
        return recorded(cache, "demo world", seed)


def record_demo_film(seed: int, frames: int = FILM_FRAMES) -> Recording:
    """A film of a scene that was not trained on, with the exact cache."""
    model, codec = load_demo_film(WEIGHTS)
    case, caches = FilmCase(seed, KINDS[0], frames, "day"), list[KVCache]()
    with torch.inference_mode():
        given = given_blocks(case.plan, codec, GIVEN_FRAMES // BLOCK_FRAMES)
    for block in roll_out(model, FilmPrompts(model), case.plan.directions, EXACT, given, case.noise, caches=caches):
        if block.index + 1 == len(case.plan.directions):
            return recorded(caches[0], "demo film", seed)
    raise AssertionError("a film has a last block")


RECORDERS: dict[str, Callable[[int, int], Recording]] = {"world": record_demo_world, "film": record_demo_film}


def bench_ablations(out: Path, worlds: int = 2, frames: int = 0, model: str = "world") -> int:
    """Record (or take what is recorded in `out`), compare, write. `frames` 0: as many as hold two spans. -> exit code"""
    if model not in RECORDERS:
        raise ConfigError(f"model is {quoted(model)}, but must be one of {', '.join(RECORDERS)}; leave it out for the world")
    frames = frames or {"world": FRAMES, "film": FILM_FRAMES}[model]
    if not 1 <= worlds <= MOST_WORLDS:
        raise ConfigError(f"worlds is {shown(worlds, 20)}, but 1 to {MOST_WORLDS} can be walked; choose one in that range")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"{out} cannot be made ({error.strerror}); choose another --out") from error
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    rows: list[AblationRow] = []
    for seed in range(FIRST_SEED, FIRST_SEED + worlds):
        path = out / f"demo_{model}-{seed}-{frames}.safetensors"
        if path.is_file():
            recording = Recording.load(path)
        else:
            recording = RECORDERS[model](seed, frames)
            recording.save(path)
        for row in ablations(recording):
            rows.append(row)
            print(row_text(row), flush=True)
        write_ablations(rows, out / "ablations.csv")
    print(f"wrote {out / 'ablations.csv'}")
    return 0


def row_text(row: AblationRow) -> str:
    """One comparison, for people."""
    paper = "" if row.paper is None else f"  paper {row.paper:.2f}"
    return f"{row.instrument} {row.seed}  {row.what:28} over {row.against:20} {row.tensor:7} {row.gain:6.2f} x{paper}"


def write_ablations(rows: Sequence[AblationRow], path: Path) -> None:
    """The file appears whole or not at all."""
    with written_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(AblationRow._fields)
        writer.writerows(
            ["" if value is None else round(value, 4) if isinstance(value, float) else value for value in row] for row in rows
        )
