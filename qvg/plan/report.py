"""A plan for people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..models.common.shape import NetworkShape
from ..models.common.world_schedule import MODES
from .advice import Setting
from .estimate import Plan, Video

GB = 10**9
PICTURES_PER_SECOND = 16


def gigabytes(size: int) -> str:
    """1 GB is 10^9 bytes."""
    return f"{size / GB:.2f} GB" if size >= GB // 10 else f"{size / 1e6:.2f} MB"


def verdict(found: Plan, device_bytes: int | None, setting: Setting | None) -> str:
    """One or two sentences: fits or not, the longest that does, the setting that would."""
    if device_bytes is None:
        return "Whether that fits is open: no GPU is known here; say how much memory it has."
    room = f"{gigabytes(found.peak_bytes)} of {gigabytes(device_bytes)}"
    longest = _longest(found)
    if found.fits:
        return f"It fits: {room}. {longest}"
    ways = [longest] if found.longest_frames else []
    ways.append("No preset makes it fit, with any window." if setting is None else f"It would fit with {setting.text()}.")
    if found.decode_bytes > device_bytes:
        ways.append(f"Decoding alone takes {gigabytes(found.decode_bytes)}; tile it, or make smaller pictures.")
    elif found.streamed_bytes <= device_bytes:
        also = "" if setting is None else "also "
        ways.append(f"It would {also}run, slower, with a part of the weights left in main memory, as ComfyUI does by itself.")
    return f"It does not fit: {room}. {' '.join(ways)}"


def report(
    network: NetworkShape,
    video: Video,
    label: str,
    found: Plan,
    device_bytes: int | None,
    setting: Setting | None,
    make_plan: Callable[[Video], Plan] | None = None,
) -> str:
    """Several lines: whether it fits, which a small node shows first; what is to be made, and what each part takes. `make_plan`
    of the same run as another video: a world's other modes are planned by it."""
    seconds = f", {video.frames / network.pictures_per_second:.1f} s" if network.frame_pictures > 1 else ""
    batch = f", {video.batch} at once" if video.batch > 1 else ""
    made = f"{video.frames} frames of {video.width}x{video.height}{seconds} ({found.latent_frames} latent frames){batch}"
    mode = None if network.context_frames is None else video.mode or MODES[0]
    label = label if mode is None else f"{label}, mode {mode}"
    ratio, most = found.exact_cache_bytes / max(1, found.cache_end_bytes), "at most " if found.merges else ""
    saved = f" ({ratio:.1f} times less)" if ratio > 1 else ""
    lines = [
        (f"{network.title}: {made}", ""),
        ("weights", gigabytes(found.weights_bytes)),
        ("cache at 16 bits per value", gigabytes(found.exact_cache_bytes)),
        (f"cache, {label}, at the end", most + gigabytes(found.cache_end_bytes) + saved),
        ("  at its worst moment", most + gigabytes(found.cache_peak_bytes)),
        *_further(found),
        *([("  of which order and means of tiles", gigabytes(found.tile_bytes))] if found.tile_bytes else []),
        *([("  of which in main memory", gigabytes(found.away_bytes))] if found.away_bytes > 0 else []),
        ("transient: attention's workspace", gigabytes(found.workspace_bytes)),
        ("transient: one block, prompt, latents", gigabytes(found.activation_bytes)),
        *([("making a segment's memory", gigabytes(found.recording_bytes))] if found.recording_bytes else []),
        ("all of that, while sampling", gigabytes(found.sampling_bytes)),
        ("decoding, when the cache is freed", gigabytes(found.decode_bytes) if found.decode_bytes else "not known"),
    ]
    if mode and make_plan:
        others = {other: make_plan(replace(video, mode=other)) for other in MODES if other != mode}
        lines += [(f"in mode {other}, while sampling", _other_mode(planned)) for other, planned in others.items()]
    width = max(len(name) for name, size in lines if size)
    table = [f"{name:<{width}}  {size}" if size else name for name, size in lines]
    if not network.is_counted:
        table.append("Activations follow from this network's layers; they were not counted on the network itself.")
    if found.merges:
        table.append(
            "Tokens that look like what is remembered at their place are counted, not stored: how many is not known before."
        )
    if found.tile_bytes:
        table.append(
            f"64 queries read at most {found.tokens_read:,} of {found.tokens_kept:,} tokens in memory, and means of the others."
        )
    if found.short_spans:
        table.append(found.short_spans)
    return "\n".join([verdict(found, device_bytes, setting), *table])


def _further(found: Plan) -> list[tuple[str, str]]:
    """Codebooks that scenes ask for, of a codec that begins some."""
    if not found.codebook_bytes:
        return []
    most = gigabytes(found.most_cache_bytes)
    more = "+ " + gigabytes(found.codebook_bytes)
    return [("  a new codebook, where scenes change", more), ("  one at every span, at most", most)]


def _other_mode(found: Plan) -> str:
    fits = "" if found.fits is None else ", fits" if found.fits else ", does not fit"
    return f"{gigabytes(found.sampling_bytes)}{fits}"


def _longest(found: Plan) -> str:
    if found.longest_frames is None:
        return "Videos of any length do."
    return f"The longest that fits has {found.longest_frames} frames."
