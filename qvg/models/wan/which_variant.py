"""Which member of the causal Wan family a file is. Its tensors do not tell: an ordinary Wan 2.1 has the same names and shapes.

What tells, in this order: the user; our mark in the metadata; the file's name, as released and repackaged; for a renamed file of
known size its hash. ComfyUI's mark says that a file is causal, not which member it is.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Collection
from pathlib import Path

from ...errors import ConfigError, UnsupportedModelError, quoted
from ..common.found import AUTO, DOUBT_KEY, METADATA_KEY, Found, Members
from ..common.shards import whole_name
from ..common.tensor_names import shown
from ..common.variants import CausalVariant
from ..common.weight_files import is_marked_causal
from .variants import MEMBERS

logger = logging.getLogger(__name__)

# Names that say nothing, of files and of folders in others that may say something: `diffusion_pytorch_model.bf16`, `ema_model`,
# `checkpoint_model_000600`, `transformer`.
_NAMELESS = re.compile(
    r"(diffusion(?=pytorch)|pytorch|model|checkpoint|generator|ema|weights|transformer|bf16|fp16|fp32|fp8|e4m3fn|e5m2|scaled|\d)+$"
)
_CAUSAL_FORCING = "causalforcing"
_WIDEST = 100_000  # channels
# Of both Causal-Forcings the file is called causal_forcing.pt; which weights it has tells them apart.
_BY_WEIGHTS: dict[tuple[str, ...], str] = {
    ("generator",): "causal-forcing-chunkwise",
    ("generator_ema",): "causal-forcing-framewise",
}
# Relatives that cannot be run as the ones above: what they are.
_RELATIVES = (
    (r"selfforcingplus(?!plus)", "a Self-Forcing-Plus model, which denoises all frames at once"),
    (r"longlive20?(5b|$|[^\ds])", "a LongLive 2, which is of another network and sampled in another way"),
    (
        r"^(rewardforcing|memflow|infinityrope|rollingsink|deepforcing)",
        "a relative of Self-Forcing on the same network, whose rules of what is remembered QVG does not have",
    ),
    (r"sfwan2?2", "an SFWan 2.2, which has two networks of 14B"),
    (r"^minwm", "a minWM, a world with cameras whose layers QVG does not know"),
    (r"^helios", "a Helios, which has no KV cache by its authors' word"),
    (r"^matrixgame3", "a Matrix-Game 3, whose code has no KV cache"),
    (r"^matrixgame", "a Matrix-Game, which is steered by mouse and keyboard and reads no text"),
    (r"causalrcm", "a Causal-rCM model, which has other noise levels"),
    (r"rollingforcing|longvideo", "a Rolling-Forcing model, which denoises several blocks at different noise levels at once"),
    (r"ardiffusion|odeinit|causalode|odecheckpoint", "an early stage of training, which needs many steps and guidance"),
    (r"lightx2v|stepdistill|cfgdistill|bidirectional", "a distilled model that denoises all frames at once, not a causal one"),
)
# Words of a name that tell of settings, and whether a variant has these. Letters and digits around them would make other words.
_QUALIFIERS: tuple[tuple[str, Callable[[re.Match[str], CausalVariant], bool]], ...] = (
    (r"(?<![a-z0-9])(\d{1,2})[-_ ]?steps?(?![a-z0-9])", lambda match, variant: int(match[1]) == len(variant.sigmas) - 1),
    (r"frame[-_ ]?wise", lambda match, variant: variant.frames_per_block == 1),
    (r"chunk[-_ ]?wise", lambda match, variant: variant.frames_per_block > 1),
    (r"(?<![a-z0-9])(\d{1,4})[-_ ]?s(ec(ond)?s?)?(?![a-z0-9])", lambda match, variant: int(match[1]) == _seconds(variant)),
    (r"(?<![a-z0-9])\d{1,3}[-_ ]?min(ute)?s?(?![a-z0-9])", lambda match, variant: False),
    (r"\+\+|plus[-_ ]?plus", lambda match, variant: "++" in variant.name),
    (r"(?<![a-z])(i2v|v2v|long(?!live)[a-z]*|infinit(y|e)|rolling|sink|reward|deep)(?![a-z])", lambda match, variant: False),
)
# bytes, SHA-256, variant. The release of the ComfyUI repackaged framewise model.
_RELEASES = ((5_676_070_464, "408c67a8c6725756f5be2c5cf2d5c584c15dd147f5a0c458be62dcb3efb78477", "causal-forcing-framewise"),)


def find_variant(
    path: Path,
    wanted: str = AUTO,
    metadata: dict[str, str] | None = None,
    groups: Collection[str] = (),
    width: int = 0,
    members: Members = MEMBERS,
) -> Found:
    """Raises ConfigError for a name that is no variant, UnsupportedModelError where nothing says that the file is causal.

    `groups` are the dictionaries of weights in the file, `width` is the network's.
    """
    variants, metadata = members.variants, metadata or {}
    if wanted != AUTO:
        if wanted not in variants:
            raise ConfigError(f"variant is {quoted(wanted)}; choose {AUTO} or one of {', '.join(variants)}")
        return Found(variants[wanted], "your choice")
    marked = is_marked_causal(metadata)
    if metadata.get(METADATA_KEY) in variants:
        return Found(variants[metadata[METADATA_KEY]], "its metadata", shown(metadata.get(DOUBT_KEY, ""), 400))
    relative = None if marked else relative_named(path)
    if relative:
        raise UnsupportedModelError(
            f"{path.name} is named like {relative}; if it is one of this family all the same, choose its variant by hand"
        )
    name, how = variant_named(path, groups, members)
    if name:
        if not marked:
            _refuse_wider(path, name, width, variants[name].width)
        return Found(variants[name], how, doubt(path, variants[name]))
    by_hash = _by_hash(path)
    if by_hash:
        return Found(variants[by_hash], "its hash")
    if marked:
        return Found(None, "ComfyUI's mark")
    if how:
        raise UnsupportedModelError(
            f"{path.name} is a Causal-Forcing, and under this name there are one of blocks of 3 frames and one of single frames; "
            "choose causal-forcing-chunkwise or causal-forcing-framewise as variant"
        )
    raise UnsupportedModelError(_NOTHING_SAYS_CAUSAL.format(file=path.name, variants=", ".join(variants)))


def _refuse_wider(path: Path, name: str, width: int, released: int) -> None:
    if width > _WIDEST:
        raise UnsupportedModelError(
            f"{path.name} says that it is {width} channels wide, and no model is: it is damaged, download it again"
        )
    if width > released:
        raise UnsupportedModelError(
            f"{path.name} is named like {name} but {width} channels wide, and causal ones are {released}: larger models "
            f"of such names denoise all frames at once; if this one is causal, choose {name} as variant"
        )


_NOTHING_SAYS_CAUSAL = (
    "{file} is a Wan text-to-video model and nothing says that it is causal: an ordinary Wan 2.1, which denoises all frames at "
    "once and has no KV cache, has the same tensors; if it is one of {variants}, choose that as variant"
)


def variant_named(path: Path, groups: Collection[str] = (), members: Members = MEMBERS) -> tuple[str | None, str]:
    """The variant that a file of this name, in a folder of this name, is, and what told; "" where nothing did."""
    name, folder = _names(path)
    # A folder speaks for what lies in it only where the file's name does not: ordinary models lie in such folders too.
    spoken = folder if _NAMELESS.match(name) else f"{folder} {name}" if _CAUSAL_FORCING in name else name
    for pattern, variant in members.names:
        if re.search(pattern, spoken):
            return variant, "its name"
    if _CAUSAL_FORCING in spoken:
        return _BY_WEIGHTS.get(tuple(groups)), "its name and weights"
    return None, ""


def relative_named(path: Path) -> str | None:
    """What a file of this name is that is related and cannot be run."""
    name, folder = _names(path)
    spoken = folder if _NAMELESS.match(name) else name
    return next((what for pattern, what in _RELATIVES if re.search(pattern, spoken)), None)


def doubt(path: Path, variant: CausalVariant) -> str:
    """What a file's name says beside its variant's, so that it may be another training's and run with other settings; or ""."""
    stem = whole_name(path).stem
    spoken = ("/".join([*path.parts[-3:-1], stem]) if _NAMELESS.match(_letters(stem)) else stem).lower()
    found = [(match, agrees) for pattern, agrees in _QUALIFIERS for match in re.finditer(pattern, spoken)]
    words = [shown(match[0]) for match, agrees in found if not agrees(match, variant)]
    if not words:
        return ""
    return (
        f"its name says {', '.join(map(repr, words))}, and QVG knows no settings for such a {variant.name}: sigmas, block size "
        f"and window are those of {variant.name}; set what its authors run it with"
    )


def _seconds(variant: CausalVariant) -> int:
    """Of the videos that it was trained on, at 16 pictures a second."""
    return round((4 * variant.trained_frames - 3) / 16)


def _names(path: Path) -> tuple[str, str]:
    """Letters of the file's name, and of its folder's."""
    folders = [_letters(folder.name) for folder in path.parents[:2]]
    telling = next((folder for folder in folders if not _NAMELESS.match(folder)), "")
    return _letters(whole_name(path).stem), telling


def _letters(name: str) -> str:
    return re.sub(r"[-_ .]", "", name.lower())


def _by_hash(path: Path) -> str | None:
    """Of a release that somebody has renamed. Only a file of the very size is read, which takes a while."""
    size = path.stat().st_size
    candidates = {digest: variant for bytes_, digest, variant in _RELEASES if bytes_ == size}
    if not candidates:
        return None
    logger.info("QVG: %s has the size of a known release; its hash will tell whether it is that", path.name)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return candidates.get(digest.hexdigest())
