"""One run of ComfyUI's causal Wan model as its attention sees it: which block is at work, and the cache to attend through."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ....qvg import CacheBytes, ConfigError, ExactSpan, UnsupportedModelError
from ....qvg.cache.codebooks import codebooks_text
from ....qvg.cache.merge_text import merge_text
from ....qvg.cache.policy import Layout
from ....qvg.positions.rope import pairs_apart
from ...records import RunRecord
from ..gauge import Gauge
from ..keep import KeptRun
from ..progress import say
from .plan import CausalPlan

Attend = Callable[["LayerSlot", Tensor, Tensor, Tensor, Tensor], Tensor]


class LayerSlot:
    """What core's sampler takes for a layer's cache: it holds `end`, in tokens, and leads attention to the run."""

    def __init__(self, run: CausalRun, layer: int):
        self.run, self.layer, self.end = run, layer, 0

    def __getitem__(self, name: str) -> int:
        self._know(name)
        return self.end

    def __setitem__(self, name: str, value: int) -> None:
        self._know(name)
        self.end = value

    def _know(self, name: str) -> None:
        if name != "end":
            raise UnsupportedModelError(
                "another node has replaced this model's self-attention with one that reads ComfyUI's own cache; take that "
                "node out, or bypass QVG KV Cache"
            )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, freqs: Tensor) -> Tensor:
        """Attention of the current block, [B, S, H, D] each, before RoPE -> [B, S, H * D]."""
        return self.run.attend(self, q, k, v, freqs)


@dataclass(frozen=True)
class _Block:
    """A block that has become history. `latent` [B, C, F, H, W], on the CPU."""

    latent: Tensor
    seconds: float
    cache: CacheBytes

    @property
    def frames(self) -> int:
        """Its latent frames."""
        return self.latent.shape[2]


@dataclass(frozen=True)
class CausalPass:
    """One pass of the network over `frames` frames. `commits`: they are finished and become history; `repeats`: they were history
    before. `freqs`: core's rotations, where those that the network makes itself are not to be used. `position`: where its first
    frame stands, None for where the plan has it. `timesteps` [B, F] in 0..1000: what a network of ours is told; `beside`: what it
    sees beside the text."""

    first_frame: int
    frames: int
    commits: bool
    repeats: bool = False
    freqs: Tensor | None = None
    position: int | None = None
    timesteps: Tensor | None = None
    beside: Any = None


class CausalRun:
    """Attention of one run. `blocks`: what has become history so far; `kept`: where they are on disk meanwhile."""

    def __init__(self, plan: CausalPlan, kept: KeptRun | None = None):
        self.plan, self.spec, self._kept = plan, plan.spec, kept
        self.cache = plan.settings.cache(plan.spec, None if plan.as_core else plan.rope())
        self.blocks: list[_Block] = []
        self._pass = CausalPass(0, 0, False)
        self._next_layer, self._joined_bytes = 0, 0
        self._began, self._gauge = time.perf_counter(), Gauge(plan.blocks)
        # One moment's memory is no part of a compiled network. Who has not imported torch._dynamo does not compile, and
        # importing it takes seconds.
        self.attend: Attend = torch.compiler.disable(self._attend) if "torch._dynamo" in sys.modules else self._attend

    def slots(self) -> list[LayerSlot]:
        """One for every layer, for the sampler to carry."""
        return [LayerSlot(self, layer) for layer in range(self.spec.layers)]

    def reindex(self) -> None:
        """Frames in memory take the positions 0, 1, ... where the plan asks for it: none is farther away than the window."""
        if self.plan.reindexed:
            self.cache.replace_origins([(float(frame), 0.0, 0.0) for frame in range(self.cache.layout.frames)])

    def forget(self) -> None:
        """Empty the memory; the same frames will be seen once more."""
        self.begin_again(self.cache.frames_committed - self.cache.layout.frames)

    def begin_again(self, frames: int) -> None:
        """Empty the memory, as if so many frames had been and gone."""
        self.cache.reset()
        self.cache.resume(Layout(), frames, 0, ())

    def begin_pass(self, coming: CausalPass) -> None:
        """The network is about to run."""
        if coming.first_frame != self.cache.frames_committed and not coming.repeats:
            raise UnsupportedModelError(
                f"the sampler went on at latent frame {coming.first_frame}, but {self.cache.frames_committed} are in memory: "
                "this sampler's loop is not one that QVG knows; use 'QVG Causal Sampler' or ComfyUI's 'Sampler AR Video', or "
                "bypass QVG KV Cache"
            )
        self._pass, self._next_layer = coming, 0
        if not self.plan.as_core:
            first = self.cache.layout.frames if self.plan.reindexed else coming.first_frame
            first = first if coming.position is None else coming.position
            self.cache.place([(float(first + frame), 0.0, 0.0) for frame in range(coming.frames)])

    def end_pass(self, latent: Tensor) -> None:
        """The network has run, once and whole, over `latent`."""
        if self._next_layer != self.spec.layers:
            raise ConfigError(
                f"a pass stopped after {self._next_layer} of {self.spec.layers} layers, but every step must run the "
                "network whole; take out the node that skips passes or layers (step caches, skip-layer guidance)"
            )
        if self._pass.commits and not self._pass.repeats:
            self.note_block(latent)

    def _attend(self, slot: LayerSlot, q: Tensor, k: Tensor, v: Tensor, freqs: Tensor) -> Tensor:
        self._check(slot, q)
        if self.plan.as_core:
            out = self._as_core_does(slot.layer, q, k, v, freqs if self._pass.freqs is None else self._pass.freqs)
        else:
            out = self._through_codes(slot.layer, q, k, v)
        slot.end += q.shape[1]
        if self._pass.commits:
            self.cache.commit_layer(slot.layer)
        else:
            self.cache.release(slot.layer)
        self._next_layer += 1
        return out

    def _check(self, slot: LayerSlot, q: Tensor) -> None:
        if slot.layer != self._next_layer or q.shape[0] != self.spec.batch:
            raise ConfigError(
                f"a step ran the network for more than the {self.spec.batch} video(s) of the latent, but memory holds one "
                "pass over each; use one prompt without areas, masks or guidance that runs the network again, at cfg 1"
            )
        expected = self._pass.first_frame * self.spec.tokens_per_frame
        if slot.end != expected:
            raise UnsupportedModelError(
                f"the sampler counts {slot.end} tokens in memory where the block begins at {expected}; use ComfyUI's "
                "'Sampler AR Video' with sigmas that fall to 0 once, or bypass QVG KV Cache"
            )

    def _through_codes(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, S, H, D] each, before RoPE -> [B, S, H * D]."""
        out = self.cache.attend(layer, *(x.transpose(1, 2) for x in (pairs_apart(q), pairs_apart(k), v)))
        return out.transpose(1, 2).flatten(2)

    def _as_core_does(self, layer: int, q: Tensor, k: Tensor, v: Tensor, freqs: Tensor) -> Tensor:
        """Roped keys, and core's own attention over one piece of memory, so that results are core's bit for bit."""
        q, k = apply_rope1(q, freqs), apply_rope1(k, freqs)
        self.cache.check_usable(layer)
        memory = self.cache.layers[layer]
        memory.append(k.transpose(1, 2), v.transpose(1, 2))
        pasts = zip(*memory.state.history, strict=True) if memory.state.history else ((), ())
        keys, values = (_joined(past, x) for past, x in zip(pasts, (k, v), strict=True))
        self._joined_bytes = max(self._joined_bytes, (keys.nbytes + values.nbytes) if memory.state.history else 0)
        out: Tensor = optimized_attention(q.flatten(2), keys, values, heads=self.spec.heads)
        return out

    def note_block(self, latent: Tensor) -> None:
        """It has become history."""
        now, cache, frames = time.perf_counter(), self.cache.nbytes(), latent.shape[2]
        seconds, self._began = now - self._began, now
        self.blocks.append(_Block(latent.cpu(), seconds, cache))
        if self._kept is not None:
            self._kept.add(self.blocks[-1].latent)
        exact = self.spec.exact_bytes(sum(block.frames for block in self.blocks))
        self._gauge.finished(len(self.blocks) - 1, frames, seconds, cache.total, exact)
        say(f"{cache.total / 1e6:.1f} MB, {seconds / frames:.2f} s/frame, block {len(self.blocks)}/{self.plan.blocks}")

    def record(self, device: Any) -> RunRecord:
        """The run in numbers; must be made before the cache is freed."""
        per_frame = [block for block in self.blocks for _ in range(block.frames)]
        return RunRecord(
            model=self.plan.title,
            device=str(device),
            config=self.plan.settings.config,
            span_frames=self.cache.policy.span_chunks * self.spec.chunk_frames,
            cache_bytes=tuple(block.cache.total for block in per_frame),
            exact_bytes=tuple(self.spec.exact_bytes(frame) for frame in _last_frames(self.blocks)),
            seconds=tuple(block.seconds / block.frames for block in per_frame),
            components=self.cache.nbytes(),
            codebooks=codebooks_text(self.cache),
            merged=merge_text(self.cache),
            workspace_bytes=max(self.cache.workspace.nbytes, self._joined_bytes),
            given_frames=self.plan.given_frames,
            placement=self.cache.placement(),
            study=self.plan.settings.study,
            remembers="memory was computed anew before every block, of 3 latent frames" if self.plan.recomputes else "",
        )


def _joined(past: tuple[Any, ...], current: Tensor) -> Tensor:
    """Exact spans [B, H, S, D] and the current block [B, S, H, D] in one piece, [B, S, H * D]."""
    if not past:
        return current.flatten(2)
    counts = [span.num_tokens for span in past]
    out = current.new_empty(current.shape[0], sum(counts) + current.shape[1], *current.shape[2:])
    for part, span in zip(out.split([*counts, current.shape[1]], 1), past, strict=False):
        assert isinstance(span, ExactSpan)
        part.copy_(span.values.transpose(1, 2))
    out[:, sum(counts) :] = current
    return out.flatten(2)


def _last_frames(blocks: list[_Block]) -> list[int]:
    """For every frame, how many frames there are once its block has become history."""
    ends, end = [], 0
    for block in blocks:
        end += block.frames
        ends += [end] * block.frames
    return ends
