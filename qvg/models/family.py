"""What the pack knows of one model family, in one record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from ..camera.selection import MemoryRule
from .common.checkpoint import CausalCheckpoint
from .common.found import AUTO, Members
from .common.lora import Lora
from .common.shape import NetworkShape
from .common.variants import CausalVariant
from .common.weight_files import WeightFile


class Ability(Enum):
    """What a family can make."""

    TEXT = "text to video"
    PICTURE = "begins with a picture"
    CAMERA = "camera"
    WORLD = "world that is walked through"


@dataclass(frozen=True)
class Licence:
    """Of the weights: its name, where to read it, and what it excludes, as a sentence."""

    name: str
    link: str
    excludes: str = ""


@dataclass(frozen=True)
class ReadOptions:
    """What was asked for. `weights`: which of the file's sets; `has_lora`: a LoRA is given too; `members`: the variants of all
    families whose files these are."""

    members: Members
    variant: str = AUTO
    weights: str = AUTO
    has_lora: bool = False


@dataclass(frozen=True)
class FileFormat:
    """Files of one network; families that share the network share this object.

    recognise  whether a file has the layers of this network
    read       the model in it. Raises ConfigError, UnsupportedModelError
    lacks      of a file that nobody recognises: what it is and misses, if it is near to this one; None if it is not
    float32    beginnings of the names of weights that ComfyUI keeps and computes in float32, so that a file that has them so
               loads to the same model as the original
    no_lora    why `qvg convert` merges no LoRA into it, a sentence's second half; "" where it does
    in_loras   further names that a layer has in LoRAs, such as Diffusers'
    in_folder  the file that a folder is opened by, if it is a release of this model; None of other folders
    with_lora  a read model as it is run with this LoRA. Raises UnsupportedModelError for one that it is not run with
    fp8        whether `qvg convert` stores a tensor of this name in 8 bits, with a scale, where that is asked for; None: it
               writes no such files of this model
    """

    recognise: Callable[[WeightFile], bool]
    read: Callable[[WeightFile, ReadOptions], CausalCheckpoint]
    lacks: Callable[[WeightFile], str | None] = lambda file: None
    float32: tuple[str, ...] = ()
    no_lora: str = ""
    in_loras: Callable[[str], tuple[str, ...]] = lambda layer: ()
    in_folder: Callable[[Path], Path | None] = lambda folder: None
    with_lora: Callable[[CausalCheckpoint, Lora], CausalCheckpoint] = lambda checkpoint, lora: checkpoint
    fp8: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class WorldRule:
    """A world: which earlier frames a chunk of it sees, the size of video (width, height) that it was trained at, whose VAE makes
    its latents, and what the official code computes overlaps in."""

    frames: MemoryRule
    size: tuple[int, int]
    vae: str
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Family:
    """One family. Everything that lists models asks `registry` for these.

    title      for people, as in "Models that work: ..."
    networks   shapes that `qvg plan` and QVG Plan know, by name
    variants   how its members were trained to be run, by name
    names      a pattern over a file's name without separators, and the variant that it tells, most telling first
    files      None: its weights come with the pack, or cannot be loaded yet
    load_with  display name of the node that loads it, "" where there is none yet
    converts   what `qvg convert` makes of its files, a sentence's part; "" where it makes nothing
    memory     of a world
    network    loads a read checkpoint's tensors to a module that runs without ComfyUI
    adapter    module under `nodes.comfy` that runs it there, "" where there is none yet
    """

    name: str
    title: str
    abilities: frozenset[Ability]
    licence: Licence
    networks: Mapping[str, NetworkShape] = field(default_factory=dict)
    variants: Mapping[str, CausalVariant] = field(default_factory=dict)
    names: tuple[tuple[str, str], ...] = ()
    files: FileFormat | None = None
    load_with: str = ""
    converts: str = ""
    memory: WorldRule | None = None
    network: Callable[..., Any] | None = None
    adapter: str = ""
