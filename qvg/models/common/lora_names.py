"""Names in LoRA files of every trainer whose files ComfyUI takes, and of PEFT and Diffusers: which part of which layer.

In front of a layer stand words for the model, `diffusion_model.`, `base_model.model.`, `transformer.`; kohya's trainers write
`lora_unet_` and the layer with underscores for dots, LongCat-Video's authors `lora___lorahyphen___` and that word for dots.
Behind it stands what the tensor is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

DOWN, UP, UP_BIAS, ALPHA = "down", "up", "up_bias", "alpha"
# Of LongCat-Video's own: alpha / rank; and an `up` for each of the layers that a matrix was joined of, by their numbers.
SCALE, UP_OF = "alpha_scale", "up of "
# What it writes for the dots of a layer's name, and in front of it.
_HYPHEN = "___lorahyphen___"
_JOINED = re.compile(r"^(?P<layer>.+)\.lora_up\.blocks\.(?P<number>\d{1,3})\.weight$")
_WAYS = {"A": DOWN, "down": DOWN, "B": UP, "up": UP}
# PEFT puts an adapter's name behind: lora_A.default.weight.
_ADAPTER = r"(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?"
_LORA = (
    re.compile(rf"^(?P<layer>.+)\.lora_(?P<way>A|B|down|up){_ADAPTER}(?:\.(?P<what>weight|bias))?$"),
    re.compile(r"^(?P<layer>.+?)[._]lora\.(?P<way>down|up)\.(?P<what>weight)$"),
    re.compile(r"^(?P<layer>.+)\.lora_linear_layer\.(?P<way>down|up)\.(?P<what>weight)$"),
)
_OTHERS = re.compile(
    rf"^(?P<layer>.+)\.(?P<what>alpha|alpha_scale|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|diff|diff_[bm]|w_norm|b_norm){_ADAPTER}$"
)
# What is more than a sum, and what it is called.
_NO_SUMS = (
    (re.compile(r"\.(dora_scale|lora_magnitude_vector)(\.|$)"), "a DoRA, which scales weights anew"),
    (re.compile(r"\.(lora_mid|hada_t[12]|lokr_t[12])(\.|$)"), "a LoRA in Tucker's form"),
    (re.compile(r"\.(oft_(blocks|diag|R)|boft_(R|s)|rescale)(\.|$)"), "an OFT, which turns weights"),
    (re.compile(r"\.[ab][12]\.weight$"), "a GLoRA"),
    (re.compile(r"\.(set_weight|reshape_weight)$"), "a LoRA that replaces weights or makes them larger"),
    (re.compile(r"\.(on_input|ia3_l)(\.|$)"), "an IA3"),
)
_TEXT_ENCODER = re.compile(
    r"^(lora_te\d?_|lora_prior_te_|te\d?[._]|text_encoders?(_\d)?[._]|t5xxl[._]|clip_[lgh][._]|text_model[._])"
)
# Networks that are trained beside the model, and are not it.
_BESIDE = re.compile(r"^(critic|fake_score|real_score|discriminator)(_lora|_ema)?[._]")
_WORDS = {
    *("diffusion_model", "base_model", "model", "module", "transformer", "unet", "dit", "pipe", "net", "network", "wan"),
    *("generator", "generator_ema", "generator_lora", "student", "backbone", "denoiser", "lora", "state_dict"),
}
_UNDERSCORED = ("lora_unet__", "lora_unet_", "lora_transformer_", "lora_prior_unet_", "lora_dit_", "lycoris_", "")
COMFYUIS = ("diffusion_model.", "lora_unet_")


@dataclass(frozen=True)
class Part:
    """`what` of a layer a tensor is; `adapter` is PEFT's name for the LoRA, "" where there is none."""

    layer: str
    what: str
    adapter: str = ""


def part_of(name: str) -> Part | None:
    """None: not of a kind that is added to weights."""
    if _HYPHEN in name:
        name = name.removeprefix(f"lora{_HYPHEN}").replace(_HYPHEN, ".")
    if joined := _JOINED.match(name):
        return Part(joined["layer"], f"{UP_OF}{int(joined['number'])}")
    for pattern in _LORA:
        if found := pattern.match(name):
            adapter, way = found.groupdict().get("adapter") or "", _WAYS[found["way"]]
            if found["what"] == "bias":
                return Part(found["layer"], UP_BIAS, adapter) if way == UP else None
            return Part(found["layer"], way, adapter)
    found = _OTHERS.match(name)
    return Part(found["layer"], found["what"], found["adapter"] or "") if found else None


def no_sum(names: Iterable[str]) -> tuple[str, str] | None:
    """What a file of such names is, if it is more than a sum, and the name that tells."""
    for name in names:
        for pattern, what in _NO_SUMS:
            if pattern.search(name):
                return what, name
    return None


def is_text_encoders(layer: str) -> bool:
    """Whether a layer is one of a text encoder that was trained along."""
    return _TEXT_ENCODER.match(layer) is not None


def is_beside(layer: str) -> bool:
    """Whether a layer is one of a critic, or of another network of training."""
    return _BESIDE.match(layer) is not None


def without_words(layer: str) -> str:
    """`layer` without what trainers put in front of a model's own names."""
    word, dot, rest = layer.partition(".")
    while dot and word in _WORDS:
        layer = rest
        word, dot, rest = layer.partition(".")
    return layer.replace(".processor.", ".")


class LayerNames:
    """Layers of one model, to be found under the names that trainers give them.

    layers  the model's own names
    others  further names of a layer, such as Diffusers'
    """

    def __init__(self, layers: Iterable[str], others: Callable[[str], Iterable[str]]):
        self._dotted: dict[str, str] = {}
        for layer in layers:
            self._dotted |= dict.fromkeys((*others(layer), layer), layer)
        self._underscored = {name.replace(".", "_"): layer for name, layer in self._dotted.items()}

    def find(self, layer: str) -> str | None:
        """The model's own name of a layer of a file."""
        plain = without_words(layer)
        if plain in self._dotted:
            return self._dotted[plain]
        if "." in layer:
            return None
        rests = (layer.removeprefix(start) for start in _UNDERSCORED if layer.startswith(start))
        return next((self._underscored[rest] for rest in rests if rest in self._underscored), None)

    def strange_prefix(self, layers: Iterable[str]) -> str:
        """What stands in front of all these layers, though nobody is known to put it there; "" if nothing does, or behind it are
        no layers of the model."""
        names = list(layers)
        words = names[0].split(".") if names else []
        for count in range(1, len(words)):
            prefix = ".".join(words[:count]) + "."
            if self.find(names[0].removeprefix(prefix)) is not None:
                behind = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
                return prefix if len(behind) == len(names) and all(self.find(name) is not None for name in behind) else ""
        return ""
