"""A model that methods are judged on: the same video with the exact cache and with a method's; results are kept in a folder."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..cache import KVCache
from ..cache.spec import CacheBytes, CacheSpec
from ..config import QVGConfig
from ..demo.memories import EXACT
from ..demo.walk import GIVEN_FRAMES
from ..errors import CacheError
from ..files import written_whole
from ..metrics import ssim
from ..study.run import StudyRun
from . import openings

Pictures = NDArray[np.uint8]
# How a video's memory is kept.
Settings = QVGConfig | StudyRun
# A frozen record: all that a video depends on beside the memory.
Film = TypeVar("Film")

# Below this PSNR against the exact run a frame counts as divergent: the difference is plain to see.
DIVERGENT_DB = 30.0


class Instrument(NamedTuple):
    """A trained model that methods are judged on."""

    name: str
    spec: CacheSpec
    given_frames: int


class Made(NamedTuple):
    """A video that was made: uint8 [F, P, P, 3], the cache's bytes at the end by component and at most, and tokens in spans."""

    pictures: Pictures
    bytes: dict[str, int]
    peak_bytes: int
    encoded_tokens: int


@dataclass(frozen=True)
class WalkResult:
    """A method's video beside the exact one. `errors` and `similarity`: mean squared error (of 0..1) and SSIM of every frame.
    `revisit_db`: PSNR between visits of a place; of a film whose truth is known, against that."""

    errors: list[float]
    similarity: list[float]
    bytes: dict[str, int]
    peak_bytes: int
    encoded_tokens: int
    revisit_db: float | None
    seconds_per_frame: float

    def psnr_db(self, first: int = GIVEN_FRAMES, last: int | None = None) -> float:
        """PSNR of the mean squared error of frames first to last, 100 at most; the given frames do not count."""
        error = float(np.mean(self.errors[first:last]))
        return min(100.0, -10 * float(np.log10(max(error, 1e-10))))

    def frame_psnr_db(self) -> list[float]:
        """PSNR of every frame, 100 at most."""
        return [min(100.0, -10 * float(np.log10(max(error, 1e-10)))) for error in self.errors]

    def first_divergent_frame(self) -> int:
        """The first frame below 30 dB; the number of frames if there is none."""
        low = [index for index, value in enumerate(self.frame_psnr_db()) if value < DIVERGENT_DB]
        return low[0] if low else len(self.errors)


class Judge(ABC, Generic[Film]):
    """Makes videos and remembers: results are kept in a folder, so that a broken-off run goes on where it stopped.

    sources      what results are kept under beside their settings; None: the digest of the code that makes them
    check_bytes  raise CacheError where bytes in memory are not those that were predicted
    """

    weights_file: Path

    def __init__(self, folder: Path, sources: str | None = None, check_bytes: bool = True):
        self.folder, self._sources, self._check_bytes = folder, sources, check_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self.weights = hashlib.sha256(self.weights_file.read_bytes()).hexdigest()

    @abstractmethod
    def make(self, case: Film, config: Settings) -> Made:
        """The video with a method's cache."""

    @abstractmethod
    def revisit_db(self, case: Film, pictures: Pictures) -> float | None:
        """See `WalkResult`."""

    def exact(self, case: Film) -> Pictures:
        """Pictures of the exact run: uint8 [F, P, P, 3]."""
        path = self._exact_path(case)
        kept = self.finished_exact(case)
        if kept is not None:
            return kept
        pictures = self.make(case, EXACT).pictures
        packed = io.BytesIO()  # the archive's writer, told that the disk is full, raises something else when it is closed
        np.savez_compressed(packed, pictures=pictures)
        with written_whole(path) as unfinished:
            unfinished.write_bytes(packed.getvalue())
        return pictures

    def compare(self, case: Film, config: Settings) -> WalkResult:
        """One method on one video, from the folder if it is there."""
        kept = self.finished(case, config)
        if kept is not None:
            return kept
        result = self.measure(case, config)
        with written_whole(self.path(case, config)) as unfinished:
            unfinished.write_text(json.dumps(asdict(result)), encoding="utf-8")
        return result

    def path(self, case: Film, config: Settings) -> Path:
        """Where one method's result on one video is, or will be."""
        return self.folder / f"walk-{self._key(case, config)}.json"

    def finished(self, case: Film, config: Settings) -> WalkResult | None:
        """One method on one video, if it is in the folder."""
        path = self.path(case, config)
        return WalkResult(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def finished_exact(self, case: Film) -> Pictures | None:
        """Pictures of the exact run, if they are in the folder."""
        path = self._exact_path(case)
        if not path.is_file():
            return None
        with np.load(path) as file:
            return np.asarray(file["pictures"])

    def measure(self, case: Film, config: Settings) -> WalkResult:
        """One method on one video, made now."""
        exact = self.exact(case)
        started = time.perf_counter()
        made = self.make(case, config)
        seconds = (time.perf_counter() - started) / len(exact)
        errors = ((made.pictures.astype(np.float64) - exact) / 255) ** 2
        alike = ssim(torch.from_numpy(exact), torch.from_numpy(made.pictures))
        revisit = self.revisit_db(case, made.pictures)
        kept = (made.bytes, made.peak_bytes, made.encoded_tokens)
        return WalkResult(errors.mean((1, 2, 3)).tolist(), alike.tolist(), *kept, revisit, seconds)

    def _exact_path(self, case: Film) -> Path:
        return self.folder / f"exact-{self._key(case, EXACT)}.npz"

    def _key(self, case: Any, config: Settings) -> str:
        """Everything that a result depends on."""
        sources = source_digest() if self._sources is None else self._sources
        facts = json.dumps([asdict(case), asdict(config), self.weights, torch.__version__, sources], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:20]


def encoded_tokens(cache: KVCache) -> int:
    """In spans, or, where tokens are merged, in what they are merged into."""
    if cache.merger is not None:
        return cache.merger.spans * cache.merger.span_tokens
    return sum(cache.layout.spans) * cache.spec.tokens_per_frame


@cache
def source_digest() -> str:
    """Changes when code that a walk runs through does; comments, layout and docstrings do not count."""
    root = Path(__file__).resolve().parents[2]
    rooms = ("attention", "cache", "camera", "codec", "demo", "models", "positions", "sampling", "study")
    files = [path for name in ("kernels", *(f"qvg/{room}" for room in rooms)) for path in sorted((root / name).rglob("*.py"))]
    files += [root / "qvg" / f"{name}.py" for name in ("config", "metrics")]
    files.append(Path(openings.__file__).resolve())
    digest = hashlib.sha256()
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                body[0].value = ast.Constant(None)
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def check_bytes(cache: KVCache, config: Settings, frames: int, counted: CacheBytes) -> None:
    """Raise CacheError unless what is counted after so many frames is what was predicted, where anything was."""
    if isinstance(config, StudyRun):
        predicted = config.predicted(cache.spec, frames)
    else:
        predicted = cache.spec.predict(config, frames, codebooks=cache.codebooks(), rows=cache.merged_rows)
    if predicted is not None and counted != predicted:
        raise CacheError(f"{counted} is in memory, but {predicted} was predicted; this is a bug, please report it")
