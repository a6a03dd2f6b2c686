"""Keys and values of a run with the exact cache, kept on disk: what a trained model really remembers, to try codecs on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..cache import KVCache
from ..cache.layer_cache import LayerCache
from ..codec.span import ExactSpan
from ..errors import CacheError, MediaError
from ..files import written_whole
from ..safetensors_writer import in_memory, write_safetensors

_FORMAT = "qvg-recording"


@dataclass(frozen=True)
class Recording:
    """Of every layer keys (before RoPE) and values [B, H, S, D] of all committed frames, oldest first."""

    instrument: str
    seed: int
    tokens_per_frame: int
    keys: list[Tensor]
    values: list[Tensor]

    @property
    def tokens(self) -> int:
        """Committed tokens."""
        return self.keys[0].shape[2]

    def save(self, path: Path) -> None:
        """One safetensors file, which appears whole or not at all."""
        tensors = {f"{name}.{layer}": x for name in ("keys", "values") for layer, x in enumerate(getattr(self, name))}
        metadata = {
            "format": _FORMAT,
            "instrument": self.instrument,
            "seed": str(self.seed),
            "tokens_per_frame": str(self.tokens_per_frame),
        }
        with written_whole(path) as unfinished:
            write_safetensors(unfinished, in_memory(tensors), metadata)

    @staticmethod
    def load(path: Path) -> Recording:
        """MediaError where a file is none that `save` has made."""
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("format") != _FORMAT:
                    raise MediaError(f"{path} is no recording of keys and values; delete it, and it is made anew")
                layers = len(list(file.keys())) // 2
                keys, values = ([file.get_tensor(f"{name}.{layer}") for layer in range(layers)] for name in ("keys", "values"))
                return Recording(about["instrument"], int(about["seed"]), int(about["tokens_per_frame"]), keys, values)
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise MediaError(f"{path} cannot be read as a recording ({error}); delete it, and it is made anew") from error


def recorded(cache: KVCache, instrument: str, seed: int) -> Recording:
    """What an exact cache (codec "none") remembers. CacheError for another codec, and where a window has let frames go."""
    if cache.config.codec != "none" or cache.config.window_frames is not None:
        raise CacheError(
            f"keys and values are recorded from an exact cache without a window, but this one's codec is {cache.config.codec!r} "
            f"and its window {cache.config.window_frames}; record a run with the preset 'exact'"
        )
    keys, values = ([_joined(layer, which) for layer in cache.layers] for which in (0, 1))
    return Recording(instrument, seed, cache.spec.tokens_per_frame, keys, values)


def _joined(layer: LayerCache, which: int) -> Tensor:
    spans = [pair[which] for pair in layer.state.history]
    parts = [span.values for span in spans if isinstance(span, ExactSpan)]
    assert len(parts) == len(spans)
    return torch.cat(parts, 2).to("cpu", torch.bfloat16, copy=True)


def spans_of(tensors: Iterable[Tensor], tokens: int) -> list[list[Tensor]]:
    """Each tensor [B, H, S, D] in whole spans of so many tokens, float32."""
    return [[x[:, :, start : start + tokens].float() for start in range(0, x.shape[2] - tokens + 1, tokens)] for x in tensors]
