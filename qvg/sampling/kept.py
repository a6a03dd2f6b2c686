"""Loops whose blocks go to a session as they come, and worlds that go on out of one."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..cache import KVCache
from ..errors import SessionError
from ..session import Session
from .autoregressive import Block
from .longcat import Segment
from .world import World
from .world_hunyuan import HunyuanWorld


def kept_blocks(session: Session, blocks: Iterator[Block], cache: KVCache) -> Iterator[Block]:
    """The blocks of `generate`, each in the session before anybody sees it, and on disk as often as the session says; all of
    them when this ends. OSError: the disk."""
    for block in blocks:
        session.add(block.latent, [cache], seconds=round(block.seconds, 4))
        if session.due:
            session.checkpoint([cache])
        yield block
    session.checkpoint([cache])


def kept_segments(session: Session, segments: Iterator[Segment]) -> Iterator[Segment]:
    """The same for LongCat's segments, each on disk as soon as it is there: nothing is remembered from one to the next but its
    latents."""
    for segment in segments:
        frames = segment.latents.shape[1] - segment.condition_latents
        session.add(segment.latents, frames=frames, condition=segment.condition_latents, seconds=round(segment.seconds, 4))
        session.checkpoint()
        yield segment


def keep_chunk(session: Session, world: World, seconds: float = 0.0) -> None:
    """The newest chunk of a world joins the session. What a world of mode "vendor" remembers is made afresh for every chunk, so
    only its latents are kept."""
    session.add(world.latents[-1], context=list(world.context), seconds=round(seconds, 4))
    if session.due:
        checkpoint_world(session, world)


def checkpoint_world(session: Session, world: World) -> None:
    """All chunks so far are on disk."""
    session.checkpoint([] if world.mode == "vendor" else [memory.cache for memory in world.memories])


def resume_world(session: Session, world: World, device: torch.device | str = "cpu") -> None:
    """A new world becomes the one that was kept: its chunks, on `device`, and what its memories hold of them. SessionError."""
    finished = list(session.finished())
    caches = session.restore(device)
    if finished and world.mode != "vendor" and len(caches) != len(world.memories):
        raise SessionError(
            f"{session.folder} has {len(caches)} memories, but this world {len(world.memories)}; guide it as it was guided"
        )
    world.latents[:] = [latent.to(device) for latent, _ in finished]
    world.context = tuple(finished[-1][1].get("context", ())) if finished else ()
    for memory, cache in zip(world.memories, caches, strict=False):
        memory.cache = cache
    image = session.start().get("image")
    if image is not None and isinstance(world, HunyuanWorld):
        world.image = image.to(device)
