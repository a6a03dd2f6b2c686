"""What a model remembers: the KV cache, how it grows, and the bytes that it takes."""

from .kv_cache import KVCache
from .layer_cache import LayerCache
from .spec import CacheBytes, CacheSpec

__all__ = ["CacheBytes", "CacheSpec", "KVCache", "LayerCache"]
