"""What others have, by name: the codecs of `COMPARED`.

| name | keys and values | from |
|---|---|---|
| fp8 | E4M3, a float32 scale per head | serving engines |
| nvfp4 | E2M1, groups of 16 channels with E4M3 scales, a scale per tensor | LongLive 2.0 |
| bf16-int8 | keys 16 bits, values int8 | Overworld |
| pca | Budget-PCA | the audit of Quant VideoGen |
| lightx2v-kivi | a channel of g tokens, all levels, scale and lowest value float32 | LightX2V |
| study-rtn | a channel of g tokens, symmetric, float16 | arXiv 2603.27469, as the next five |
| study-kivi | keys: a channel of g tokens; values: one token of all heads; all levels | |
| study-quarot | study-rtn after a Hadamard matrix | |
| study-prq | study-rtn, and 4 bits for what it leaves | |
| study-qaq | study-kivi, and a share of outliers exactly | |
| study-tptq | study-prq with 2 bits for what is left, and key outliers exactly | |
"""

from __future__ import annotations

import torch

from ..config import QVGConfig
from ..errors import ConfigError
from .base import Codec
from .core import Core, CoreCodec
from .floats import EightBitValuesCodec, FP8Codec, NVFP4Codec
from .grid import Grid
from .outliers import Outliers
from .pca import PCACodec

# Outliers that QAQ finds beyond six deviations in the study's model are one value in 630 (its compression is 3.145 where KIVI's
# is 3.193), and of old keys TPTQ keeps at most one in 1000.
QAQ_ONE_IN, TPTQ_ONE_IN = 630, 1000
_PRQ_RESIDUAL_BITS, _TPTQ_RESIDUAL_BITS = 4, 2


def compared_codecs(keys: QVGConfig, values: QVGConfig) -> tuple[Codec, Codec]:
    """Those of keys and of values."""
    name = keys.codec
    if name == "fp8":
        return FP8Codec(), FP8Codec()
    if name == "nvfp4":
        return NVFP4Codec(), NVFP4Codec()
    if name == "bf16-int8":
        return EightBitValuesCodec(keys=True), EightBitValuesCodec(keys=False)
    if name == "pca":
        return PCACodec(keys.group_size), PCACodec(keys.group_size)
    cores = (make_core(name, config.whole_bits, config.group_size, which) for which, config in enumerate((keys, values)))
    key_core, value_core = cores
    return CoreCodec(name, key_core), CoreCodec(name, value_core)


def make_core(name: str, bits: int, tokens: int, which: int, published: bool = False) -> Core:
    """A core by its codec's name, for keys (which = 0) or values (1); `published`: with everything the study's code does."""
    if name == "lightx2v-kivi":
        return Core((Grid(bits, False, torch.float32),), tokens=tokens)
    symmetric, asymmetric = Grid(bits, True, published=published), Grid(bits, False, published=published)
    if name in ("study-rtn", "study-quarot"):
        return Core((symmetric,), tokens=tokens, rotated=name == "study-quarot", published=published)
    if name == "study-prq":
        rest = Grid(_PRQ_RESIDUAL_BITS, True, published=published)
        return Core((symmetric, rest), tokens=tokens, published=published)
    if name == "study-tptq":
        outliers = Outliers(TPTQ_ONE_IN, published, clips=False) if which == 0 else None
        rest = Grid(_TPTQ_RESIDUAL_BITS, True, published=published)
        return Core((symmetric, rest), tokens=tokens, outliers=outliers, published=published)
    outliers = None if name == "study-kivi" else Outliers(0 if published else QAQ_ONE_IN, published)
    return Core((asymmetric,), per_channel=which == 0, tokens=tokens, outliers=outliers, published=published)


def check_channels(config: QVGConfig, channels: int) -> None:
    """ConfigError where heads of so many channels do not fit a codec of `COMPARED`."""
    if config.codec == "nvfp4" and channels % 16:
        raise ConfigError(f"head_dim {channels} is not a multiple of 16, the groups of codec 'nvfp4'; use codec 'fp8' or 'klt'")
    if config.codec == "study-quarot" and channels & (channels - 1):
        raise ConfigError(f"head_dim {channels} is not a power of two, which codec 'study-quarot' needs; use 'study-rtn'")
