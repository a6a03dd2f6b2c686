"""`qvg plan`: the arguments of the command, and what it prints."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from functools import partial

import torch

from ..config import PRESETS, QVGConfig
from ..errors import ConfigError, quoted, shown
from ..models.registry import networks
from .advice import setting_that_fits
from .cards import CARD_PRESETS, CARDS_GB, Asked, card_models, cards_table, longest_videos, usable_bytes
from .estimate import Plan, Video, Weights, plan
from .report import GB, PICTURES_PER_SECOND, report, verdict
from .ways import ways, ways_text

DEFAULT_PRESET = "balanced"


def print_plan(options: Namespace) -> int:
    """Print a plan. -> exit code, 0 also where the video does not fit: that is the answer. Raises ConfigError for what cannot be
    planned."""
    known = networks()
    if options.model not in known:
        raise ConfigError(f"there is no model {quoted(options.model)} to plan for; choose from {', '.join(known)}")
    network, config = known[options.model], make_config(options)
    sizes = (options.width, options.height, options.frames, options.batch, options.given_frames, options.block_frames)
    video = Video(*sizes, options.mode)
    device_bytes = _device_bytes(options.vram_gb)
    make_plan = partial(plan, network, video, device_bytes=device_bytes, weights=Weights(options.weights))
    found = make_plan(config)
    block = network.chunk_frames if options.block_frames is None else options.block_frames
    setting = setting_that_fits(lambda other: make_plan(config=other), config, block) if found.fits is False else None
    others = partial(plan, network, config=config, device_bytes=device_bytes, weights=Weights(options.weights))
    seconds = network.frame_pictures / network.pictures_per_second

    def changed(config: QVGConfig, weights: Weights) -> Plan:
        return plan(network, video, config, device_bytes, weights)

    else_could = ways(changed, config, Weights(options.weights), seconds, block)
    if options.json:
        more = {
            "device_bytes": device_bytes,
            "setting": None if setting is None else asdict(setting),
            "verdict": verdict(found, device_bytes, setting),
            "ways": [asdict(way) for way in else_could],
        }
        print(json.dumps(asdict(found) | more))
    else:
        print(report(network, video, _label(options, config), found, device_bytes, setting, others))
        if else_could:
            print(ways_text(else_could, network.pictures_per_second))
    return 0


def print_cards(options: Namespace) -> int:
    """Print the longest videos for every card. -> exit code"""
    cells = longest_videos(Asked(options.model or card_models(), options.gb or CARDS_GB))
    if options.json:
        print(json.dumps([cell._asdict() for cell in cells]))
        return 0
    print(f"The longest video: {' / '.join(CARD_PRESETS)}; '-' none fits, at {PICTURES_PER_SECOND} pictures a second.\n")
    print(cards_table(cells))
    print(
        f"\nOf a card with 24 GB {usable_bytes(24) / 1e9:.1f} x 10^9 bytes are counted on. Planned, not run; decoding in tiles. "
        "Models that were trained on 5 seconds drift beyond that, with any memory."
    )
    return 0


def make_config(options: Namespace) -> QVGConfig:
    """What the arguments say. Raises ConfigError where they break a rule."""
    if options.preset is not None and options.codec is not None:
        raise ConfigError(
            f"--preset {shown(options.preset)} and --codec {options.codec} were both given; a preset has its codec, leave one out"
        )
    base = (
        _method(options.codec)
        if options.codec
        else QVGConfig.preset(DEFAULT_PRESET if options.preset is None else options.preset)
    )
    changes = {
        "bits": options.bits,
        "bits_v": options.bits_v if options.bits_v is not None or options.bits is None else options.bits,
        "span_frames": options.span_frames,
        "window_frames": options.window,
        "sink_frames": options.sink_frames,
        "recent_frames": options.recent_frames,
        "workspace_mb": options.workspace_mb,
        "offload": options.offload,
        "merge": options.merge,
        "sparse": options.sparse,
    }
    if (options.merge or options.sparse) and options.span_frames is None:
        changes["span_frames"] = "auto"
    return base.with_changes(**{name: value for name, value in changes.items() if value is not None})


def _method(codec: str) -> QVGConfig:
    """A codec the way QVG KV Cache sets it up."""
    if codec == "klt":
        return PRESETS["balanced"]
    return QVGConfig(codec, clusters="auto", symmetric=codec in ("none", "qvg"))


def _device_bytes(vram_gb: float | None) -> int | None:
    """Of the card named, else of the one that is there."""
    if vram_gb is not None:
        if not 0 < vram_gb < 10_000:
            raise ConfigError(f"--vram-gb is {vram_gb:g}, but must be a card's memory in GB, such as 24")
        return round(vram_gb * GB)
    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _label(options: Namespace, config: QVGConfig) -> str:
    return f"codec {options.codec}" if options.codec else f"preset {options.preset or DEFAULT_PRESET}"
