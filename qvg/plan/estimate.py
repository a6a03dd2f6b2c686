"""What a run will take on a device, stated before anything is loaded: `plan(network, video, config) -> Plan`.

Cache terms are exact (`CacheSpec.predict`, `predict_peak`); the others are upper bounds. A run has two phases that matter:
sampling, with weights, cache, workspace and activations there at once, and decoding, when the cache has been freed and ComfyUI
has moved the weights out as far as the decoder needs. Not in it: the text encoder, which is done before, what the driver takes
for itself, and the allocator's fragments.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ..attention import tile_limit
from ..cache.even_growth import EvenGrowth
from ..cache.growth import even_chunks
from ..cache.merge_peak import MergedPeaks
from ..cache.peak import EvenPeaks, Peak
from ..cache.spec import CacheSpec
from ..config import QVGConfig
from ..errors import ConfigError, quoted, shown
from ..models.common.condition import condition_config
from ..models.common.shape import NetworkShape
from ..models.common.video_decoder import decode_bytes
from ..models.common.world_memory import refuse_fixed_places, vendor_config
from ..models.common.world_schedule import MODES
from .activations import Activations, Block, activations

# Nobody asks for more in one run: at 16 pictures a second 1.7 hours.
MOST_LATENT_FRAMES = 25_000
# ComfyUI's own ends.
MOST_PIXELS, MOST_BATCH = 16_384, 4096
_OWN_MEMORY = ("cuda", "xpu")
WEIGHT_BYTES = {"bf16": 2, "fp16": 2, "fp8": 1, "fp32": 4}


@dataclass(frozen=True)
class Video:
    """What to make. `frames` are pictures; `given_frames` latent ones at the beginning, which become history block by block, what
    is over from whole blocks first (`sampling.place_blocks`); `block_frames` latent ones denoised together, by default as the
    model was trained. `mode`, of worlds only: World Sampler's, by default the one that it has by default."""

    width: int
    height: int
    frames: int
    batch: int = 1
    given_frames: int = 0
    block_frames: int | None = None
    mode: str | None = None


@dataclass(frozen=True)
class Weights:
    """`dtype` is what they are kept in, `size_bytes` what they take where that is known better, `compute` what is computed in."""

    dtype: str = "bf16"
    size_bytes: int | None = None
    compute: torch.dtype = torch.bfloat16


@dataclass(frozen=True)
class Plan:
    """Bytes on the device. `cache_end_bytes` and `cache_peak_bytes` of the cache at the end and at its worst moment,
    `exact_cache_bytes` of 16 bits per value without a window; `workspace_bytes` of what attention reads through;
    `activation_bytes` of one block, the prompt and the latents; `decode_bytes` with the VAE's weights, 0 where no decoder is
    known. `fits` is None where the device's memory is not known, `longest_frames` (pictures; of whole blocks, or the video asked
    for) also where any length fits. `away_bytes`: of the cache at its worst moment, so much at least is in main memory instead;
    below 0 where the codebooks that an encoder gets copies of are more than that. Of codec "klt", whose cache grows where scenes
    change: `codebook_bytes` of one codebook more in every layer, `most_cache_bytes` at the end with one begun at every span;
    `short_spans` says so where a window makes spans too short to learn from. `merges`: tokens that look alike are counted, so
    what the cache takes is bounded from above. `recording_bytes`: of a video of segments, while the memory of one is made; 0 for
    other models and where nothing is remembered. Where attention reads a share: `tile_bytes` of the cache at the end for order
    and means of tiles, `tokens_read` of the `tokens_kept` that a block of queries reads at most; otherwise 0.
    """

    latent_frames: int
    weights_bytes: int
    exact_cache_bytes: int
    cache_end_bytes: int
    cache_peak_bytes: int
    workspace_bytes: int
    activation_bytes: int
    decode_bytes: int
    peak_bytes: int
    fits: bool | None
    longest_frames: int | None
    away_bytes: int = 0
    codebook_bytes: int = 0
    most_cache_bytes: int = 0
    short_spans: str = ""
    merges: bool = False
    recording_bytes: int = 0
    tile_bytes: int = 0
    tokens_read: int = 0
    tokens_kept: int = 0

    @property
    def sampling_bytes(self) -> int:
        """While blocks are made."""
        return self.weights_bytes + self.streamed_bytes

    @property
    def streamed_bytes(self) -> int:
        """The same with all weights elsewhere: what no offloading makes smaller."""
        return self.cache_peak_bytes - self.away_bytes + self.workspace_bytes + self.activation_bytes


def plan(
    network: NetworkShape,
    video: Video,
    config: QVGConfig,
    device_bytes: int | None = None,
    weights: Weights | None = None,
    triton: bool | None = None,
    device_type: str = "cuda",
) -> Plan:
    """Raises ConfigError for a size or length that the model cannot make, and for settings that do not fit it. `triton`: see
    `activations`."""
    run = Run(network, video, config, weights, triton, device_type)
    frames = latent_frames(video.frames, network)
    if video.given_frames > frames:
        raise ConfigError(f"given frames is {video.given_frames}, but the video has {frames} latent frames; make it longer")
    end = run.last_peak(frames)
    decode = 0 if network.decoder is None else decode_bytes(video.width, video.height, network.decoder)
    sampling = run.device_bytes(frames, end.device_bytes)
    recording = run.recording_bytes(frames)
    most = max(sampling, decode, recording)
    fits = None if device_bytes is None else most <= device_bytes
    longest = None if device_bytes is None else run.longest(device_bytes, decode)
    if fits and longest is not None:
        longest = max(longest, video.frames)  # its last block may be short
    return Plan(
        latent_frames=frames,
        weights_bytes=run.weights_bytes,
        exact_cache_bytes=run.spec.exact_bytes(run.remembered_frames(frames)),
        cache_end_bytes=end.now_bytes,
        cache_peak_bytes=end.peak_bytes,
        workspace_bytes=run.workspace_bytes(frames),
        activation_bytes=run.activation_bytes(frames),
        decode_bytes=decode,
        peak_bytes=most,
        fits=fits,
        longest_frames=longest,
        away_bytes=end.peak_bytes - end.device_bytes,
        codebook_bytes=run.spec.codebook_bytes(config) if config.codec == "klt" else 0,
        most_cache_bytes=end.now_bytes + run.further_bytes(frames),
        short_spans=run.spec.short_spans_text(run.config),
        merges=run.config.merges,
        recording_bytes=recording,
        **run.share_read(frames),
    )


class Run:
    """One model, size and setting, for videos of any length."""

    def __init__(
        self,
        network: NetworkShape,
        video: Video,
        config: QVGConfig,
        weights: Weights | None = None,
        triton: bool | None = None,
        device_type: str = "cuda",
    ):
        if device_type not in _OWN_MEMORY:
            config = config.with_changes(offload="gpu")  # main memory is what it has
        if network.context_frames is not None:
            refuse_fixed_places(config)
        self.mode = _mode(network, video, config)
        # The context that is written in one piece before every block.
        self._context_frames = network.context_frames if self.mode == "vendor" else _condition_frames(network, video)
        if self._context_frames:
            written_once = vendor_config if network.segment_frames is None else condition_config
            config = written_once(config, self._context_frames)
        self.network, self.video, self.config, self.weights = network, video, config, weights or Weights()
        self._device_type, self._triton = device_type, triton
        self.weights_bytes = _weights_bytes(network, self.weights)
        self.spec = cache_spec(network, video, self._kept_in())
        if self._context_frames:
            self.spec = replace(self.spec, chunk_frames=self._context_frames)
        self.spec.check(config)
        self.activations = self._activations(self._pass_frames, network.branches)

    def chunks(self, frames: int) -> list[int]:
        """What is committed one after the other: the blocks of a video, or a context."""
        if self._context_frames:
            return [self.remembered_frames(frames)]
        return even_chunks(frames, self._block_frames, self._lead_frames)

    def remembered_frames(self, frames: int) -> int:
        """Latent frames that memory holds at the end, the last block counted as history except where a context is chosen; none in
        a first segment that begins with a text or a picture."""
        if self.network.segment_frames is not None:
            goes_on = frames > self.network.segment_frames or self.video.given_frames > 1
            return (self._context_frames or 0) if goes_on else 0
        if self._context_frames is None:
            return frames
        return min(self._context_frames, max(frames - self._block_frames, min(frames, self._block_frames)))

    def further_bytes(self, frames: int) -> int:
        """What the cache takes at most beside the ordinary number, with a codebook begun at every span."""
        kept, chunks = self.remembered_frames(frames), self.chunks(frames)
        most, usual = (self.spec.predict(self.config, kept, chunks, codebooks).total for codebooks in ("most", None))
        return max(0, most - usual)

    def share_read(self, frames: int) -> dict[str, int]:
        """What a plan says of tiles; nothing where all is read."""
        if not self.config.skips:
            return {}
        kept, chunks = self.remembered_frames(frames), self.chunks(frames)
        tiles = self.spec.predict(self.config, kept, chunks).tiles
        read, seen = (self.spec.tokens_read(one, kept, chunks) for one in (self.config, self.config.with_changes(sparse=1.0)))
        return {"tile_bytes": tiles, "tokens_read": read, "tokens_kept": seen}

    def last_peak(self, frames: int) -> Peak:
        """How the cache stands at the end of a run of so many latent frames."""
        return self._peaks.after(self.remembered_frames(frames))

    def workspace_bytes(self, frames: int) -> int:
        """At most, of what attention reads the cache through; with the exact cache ComfyUI's attention takes a layer's keys and
        values in one piece."""
        seen = min(frames, self.config.window_frames or frames, self.remembered_frames(frames) + self._block_frames)
        joined = self.spec.exact_bytes(seen) // self.spec.layers * self.weights.compute.itemsize // 2
        as_core = self.config.codec == "none" and self.network.by_layer and not (self.config.merges or self.config.skips)
        return joined if as_core else min(tile_limit(self._device_type, self.config.workspace_mb << 20), 2 * joined)

    def activation_bytes(self, frames: int) -> int:
        """At most, of what the network and the codec work in; a short run encodes nothing."""
        works_in = self.activations
        if self.network.segment_frames is not None:  # its memory is made before the passes, see `recording_bytes`
            return works_in.total(frames, encodes=False)
        if self.mode == "persistent":  # every context pass runs over all earlier frames
            works_in = self._activations(max(self.spec.chunk_frames, frames - self._block_frames), self.network.branches)
        return works_in.total(frames, self._context_frames is not None or frames > self._frames_before_encoding)

    def device_bytes(self, frames: int, cache_peak_bytes: int) -> int:
        """While blocks are made."""
        return self.weights_bytes + cache_peak_bytes + self.workspace_bytes(frames) + self.activation_bytes(frames)

    def recording_bytes(self, frames: int) -> int:
        """While the memory of a segment is made, in one pass over what it is conditioned on; 0 where none is."""
        kept = self.remembered_frames(frames)
        if self.network.segment_frames is None or not kept:
            return 0
        return self.weights_bytes + self.last_peak(frames).device_bytes + self._activations(kept, branches=1).total(frames)

    def longest(self, device_bytes: int, decode: int) -> int | None:
        """Pictures of the longest video of whole blocks that fits; 0 if none does, None if any does."""
        if decode > device_bytes:
            return 0
        # Of a longer video nothing takes less.
        lengths = self._lengths()
        fitting = bisect_right(lengths, False, key=lambda frames: self._takes(frames) > device_bytes)
        if fitting == len(lengths) and self.network.most_frames is None:
            return None
        return pictures(lengths[fitting - 1], self.network) if fitting else 0

    def _takes(self, frames: int) -> int:
        return max(self.device_bytes(frames, self.last_peak(frames).device_bytes), self.recording_bytes(frames))

    def _lengths(self) -> range:
        """Latent frames of videos of whole blocks, up to the first that is as long as any may be."""
        each = self._block_frames
        most, lead = self.network.most_frames or MOST_LATENT_FRAMES, self.network.segment_frames or self._lead_frames
        return range(lead or each, lead + -(-most // each) * each + 1, each)

    @property
    def _pass_frames(self) -> int:
        """Of the longest pass; without a video to go on from, a first segment is all new, or has its picture in every pass."""
        whole = self.network.segment_frames
        return self.spec.chunk_frames if whole is None else whole if self.video.given_frames <= 1 else self._block_frames

    @property
    def _block_frames(self) -> int:
        return _block_frames(self.video, self.network)

    @property
    def _lead_frames(self) -> int:
        return self.video.given_frames % self._block_frames

    @cached_property
    def _frames_before_encoding(self) -> int:
        """Of the video before the first block at whose end a span is encoded."""
        if self.config.codec == "none":
            return MOST_LATENT_FRAMES
        growth = EvenGrowth(self.spec.check(self.config), self.config.spans_per_codebook, self._lead_frames)
        return growth.frames_before_encoding()

    @cached_property
    def _peaks(self) -> EvenPeaks | MergedPeaks:
        lead = 0 if self._context_frames else self._lead_frames
        return self.spec.even_peaks(self.config, lead, self.weights.compute, self.network.by_layer)

    def _kept_in(self) -> torch.dtype:
        """In ComfyUI's networks codec "none" keeps what is computed; otherwise exact frames take 16 bits."""
        compute, exact = self.weights.compute, self.config.codec == "none" and self.network.by_layer
        return compute if exact or compute.itemsize == 2 else torch.bfloat16

    def _activations(self, pass_frames: int, branches: int) -> Activations:
        """Of passes over at most so many latent frames, and so many texts."""
        spec, video, network = self.spec, self.video, self.network
        pixels = network.decoder.latent_pixels if network.decoder else 1
        policy = spec.check(self.config)
        block = Block(
            batch=video.batch * branches,
            tokens=video.batch * branches * pass_frames * spec.tokens_per_frame,
            frame_values=video.batch * network.channels * (video.width // pixels) * (video.height // pixels),
            span_tokens=video.batch * policy.span_chunks * spec.chunk_frames * spec.tokens_per_frame,
        )
        by_triton = False if self.config.backend == "torch" else self._triton
        compute, kept = self.weights.compute.itemsize, WEIGHT_BYTES[self.weights.dtype]
        return activations(network, block, self.config, compute, kept, by_triton)


def cache_spec(network: NetworkShape, video: Video, dtype: torch.dtype = torch.bfloat16) -> CacheSpec:
    """What the model asks of its cache for such a video. Raises ConfigError for a size that it cannot make."""
    side = network.token_pixels
    for name, pixels in (("width", video.width), ("height", video.height)):
        if not side <= pixels <= MOST_PIXELS or pixels % side:
            near = max(side, round(min(pixels, MOST_PIXELS) / side) * side)
            end = f" up to {MOST_PIXELS}" if pixels > MOST_PIXELS else ""
            rule = f"{network.title} makes multiples of {side} pixels{end}; use {near}"
            raise ConfigError(f"{name} is {shown(pixels, 20)}, but {rule}")
    for name, value, least, most in (
        ("batch", video.batch, 1, MOST_BATCH),
        ("given frames", video.given_frames, 0, MOST_LATENT_FRAMES),
        ("block frames", _block_frames(video, network), 1, MOST_LATENT_FRAMES),
    ):
        if not least <= value <= most:
            raise ConfigError(f"{name} is {shown(value, 20)}, but must be from {least} to {most}; choose one in that range")
    return CacheSpec(
        layers=network.layers,
        heads=network.heads,
        head_dim=network.head_dim,
        tokens_per_frame=(video.width // side) * (video.height // side),
        chunk_frames=_block_frames(video, network),
        batch=video.batch,
        dtype=dtype,
    )


def _block_frames(video: Video, network: NetworkShape) -> int:
    if network.segment_frames is not None and video.block_frames is None:
        return network.segment_frames - network.condition_frames
    return network.chunk_frames if video.block_frames is None else video.block_frames


def _condition_frames(network: NetworkShape, video: Video) -> int | None:
    """What a segment remembers: all of it but its new frames. None for models that make no segments."""
    if network.segment_frames is None:
        return None
    new = _block_frames(video, network)
    if not 1 <= new < network.segment_frames:
        raise ConfigError(
            f"block frames is {new}, but of a segment's {network.segment_frames} latent frames from 1 to "
            f"{network.segment_frames - 1} are new; use {network.segment_frames - network.condition_frames}, as {network.title} "
            "was released"
        )
    return network.segment_frames - new


def latent_frames(frames: int, network: NetworkShape) -> int:
    """Latent frames of so many pictures. Raises ConfigError for a number that the model cannot make."""
    each = network.frame_pictures
    if frames < 1 or (frames - 1) % each:
        low = max(1, (frames - 1) // each * each + 1)
        near = shown(low, 20) if frames < 1 else f"{shown(low, 20)} or {shown(low + each, 20)}"
        raise ConfigError(
            f"frames is {shown(frames, 20)}, but {network.title} makes 1, {1 + each}, {1 + 2 * each} ... pictures; use {near}"
        )
    latent, most = 1 + (frames - 1) // each, network.most_frames or MOST_LATENT_FRAMES
    if latent > most:
        where = "that are planned for" if network.most_frames is None else f"at which a session of {network.title} ends"
        raise ConfigError(f"frames is {shown(frames, 20)}, more than the {pictures(most, network)} {where}; plan a shorter one")
    return latent


def pictures(latent: int, network: NetworkShape) -> int:
    """Pictures of so many latent frames."""
    return 1 + (latent - 1) * network.frame_pictures if latent else 0


def _mode(network: NetworkShape, video: Video, config: QVGConfig) -> str | None:
    """How a world keeps its memory; None for other models. Raises ConfigError for what it cannot."""
    if network.context_frames is None:
        if video.mode is not None:
            raise ConfigError(
                f"mode is {quoted(video.mode)}, but {network.title} is no world, whose memory has modes; leave it out"
            )
        return None
    if config.window_frames is not None:
        raise ConfigError(
            f"window_frames is {config.window_frames}, but which frames a world remembers is chosen by its mode; leave it out"
        )
    mode = MODES[0] if video.mode is None else video.mode
    if mode not in MODES:
        raise ConfigError(f"mode is {quoted(mode)}, but must be one of {', '.join(MODES)}; choose one of these")
    return mode


def _weights_bytes(network: NetworkShape, weights: Weights) -> int:
    if weights.dtype not in WEIGHT_BYTES:
        raise ConfigError(f"weights is {quoted(weights.dtype)}, but must be one of {', '.join(WEIGHT_BYTES)}")
    if weights.size_bytes is not None:
        return weights.size_bytes
    each = WEIGHT_BYTES[weights.dtype]
    others = max(2, each)
    size = network.layer_parameters * each + (network.parameters - network.layer_parameters) * others
    return size + network.float32_parameters * (4 - others)
