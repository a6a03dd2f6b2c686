"""A KV cache for autoregressive video models in about two bits per value. Needs torch; knows nothing of ComfyUI."""

from .cache import KVCache
from .cache.layer_cache import LayerCache
from .cache.spec import CacheBytes, CacheSpec
from .codec.span import Codebook, ExactSpan, QuantizedSpan
from .config import PRESETS, QVGConfig
from .errors import (
    BackendError,
    CacheError,
    CacheFileError,
    CameraPathError,
    ConfigError,
    MediaError,
    NonFiniteError,
    QVGError,
    SessionError,
    UnsupportedModelError,
)
from .positions.rope import GridRope

__all__ = [
    "PRESETS",
    "BackendError",
    "CacheBytes",
    "CacheError",
    "CacheFileError",
    "CacheSpec",
    "CameraPathError",
    "Codebook",
    "ConfigError",
    "ExactSpan",
    "GridRope",
    "KVCache",
    "LayerCache",
    "MediaError",
    "NonFiniteError",
    "QVGConfig",
    "QVGError",
    "QuantizedSpan",
    "SessionError",
    "UnsupportedModelError",
]
