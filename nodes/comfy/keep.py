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

from ...qvg.files import written_new
from ...qvg.safetensors_writer import in_memory, write_safetensors
from ...qvg.session.finished_blocks import FinishedBlocks, read_blocks, remove_blocks, unread_parts
from ...qvg.session.owners import abandoned, claim, own_folder
from .output_names import save_names

logger = logging.getLogger(__name__)

FOLDER = "QVG"
INTERRUPTED, UNDECODED = f"{FOLDER}/interrupted", f"{FOLDER}/undecoded"
_STEM, _GIVEN, _PREFIX = "unfinished", "given_frames", "prefix"
# Of this process: what the disk had no room for as a latent.
_LEFT: list[Path] = []


class KeptRun:
    """Of one run: its finished blocks, on disk until it has ended. Where the disk takes none the log says so, and it goes on."""

    def __init__(self, base_model: Any, given_frames: int):
        self._base, self._given = base_model, given_frames
        self._blocks = FinishedBlocks(own_folder(_folder(), _STEM))
        self._told = False

    def add(self, latent: Tensor) -> None:
        """A finished block [B, C, F, h, w], as the network knows it; given ones too."""
        self._blocks.add(_shown(latent, self._base), **{_GIVEN: self._given, _PREFIX: INTERRUPTED})
        if not self._told and self._blocks.failed is None:
            self._told = True
            logger.info(
                "QVG: finished blocks are in %s while the run goes on; they go when it ends well; after a kill the next start "
                "of ComfyUI makes a latent of them",
                self._blocks.folder,
            )

    def keep(self, latents: Sequence[Tensor]) -> None:
        """The run did not end well: leave its blocks, if any was generated, as one file that LoadLatent reads."""
        generated = sum(latent.shape[2] for latent in latents) > self._given
        # The blocks go when the latent is there: a kill, meanwhile, leaves them.
        if not generated or keep_latent(torch.cat([_shown(each, self._base) for each in latents], 2), INTERRUPTED):
            self.discard()
        else:
            _LEFT.append(self._blocks.folder)

    def discard(self) -> None:
        """They are in the result."""
        self._blocks.remove()


@contextmanager
def finished_blocks(base_model: Any, given_frames: int, wanted: bool) -> Iterator[KeptRun | None]:
    """For a run of which `given_frames` are there already; None where nothing is to be kept. Call `keep` when the run did not end
    well."""
    blocks = KeptRun(base_model, given_frames) if wanted else None
    if wanted:
        rescue_killed_runs()
    yield blocks
    if blocks is not None:
        blocks.discard()


@contextmanager
def until_decoded(samples: Tensor) -> Iterator[None]:
    """A sampled LATENT is on disk while it is decoded, which takes more memory than anything before, and stays there where that
    fails. Not after an interrupt: ComfyUI still has it."""
    run = FinishedBlocks(own_folder(_folder(), _STEM))
    run.add(samples.float(), **{_GIVEN: 0, _PREFIX: UNDECODED})
    try:
        yield
    except mm.InterruptProcessingException:
        raise
    except Exception:
        keep_latent(samples, UNDECODED, "not decoded:")
        raise
    finally:
        run.remove()


def rescue_killed_runs() -> None:
    """Make latents of what killed processes have left, and runs that found no room."""
    left, _LEFT[:] = [*abandoned(_folder(), _STEM), *_LEFT], []
    for folder in left:
        mine = claim(folder, _STEM)
        if mine is None:
            continue
        try:
            _rescue(mine)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            # Of another program, or of another version: no reason for the pack, or for a run, not to begin.
            logger.warning("QVG: what an earlier run left in %s is no video of ours (%s); move it away", mine, error)


def _rescue(mine: Path) -> None:
    kept = read_blocks(mine)
    facts = kept.facts[0] if kept.facts else {}
    generated = sum(block.shape[2] for block in kept.blocks) > facts.get(_GIVEN, 0)
    prefix = UNDECODED if facts.get(_PREFIX) == UNDECODED else INTERRUPTED
    if generated and not keep_latent(torch.cat(kept.blocks, 2), prefix, "an earlier run left"):
        _LEFT.append(mine)
        return
    unread = unread_parts(mine, kept)
    if unread:
        logger.warning("QVG: %s in %s is damaged, and cannot be joined with what came before; it stays there", unread[0], mine)
    remove_blocks(mine, end=kept.parts)


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
