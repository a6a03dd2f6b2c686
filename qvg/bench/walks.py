"""Methods judged by the video: the same walk through the demo world with the exact cache and with a method's."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cache import KVCache
from ..cache.spec import CacheBytes
from ..camera import visits
from ..config import QVGConfig
from ..demo.command import EXACT, GIVEN_FRAMES, VISIT_GAP_FRAMES, Walk, picture, plan_walk, revisit_psnr_db, settings
from ..errors import CacheError
from ..files import written_whole
from ..metrics import ssim
from ..models.demo_world import WEIGHTS, DemoWorld, DemoWorldDenoiser, load_demo_world
from ..sampling import generate
from ..sampling.autoregressive import Denoiser
from ..study.run import StudyRun
from . import openings
from .openings import Scene

Pictures = NDArray[np.uint8]
# How a walk's memory is kept.
Settings = QVGConfig | StudyRun

# Loops of 34 and 32 frames: in 70 frames every place is seen twice.
PATHS = ("d-10,s-7,a-10,w-7", "s-8,d-8,w-8,a-8")
FIRST_SEED = 5001
# Below this PSNR against the exact run a frame counts as divergent: the difference is plain to see.
DIVERGENT_DB = 30.0


@dataclass(frozen=True)
class Case:
    """One world, one path, one seed."""

    seed: int
    path: str
    frames: int

    @property
    def plan(self) -> Walk:
        """The walk."""
        return plan_walk(self.path, self.frames, self.seed)

    def given(self, model: DemoWorld) -> list[Tensor]:
        """The first frames as they really look."""
        return self.plan.given(model)


@dataclass(frozen=True)
class WalkResult:
    """A method's walk beside the exact one. `errors` and `similarity`: mean squared error (of 0..1) and SSIM of every frame."""

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


def cases(worlds: int, paths: int, frames: int, first_seed: int = FIRST_SEED) -> list[Case]:
    """Worlds that were not trained on, each walked through on every path."""
    return [Case(first_seed + world, path, frames) for world in range(worlds) for path in PATHS[:paths]]


class Walker:
    """Walks and remembers: results are kept in a folder, so that a broken-off run goes on where it stopped.

    sources      what results are kept under beside their settings; None: the digest of the code that makes them
    check_bytes  raise CacheError where bytes in memory are not those that were predicted
    """

    def __init__(self, folder: Path, sources: str | None = None, check_bytes: bool = True):
        self.folder, self._sources, self._check_bytes = folder, sources, check_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self.weights = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
        self._model: DemoWorld | None = None

    def exact(self, case: Case | Scene) -> Pictures:
        """Pictures of the exact run: uint8 [F, P, P, 3]."""
        path = self.folder / f"exact-{self._key(case, EXACT)}.npz"
        if path.is_file():
            with np.load(path) as file:
                return np.asarray(file["pictures"])
        pictures = self._walk(case, EXACT)[0]
        packed = io.BytesIO()  # the archive's writer, told that the disk is full, raises something else when it is closed
        np.savez_compressed(packed, pictures=pictures)
        with written_whole(path) as unfinished:
            unfinished.write_bytes(packed.getvalue())
        return pictures

    def compare(self, case: Case | Scene, config: Settings) -> WalkResult:
        """One method on one walk, from the folder if it is there."""
        path = self.folder / f"walk-{self._key(case, config)}.json"
        if path.is_file():
            return WalkResult(**json.loads(path.read_text(encoding="utf-8")))
        result = self.measure(case, config)
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps(asdict(result)), encoding="utf-8")
        return result

    def measure(self, case: Case | Scene, config: Settings) -> WalkResult:
        """One method on one walk, walked now."""
        exact = self.exact(case)
        started = time.perf_counter()
        pictures, cache_bytes, peak, encoded = self._walk(case, config)
        seconds = (time.perf_counter() - started) / case.frames
        errors = ((pictures.astype(np.float64) - exact) / 255) ** 2
        alike = ssim(torch.from_numpy(exact), torch.from_numpy(pictures))
        pairs = visits(case.plan.positions, VISIT_GAP_FRAMES)
        return WalkResult(
            errors.mean((1, 2, 3)).tolist(),
            alike.tolist(),
            cache_bytes,
            peak,
            encoded,
            revisit_psnr_db(list(pictures), pairs),
            seconds,
        )

    def _walk(self, case: Case | Scene, config: Settings) -> tuple[Pictures, dict[str, int], int, int]:
        """Pictures, bytes by component at the end, the peak, and tokens in spans. `generate` fails if the codec was not called as
        often as it should have been; the bytes must be those that were predicted."""
        if self._model is None:
            self._model = load_demo_world()
        model, plan, pictures, peak = self._model, case.plan, list[NDArray[np.uint8]](), 0
        walker: Denoiser = DemoWorldDenoiser(model)
        if isinstance(config, StudyRun):
            memory = config.cache(model.config.cache_spec(), model.config.rope(), case.frames)
            walker = config.denoiser(walker)
        else:
            memory = KVCache(model.config.cache_spec(), config, model.config.rope())
        with memory as cache:
            for block in generate(walker, cache, plan.origins, settings(plan.seed), case.given(model)):
                pictures.append(picture(block.latent))
                peak, counted = max(peak, block.cache.total), block.cache
                if self._check_bytes:
                    _check_bytes(cache, config, len(pictures), counted)
            encoded = sum(cache.layout.spans) * cache.spec.tokens_per_frame
            if cache.merger is not None:
                encoded = cache.merger.spans * cache.merger.span_tokens
        return np.stack(pictures), counted.by_component(), peak, encoded

    def _key(self, case: Case | Scene, config: Settings) -> str:
        """Everything that a result depends on."""
        sources = source_digest() if self._sources is None else self._sources
        facts = json.dumps([asdict(case), asdict(config), self.weights, torch.__version__, sources], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:20]


def _check_bytes(cache: KVCache, config: Settings, frames: int, counted: CacheBytes) -> None:
    if isinstance(config, StudyRun):
        predicted = config.predicted(cache.spec, frames)
    else:
        predicted = cache.spec.predict(config, frames, codebooks=cache.codebooks(), rows=cache.merged_rows)
    if predicted is not None and counted != predicted:
        raise CacheError(f"{counted} is in memory, but {predicted} was predicted; this is a bug, please report it")


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


def pooled(results: Sequence[WalkResult], first: int, last: int) -> float:
    """Mean PSNR of a window of frames over cases."""
    return float(np.mean([result.psnr_db(first, last) for result in results]))
