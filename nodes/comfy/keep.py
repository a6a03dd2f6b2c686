"""Latents that must not be lost: finished blocks while a run goes on, those of a run that did not end well, a video that was not
decoded. All lie in the output folder's QVG, and the log says how to open them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import folder_paths
import torch
from torch import Tensor

from ...qvg.errors import CacheFileError
from ...qvg.files import written_new
from ...qvg.safetensors_writer import in_memory, write_safetensors
from ...qvg.session.unfinished import UnfinishedRun, abandoned, claim, read_blocks
from .output_names import save_names

logger = logging.getLogger(__name__)

FOLDER = "QVG"
INTERRUPTED, UNDECODED = f"{FOLDER}/interrupted", f"{FOLDER}/undecoded"
_STEM, _GIVEN, _PREFIX = "unfinished", "given_frames", "prefix"
# Of this process, for which the disk had no room as latents.
_LEFT: list[Path] = []


class FinishedBlocks:
    """Of one run, on disk until it has ended. Where the disk takes none, the log says so and the run goes on."""

    def __init__(self, base_model: Any, given_frames: int):
        self._base, self._given = base_model, given_frames
        self._run: UnfinishedRun | None = None
        self._failed = False

    def add(self, latent: Tensor) -> None:
        """A finished block [B, C, F, h, w], as the network knows it; given ones too."""
        if self._failed:
            return
        try:
            if self._run is None:
                self._run = UnfinishedRun(_folder(), _STEM, {_GIVEN: self._given, _PREFIX: INTERRUPTED})
                logger.info(
                    "QVG: finished blocks are in %s while the run goes on; the file goes when it ends well, and after a kill the "
                    "next start of ComfyUI makes a latent of it",
                    self._run.path,
                )
            self._run.add(_shown(latent, self._base))
        except OSError as error:
            self._failed = True
            logger.warning("QVG: finished blocks cannot be kept on disk while the run goes on (%s); free space there", error)

    def keep(self, latents: Sequence[Tensor]) -> None:
        """The run did not end well: leave its blocks, if any was generated, as one file that LoadLatent reads."""
        generated = sum(latent.shape[2] for latent in latents) > self._given
        # The blocks go when the latent is there: a second kill, meanwhile, finds them.
        if not generated or keep_latent(torch.cat([_shown(each, self._base) for each in latents], 2), INTERRUPTED):
            self.discard()
        elif self._run is not None:
            self._run.close()
            _LEFT.append(self._run.path)

    def discard(self) -> None:
        """They are in the result."""
        if self._run is not None:
            self._run.discard()


@contextmanager
def finished_blocks(base_model: Any, given_frames: int, wanted: bool) -> Iterator[FinishedBlocks | None]:
    """For a run of which `given_frames` are there already; None where nothing is to be kept. Call `keep` when the run did not end
    well."""
    blocks = FinishedBlocks(base_model, given_frames) if wanted else None
    if wanted:
        rescue_killed_runs()
    yield blocks
    if blocks is not None:
        blocks.discard()


@contextmanager
def until_decoded(samples: Tensor) -> Iterator[None]:
    """A sampled LATENT is on disk while it is decoded, which takes more memory than anything before, and stays there where that
    fails. Not after an interrupt: ComfyUI still has it."""
    run: UnfinishedRun | None = None
    try:
        run = UnfinishedRun(_folder(), _STEM, {_GIVEN: 0, _PREFIX: UNDECODED})
        run.add(samples.float())
    except OSError as error:
        logger.warning("QVG: the latent cannot be kept on disk while it is decoded (%s); free space there", error)
    try:
        yield
    except mm.InterruptProcessingException:
        raise
    except Exception:
        keep_latent(samples, UNDECODED, "not decoded:")
        raise
    finally:
        if run is not None:
            run.discard()


def rescue_killed_runs() -> None:
    """Make latents of what killed processes have left, and runs that found no room."""
    left, _LEFT[:] = [*abandoned(_folder(), _STEM), *_LEFT], []
    for path in left:
        mine = claim(path, _STEM)
        if mine is None:
            continue
        try:
            about, blocks = read_blocks(mine)
            generated = sum(block.shape[2] for block in blocks) > int(about.get(_GIVEN, 0))
            if not generated or keep_latent(torch.cat(blocks, 2), _known_prefix(about), "an earlier run left"):
                mine.unlink()
            else:
                _LEFT.append(mine)
        except (OSError, CacheFileError, RuntimeError, IndexError, TypeError, ValueError) as error:
            logger.warning("QVG: what a killed run left in %s cannot be read (%s); delete it", mine, error)


def _known_prefix(about: dict[str, Any]) -> str:
    return UNDECODED if about.get(_PREFIX) == UNDECODED else INTERRUPTED


def _folder() -> Path:
    return Path(folder_paths.get_output_directory(), FOLDER)


def keep_latent(samples: Tensor, prefix: str, why: str = "kept") -> bool:
    """Save samples [B, C, F, h, w] as LATENTs are, in one file that LoadLatent reads: in the output folder, or in temp where that
    is full. -> whether they are in the output folder"""
    reasons = []
    for folder in (folder_paths.get_output_directory(), folder_paths.get_temp_directory()):
        try:
            path = _save(samples, folder, prefix)
        except OSError as error:
            reasons.append(f"{folder}: {error}")
            continue
        if reasons:
            logger.warning("QVG: %s; free space there, and move the frames before ComfyUI empties its temp folder", reasons[0])
        logger.info("QVG: %s %d finished frames in %s; %s", why, samples.shape[2], path, _how_to_open(path))
        return not reasons
    logger.warning("QVG: the finished frames could not be kept (%s); free space on these disks", "; ".join(reasons))
    return False


def _shown(latent: Tensor, base_model: Any) -> Tensor:
    """As LATENTs are. On the CPU: where the device is out of memory there is no room to join them on it."""
    shown: Tensor = base_model.process_latent_out(latent.cpu().float())
    return shown


def _save(samples: Tensor, folder: str, prefix: str) -> Path:
    tensors = {"latent_tensor": samples.cpu().float().contiguous(), "latent_format_version_0": torch.tensor([])}
    names, _ = save_names(prefix, folder, ".latent")
    with written_new(names) as new:
        write_safetensors(new.unfinished, in_memory(tensors), {})
    return new.path


def _how_to_open(path: Path) -> str:
    """LoadLatent lists the files of the input folder, and takes others by name alone."""
    kind = "output" if path.is_relative_to(folder_paths.get_output_directory()) else "temp"
    folder = folder_paths.get_output_directory() if kind == "output" else folder_paths.get_temp_directory()
    return (
        f"copy it to {folder_paths.get_input_directory()} and press R in the page, then LoadLatent lists it; a program names it "
        f"'{path.relative_to(folder).as_posix()} [{kind}]'"
    )
