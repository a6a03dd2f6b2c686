"""Runs of the demo models that are kept in a session while they are made: begun, gone on with, branched off.

One run with the default memory, not the demo's four. What comes next may change (path, length), what was made may not.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..cache import KVCache
from ..camera import parse_path, walk
from ..config import QVGConfig
from ..errors import ConfigError, SessionError, quoted, shown
from ..files import written_whole
from ..media import side_by_side
from ..media.video_file import KeptVideo
from ..models.demo_film.directions import BLOCK_FRAMES
from ..models.demo_film.weights import WEIGHTS as FILM_WEIGHTS
from ..models.demo_film.weights import load_demo_film
from ..models.demo_world import WEIGHTS, DemoWorldDenoiser, load_demo_world
from ..sampling import Block, generate
from ..sampling.film import Before, FilmPrompts, given_blocks, roll_out
from ..sampling.kept import kept_blocks
from ..session import Session
from ..session.session import DEFAULT_EVERY
from .film import GIVEN_FRAMES as GIVEN_FILM_FRAMES
from .film import SPAN_FRAMES as FILM_SPAN_FRAMES
from .film import decoded, plan_film
from .memories import DEFAULT_PRESET, SPAN_FRAMES
from .video import FRAMES_PER_SECOND
from .walk import Picture, Walk, picture, plan_walk, settings

WORLD, FILM = "demo world", "demo film"
VIDEO, LAST = "video.mp4", "last.png"


def begin(folder: Path, film: bool, frames: int, seed: int, path: str | None, every: int = DEFAULT_EVERY) -> Session:
    """A new session of a walk, or of a film. ConfigError: nothing has been made then."""
    if film:
        plan_film(frames, seed)
    else:
        assert path is not None
        plan_walk(path, frames, seed)
    name, weights = (FILM, FILM_WEIGHTS) if film else (WORLD, WEIGHTS)
    preset = QVGConfig.preset(DEFAULT_PRESET)
    config = preset.with_changes(span_frames=FILM_SPAN_FRAMES if film else SPAN_FRAMES)
    plan = {"frames": frames, "torch": torch.__version__} | ({} if film else {"paths": [[0, path]]})
    return Session.create(folder, name, _identity(weights), {"seed": seed, "memory": asdict(config)}, plan, every)


def changed(session: Session, frames: int | None, path: str | None) -> dict[str, Any]:
    """The plan of a session that goes on for so many frames more, from where it stands along another path. None: as it was
    planned, and where that is all made, as long again. ConfigError, SessionError."""
    manifest = session.manifest
    if manifest.model not in (WORLD, FILM):
        raise SessionError(
            f"{session.folder} is of {quoted(manifest.model)}, which this command has no network for; it makes {WORLD} and {FILM}"
        )
    if path is not None and manifest.model == FILM:
        raise ConfigError(f"path is {quoted(path)}, but a film has no camera path; leave --path out")
    plan, here = dict(manifest.plan), manifest.frames
    try:
        wanted = int(plan["frames"])
        more = frames if frames is not None else wanted - here if wanted > here else wanted
        if more < 1:
            raise ConfigError(f"frames is {more}, but at least one more must be made; use 1 or more")
        plan["frames"] = here + more
        if path is not None:
            parse_path(path)
            # What was planned from here on, and not made, gives way.
            plan["paths"] = [*(part for part in plan["paths"] if part[0] < here), [here, path]]
        _check(manifest.model, plan, manifest.settings)
    except (KeyError, TypeError, AttributeError) as error:
        raise SessionError(
            f"{session.folder} does not say what is to be made in it ({shown(repr(error))}); another program made it"
        ) from error
    return plan


def _check(model: str, plan: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    if model == FILM:
        plan_film(plan["frames"], made["seed"])
    else:
        walked(plan, made["seed"])


def walked(plan: Mapping[str, Any], seed: int) -> Walk:
    """Where the camera stands along paths of which each begins at a frame, where the one before it ends. ConfigError."""
    (_, path), *others = plan["paths"]
    whole = plan_walk(path, plan["frames"], seed)
    positions = whole.positions
    for start, path in others:
        if not isinstance(start, int) or not 0 < start < len(positions):
            raise ConfigError(f"a path begins at frame {start} of {len(positions)}")
        rest = walk(parse_path(path), len(positions) - start + 1, tuple(positions[start - 1].tolist()))
        positions[start:] = rest[1:]
    return Walk(seed, positions)


def make(session: Session, plan: Mapping[str, Any]) -> int:
    """Make what the plan says and is not there, and the video of all. -> exit code (130 after Ctrl-C: the next call goes on)"""
    interrupted = False
    total = plan["frames"] // (BLOCK_FRAMES if session.manifest.model == FILM else 1)
    run = _film if session.manifest.model == FILM else _walk
    with session, tqdm(total=total, initial=session.blocks, unit="block", file=sys.stdout, mininterval=0.5, ncols=100) as bar:
        try:
            session.plan = dict(plan)
            for block in run(session, plan):
                bar.set_postfix_str(f"{block.seconds:.2f} s, cache {block.cache.total / 1e6:.2f} MB", refresh=False)
                bar.update()
        except KeyboardInterrupt:
            interrupted = True
    done = Session.look(session.folder)
    print(_said(done, session))
    if done.blocks:
        write_video(done)
    return 130 if interrupted else 0


def _said(done: Session, session: Session) -> str:
    share = f", written in {session.spent_seconds:.1f} s" if session.written_bytes else ""
    return f"{done.manifest.frames} frames, {done.index.nbytes / 1e6:.2f} MB in {done.folder}{share}"


def _walk(session: Session, plan: Mapping[str, Any]) -> Iterator[Block]:
    model, config = load_demo_world(), _memory(session)
    _require_weights(session, WEIGHTS)
    steps = walked(plan, session.manifest.settings["seed"])
    (cache,) = session.restore() or [KVCache(model.config.cache_spec(), config, model.config.rope())]
    schedule = settings(steps.seed)
    blocks = generate(
        DemoWorldDenoiser(model), cache, steps.origins, schedule, steps.given(model), verify=False, first_block=session.blocks
    )
    yield from kept_blocks(session, blocks, cache)


def _film(session: Session, plan: Mapping[str, Any]) -> Iterator[Block]:
    model, codec = load_demo_film(FILM_WEIGHTS)
    _require_weights(session, FILM_WEIGHTS)
    seed = session.manifest.settings["seed"]
    film, caches = plan_film(plan["frames"], seed), list[KVCache]()
    with torch.inference_mode():
        given = given_blocks(film, codec, GIVEN_FILM_FRAMES // BLOCK_FRAMES)
    before = Before([latent for latent, _ in session.finished()], session.restore()[0]) if session.blocks else None
    made = roll_out(model, FilmPrompts(model), film.directions, _memory(session), given, seed, caches=caches, before=before)
    first = next(made, None)
    if first is not None:
        yield from kept_blocks(session, itertools.chain([first], made), caches[0])


def _memory(session: Session) -> QVGConfig:
    return QVGConfig(**session.manifest.settings["memory"])


def _identity(weights: Path) -> dict[str, str]:
    return {"weights": hashlib.sha256(weights.read_bytes()).hexdigest()}


def _require_weights(session: Session, weights: Path) -> None:
    if dict(session.manifest.identity) != _identity(weights):
        raise SessionError(
            f"{session.folder} was made by other weights than {weights.name} holds now, so what came next would be another "
            "video; begin another session"
        )


def pictures(session: Session) -> Iterator[Picture]:
    """All that was made, frame by frame. SessionError for models that this command cannot decode."""
    if session.manifest.model == WORLD:
        yield from (picture(latent) for latent, _ in session.finished())
    elif session.manifest.model == FILM:
        _, codec = load_demo_film(FILM_WEIGHTS)
        for latent, _ in session.finished():
            yield from _decoded(codec, latent)


@torch.inference_mode()
def _decoded(codec: Any, latent: Tensor) -> list[Picture]:
    return decoded(codec, latent[0])


def write_video(session: Session) -> None:
    """`video.mp4` of all frames so far, and `last.png`, in the session's folder. OSError, MediaError."""
    scale = 4 if session.manifest.model == WORLD else 2
    rows = (side_by_side([each], [""], scale) for each in pictures(session))
    first = next(rows)
    last = first
    with KeptVideo(session.folder / VIDEO, first.shape[1], first.shape[0], FRAMES_PER_SECOND) as video:
        for last in itertools.chain([first], rows):
            video.write(last)
    with written_whole(session.folder / LAST) as unfinished:
        Image.fromarray(last).save(unfinished, "png")
