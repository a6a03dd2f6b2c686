"""What a walking world remembers: keys and values of earlier frames in a `KVCache`, in one of two layouts.

once    keys before RoPE and raw values, D channels: both attentions encode them by position on their way in, so frames may be
        placed anew, and the world is centred on the chunk's own camera, where 16-bit matrices are precise
vendor  roped and projected keys side by side, raw and projected values side by side, 2D channels: how the official code and
        Quant-VideoGen keep them; twice the bytes, fixed where they were written. Both attentions are one of twice the width and
        twice the queries, half of it zeros: for comparison, not for speed
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...attention.joint import JointKV, prepend_joint
from ...cache import KVCache
from ...cache.spec import CacheSpec
from ...camera.cameras import Cameras
from ...config import QVGConfig
from ...errors import ConfigError
from ...positions.projective import Projector, project, projection_matrices
from ...positions.rope import GridRope, Rotation, rotate
from .world_schedule import ChunkPlan

LAYOUTS = ("once", "vendor")


class WorldMemory(ABC):
    """For every chunk: `begin_context`, the network's context pass through `attend_context` and `keep`, `begin_chunk`, and
    denoise steps through `attend`. Keys come before RoPE, pairs apart; `joint` is what both attentions see besides, such as a
    text, keys with pairs apart too. Use it in a `with`."""

    def __init__(self, cache: KVCache, rope: GridRope):
        self.cache, self.rope = cache, rope
        self._plan: ChunkPlan | None = None

    def holds(self, plan: ChunkPlan) -> bool:
        """Whether the plan's context pass has been run already, and the chunk broken off after it."""
        return not plan.afresh and self.cache.frames_committed == len(plan.context)

    def begin_context(self, plan: ChunkPlan, cameras: Cameras) -> None:
        """Before the context pass over `plan.encode`; `cameras` of all frames so far and of the chunk."""
        if plan.afresh:
            self.cache.reset()
        before = plan.context[: len(plan.context) - len(plan.store)]
        held, seen = plan.context[len(before) :], before if plan.recalls else ()
        if held != plan.store:
            raise ConfigError(f"frames {list(plan.store)} are to be stored, but the plan's memory ends with {list(held)}")
        self._plan, self._cameras = plan, self._centred(cameras, plan)
        self._place(plan.store, range(len(before), len(plan.context)), before)
        self._own = self._projector(plan.encode, (*seen, *plan.encode))
        self._own_positions = plan.encode_positions

    def begin_chunk(self, plan: ChunkPlan, cameras: Cameras) -> None:
        """Before the denoise steps over `plan.frames`."""
        self._plan, self._cameras = plan, self._centred(cameras, plan)
        frames = tuple(plan.frames)
        self._place(frames, plan.positions, plan.context)
        self._own, self._own_positions = self._projector(frames, (*plan.context, *frames)), tuple(plan.positions)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, joint: JointKV | None = None) -> Tensor:
        """Both attentions of the chunk over the memory and itself, side by side: [B, H, S, 2D]. Nothing is kept."""
        out = self._attend_all(layer, q, k, v, joint)
        self.cache.release(layer)
        return out

    def attend_context(self, layer: int, q: Tensor, k: Tensor, v: Tensor, joint: JointKV | None = None) -> Tensor:
        """Both attentions of the context pass; keys and values of `plan.store` are committed."""
        assert self._plan is not None
        out = self._attend_all(layer, q, k, v, joint) if self._plan.recalls else self._attend_own(q, k, v, joint)
        self.keep(layer, k, v)
        return out

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Commit keys and values of `plan.store`, the last of those that the context pass runs over."""
        assert self._plan is not None
        tokens = len(self._plan.store) * self.rope.tokens_per_frame
        self.cache.layers[layer].append(*(x[:, :, x.shape[2] - tokens :] for x in self._stored(k, v)))
        self.cache.commit_layer(layer)

    def __enter__(self) -> WorldMemory:
        return self

    def __exit__(self, *error: object) -> None:
        self.cache.reset()

    def _attend_own(self, q: Tensor, k: Tensor, v: Tensor, joint: JointKV | None) -> Tensor:
        """The frames of the pass among themselves, exactly."""
        rotation = self._own_rotation(q)
        along = scaled_dot_product_attention(rotate(q, rotation), *prepend_joint(joint, rotate(k, rotation), v))
        queries, *projected = self._own.block(q, k, v)
        joint = self._joint_for_cameras(joint)
        by_cameras = self._own.leave(scaled_dot_product_attention(queries, *prepend_joint(joint, *projected)))
        return torch.cat([along, by_cameras], -1)

    def _own_rotation(self, like: Tensor) -> Rotation:
        return self.rope.rotation(torch.tensor([(place, 0, 0) for place in self._own_positions], device=like.device))

    def _projector(self, block: Sequence[int], seen: Sequence[int]) -> Projector:
        views, intrinsics = self._cameras.views(), self._cameras.normalised_intrinsics()
        to_picture, to_world = projection_matrices(torch.from_numpy(views), torch.from_numpy(intrinsics))
        matrices = (to_picture[list(block)].float(), to_world[list(seen)].float())
        return Projector(*matrices, self.rope.tokens_per_frame, apart=True)

    def _centred(self, cameras: Cameras, plan: ChunkPlan) -> Cameras:
        """The world in which this chunk is computed."""
        return cameras

    def _joint_for_cameras(self, joint: JointKV | None) -> JointKV | None:
        """As the attention in coordinates of the cameras sees it: untransformed in the world of `cameras`."""
        return joint

    @abstractmethod
    def _place(self, block: Sequence[int], positions: range, memory: Sequence[int]) -> None:
        """Where a block's frames stand, and how many are in memory before it."""

    @abstractmethod
    def _stored(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What the cache keeps of a pass's keys and values."""

    @abstractmethod
    def _attend_all(self, layer: int, q: Tensor, k: Tensor, v: Tensor, joint: JointKV | None) -> Tensor:
        """Both attentions over memory, block and `joint`."""


class StoredOnce(WorldMemory):
    """Layout "once"."""

    def _centred(self, cameras: Cameras, plan: ChunkPlan) -> Cameras:
        self._origin = torch.from_numpy(cameras.views()[plan.frames.start : plan.frames.start + 1]).float()
        return cameras.recentred(plan.frames.start)

    def _joint_for_cameras(self, joint: JointKV | None) -> JointKV | None:
        """A text knows no camera and stays where the world began; from the chunk's camera, the world begins at `_origin`."""
        if joint is None:
            return None
        keys, values = joint
        return project(keys, self._origin, apart=True), project(values, self._origin)

    def _place(self, block: Sequence[int], positions: range, memory: Sequence[int]) -> None:
        self.cache.replace_origins([(place, 0, 0) for place in range(len(memory))])
        self.cache.place([(place, 0, 0) for place in positions])

    def _stored(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k, v

    def _attend_all(self, layer: int, q: Tensor, k: Tensor, v: Tensor, joint: JointKV | None) -> Tensor:
        along = self.cache.attend(layer, q, k, v, joint=joint)
        return torch.cat(
            [along, self.cache.attend_projected(layer, q, k, v, self._own, joint=self._joint_for_cameras(joint))], -1
        )


class StoredAsVendor(WorldMemory):
    """Layout "vendor"."""

    def _place(self, block: Sequence[int], positions: range, memory: Sequence[int]) -> None:
        """Nothing to do: what is stored stays where it was written."""

    def _stored(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        _, projected_k, projected_v = self._own.block(k, k, v)
        return torch.cat([rotate(k, self._own_rotation(k)), projected_k], -1), torch.cat([v, projected_v], -1)

    def _attend_all(self, layer: int, q: Tensor, k: Tensor, v: Tensor, joint: JointKV | None) -> Tensor:
        along, projected = rotate(q, self._own_rotation(q)), self._own.block(q, k, v)[0]
        nothing = torch.zeros_like(q)
        # Each half of the queries meets its half of the keys. Twice the channels would halve the softmax's scale squared.
        queries = torch.cat([torch.cat([along, nothing], -1), torch.cat([nothing, projected], -1)], 2) * 2**0.5
        both = None if joint is None else (joint[0].repeat(1, 1, 1, 2), joint[1].repeat(1, 1, 1, 2))
        out = self.cache.attend(layer, queries, *self._stored(k, v), joint=both)
        (first, _), (_, second) = (half.chunk(2, -1) for half in out.chunk(2, 2))
        return torch.cat([first, self._own.leave(second)], -1)


def vendor_config(config: QVGConfig, context_frames: int) -> QVGConfig:
    """Settings of a memory in mode "vendor": all of a context is written at once, and nothing of it is newer or older than the
    rest, so it is one span."""
    if config.codec == "none":
        return config
    return config.with_changes(sink_frames=0, recent_frames=0, span_frames=context_frames)


def world_memory(spec: CacheSpec, config: QVGConfig, rope: GridRope, layout: str = "once") -> WorldMemory:
    """A memory in one of LAYOUTS. `spec` is the network's, one attention wide; its `chunk_frames` are the frames that are stored
    together: four, or in mode "vendor" the whole context. Raises ConfigError for another layout, and for settings of a cache that
    a world cannot have: a window, keys that are kept rotated."""
    if layout not in LAYOUTS:
        raise ConfigError(f"layout is {layout!r}, but must be one of {', '.join(map(repr, LAYOUTS))}; choose one of these")
    if config.window_frames is not None:
        raise ConfigError(f"window_frames is {config.window_frames}, but a world's plan says what it remembers; leave it out")
    refuse_fixed_places(config)
    if config.keys == "after_rope":
        raise ConfigError(
            "keys is 'after_rope', but a world's keys are rotated in two ways; use keys 'before_rope', or layout 'vendor'"
        )
    if layout == "once":
        return StoredOnce(KVCache(spec, config, rope), rope)
    return StoredAsVendor(KVCache(replace(spec, head_dim=2 * spec.head_dim), config), rope)


def refuse_fixed_places(config: QVGConfig) -> None:
    """Raise ConfigError where settings would merge, or put into tiles, what a world places anew before every chunk."""
    if config.skips:
        raise ConfigError(
            f"sparse is {config.sparse:g}, but a world's frames are placed anew and seen through cameras; use sparse 0"
        )
    if config.merges:
        raise ConfigError(
            f"merge is {config.merge:g}, but a world's frames are placed anew and seen through cameras; use merge 0"
        )
