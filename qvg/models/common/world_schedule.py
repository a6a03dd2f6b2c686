"""When what is computed: noise levels, chunks, and three ways to keep a memory. Whole numbers only.

vendor       before every chunk the selected frames are run through the network again, see each other and nothing else, and
             become the whole memory: what the official pipeline does
persistent   all frames are run again, but only the newest chunk's keys and values are added, and older ones stay as they were
             written: what Quant-VideoGen does
incremental  only the newest chunk is run, attending to the memory and to itself; ours: the work grows with n instead of n**2, and
             earlier frames never see later ones
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import ConfigError

CHUNK_FRAMES = 4
# Latent frames of a session: the whole chunks among the 241 positions of the official rotary table.
MOST_FRAMES = 240
# Finished frames, and a given first picture, are shown to the network at this timestep of 1000 and not at 0.
CONTEXT_TIMESTEP = 14.0
MODES = ("vendor", "persistent", "incremental")
# Video frames of a latent frame, after the first, which is one.
_VIDEO_FRAMES = 4


@dataclass(frozen=True)
class ChunkPlan:
    """One chunk's work. Frames are latent frames, counted from 0.

    encode   frames of the context pass, ascending; none before the first chunk
    store    those of them whose keys and values are added to the memory
    context  what the memory holds when the chunk is painted, ascending
    afresh   the memory is emptied before the context pass
    recalls  the context pass attends to the memory, and not only to its own frames
    """

    index: int
    frames: range
    encode: tuple[int, ...]
    store: tuple[int, ...]
    context: tuple[int, ...]
    afresh: bool = False
    recalls: bool = False

    @property
    def positions(self) -> range:
        """Where rotary encoding places the chunk: K..K+3. Memory has 0..K-1, whatever frames it holds."""
        return range(len(self.context), len(self.context) + len(self.frames))

    @property
    def encode_positions(self) -> tuple[int, ...]:
        """Where it places the frames of the context pass."""
        places = {frame: place for place, frame in enumerate(self.context)}
        return tuple(places[frame] for frame in self.encode)

    @property
    def video_frames(self) -> range:
        """The video's frames that the chunk decodes to, counted from 0."""
        return range(video_frames(self.frames.start), video_frames(self.frames.stop))

    def attended_pairs(self, steps: int, layers: int = 1) -> int:
        """Pairs of a query frame and a key frame that the context pass and `steps` denoise steps compute."""
        own, memory = len(self.encode), len(self.context) - len(self.store) if self.recalls else 0
        chunk = len(self.frames)
        return layers * (own * (own + memory) + steps * chunk * (chunk + len(self.context)))


def plan_chunk(index: int, mode: str, select: Callable[[int], Sequence[int]] | None = None) -> ChunkPlan:
    """What chunk `index` needs. `select` gives the frames that the chunk starting at a frame sees; None: all before it.

    Raises ConfigError for an unknown mode, and for a selection in a mode whose memory is one unbroken history.
    """
    if mode not in MODES:
        raise ConfigError(f"mode is {mode!r}, but must be one of {', '.join(map(repr, MODES))}; choose one of these")
    if select is not None and mode != "vendor":
        raise ConfigError(f"mode {mode!r} keeps one unbroken history, so frames cannot be selected; use mode 'vendor'")
    current = index * CHUNK_FRAMES
    chunk, history = range(current, current + CHUNK_FRAMES), tuple(range(current))
    if mode == "vendor":
        selected = history if select is None else tuple(select(current))
        return ChunkPlan(index, chunk, selected, selected, selected, afresh=True)
    newest = history[-CHUNK_FRAMES:]
    if mode == "persistent":
        return ChunkPlan(index, chunk, history, newest, history)
    return ChunkPlan(index, chunk, newest, newest, history, recalls=True)


def timesteps(steps: int, shift: float) -> tuple[float, ...]:
    """steps + 1 timesteps from 1000 down to 0, bent by `shift` towards noise: 8 for Wan, 5 for Hunyuan, 4 steps each."""
    if steps < 1 or shift <= 0:
        raise ConfigError(f"steps {steps} and shift {shift} must be at least 1 and above 0; use 4 steps and a shift of 8")
    even = [1 - step / steps for step in range(steps + 1)]
    return tuple(1000 * shift * t / (1 + (shift - 1) * t) for t in even)


def video_frames(latent_frames: int) -> int:
    """Video frames of so many latent frames: 13 of the first chunk of four, 16 of every later one."""
    return max(0, _VIDEO_FRAMES * latent_frames - _VIDEO_FRAMES + 1)


def chunks_of(latent_frames: int) -> int:
    """Chunks of a video. Raises ConfigError unless they are whole."""
    if latent_frames < 1 or latent_frames % CHUNK_FRAMES:
        fitting = max(1, round(latent_frames / CHUNK_FRAMES)) * CHUNK_FRAMES
        raise ConfigError(
            f"a world of {latent_frames} latent frames is not whole chunks of {CHUNK_FRAMES}; use {fitting} latent frames, "
            f"{video_frames(fitting)} video frames"
        )
    return latent_frames // CHUNK_FRAMES


def check_frames(latent_frames: int) -> None:
    """Raise ConfigError unless a camera may walk through a world for so many frames."""
    chunks_of(latent_frames)
    if latent_frames > MOST_FRAMES:
        raise ConfigError(
            f"the camera walks for {latent_frames} latent frames, but a session has at most {MOST_FRAMES}; let it walk for "
            f"these, {video_frames(MOST_FRAMES)} video frames, or fewer"
        )


def latent_frames(frames: int) -> int:
    """Latent frames of a video of `frames` frames. Raises ConfigError for a length that no latent decodes to."""
    if frames < 1 or (frames - 1) % _VIDEO_FRAMES:
        fitting = max(0, round((frames - 1) / _VIDEO_FRAMES)) * _VIDEO_FRAMES + 1
        raise ConfigError(f"a video of {frames} frames is not 1 and a multiple of {_VIDEO_FRAMES}; use {fitting}")
    return (frames - 1) // _VIDEO_FRAMES + 1
