"""A decoder of saved caches in NumPy, written from docs/format.md and nothing else: it imports nothing of the library, and takes
its levels from the page. Everything is computed in float64."""

from __future__ import annotations

import json
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = Path(__file__).resolve().parents[1] / "docs" / "format.md"
TYPES = {"U8": np.uint8, "U16": np.uint16, "I8": np.int8, "I16": np.int16, "I32": np.int32, "F16": np.float16, "F32": np.float32}

Array = NDArray[Any]


def levels_of_the_page() -> dict[int, Array]:
    """All levels of 1 to 6 bits, ascending, out of the page's block of numbers."""
    (block,) = re.findall(r"```\n(1 bit .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    positive: dict[int, list[float]] = {}
    for line in block.splitlines():
        named = re.match(r"(\d) bits? +", line)
        numbers = line[named.end() :] if named else line
        positive.setdefault(int(named[1]) if named else max(positive), []).extend(map(float, numbers.split()))
    return {bits: np.array([*(-level for level in reversed(some)), *some]) for bits, some in positive.items()}


LEVELS = {0: np.zeros(1), **levels_of_the_page()}


def e4m3(code: Array) -> Array:
    """Bytes to numbers."""
    sign, exponent, mantissa = code >> 7, (code >> 3 & 15).astype(float), (code & 7) / 8
    return (-1.0) ** sign * np.where(exponent > 0, 2.0 ** (exponent - 7) * (1 + mantissa), 2.0**-6 * mantissa)


def rows8(rows: Array, scales: Array) -> Array:
    """Rows in eight bits to numbers."""
    return rows.astype(float) * scales.astype(float)[..., None]


def hadamard(size: int) -> Array:
    """W(size)."""
    whole = np.ones((1, 1))
    while len(whole) < size:
        whole = np.block([[whole, whole], [whole, -whole]])
    return whole / np.sqrt(size)


def equal_width(packed: Array, bits: int) -> Array:
    """Codes of equal width: [..., P] -> [..., D]."""
    if bits == 3:
        cut = packed.shape[-1] * 2 // 3
        return equal_width(packed[..., :cut], 2) | equal_width(packed[..., cut:], 1) << 2
    channels = np.arange(packed.shape[-1] * 8 // bits)
    width = packed.shape[-1]
    return packed[..., channels % width] >> (bits * (channels // width)).astype(np.uint8) & ((1 << bits) - 1)


def bit_planes(packed: Array, planes: list[int]) -> tuple[Array, Array]:
    """Codes of unequal width [..., planes[0]], and how many bits each channel has."""
    channels = np.arange(planes[0])
    codes, start = np.zeros((*packed.shape[:-1], planes[0]), np.uint8), 0
    for plane, size in enumerate(planes):
        part = packed[..., start + channels[:size] // 8] >> (channels[:size] % 8).astype(np.uint8) & 1
        codes[..., :size] |= part << plane
        start += size // 8
    return codes, sum((channels < size).astype(int) for size in planes)


@dataclass
class SavedCache:
    """A file, read."""

    version: int
    state: dict[str, Any]
    tensors: dict[str, Array]

    @staticmethod
    def read(path: Path) -> SavedCache:
        """The file, its state, and every tensor; bfloat16 becomes float32."""
        data = path.read_bytes()
        (count,) = struct.unpack("<Q", data[:8])
        header, body = json.loads(data[8 : 8 + count]), data[8 + count :]
        facts = header.pop("__metadata__")
        assert facts["format"] == "qvg-cache"
        if facts["version"] in ("3", "4", "5"):
            parts = {name: body[slice(*entry["data_offsets"])] for name, entry in header.items()}
            parts["state"] = facts["state"].encode()
            assert json.loads(facts["crc32"]) == {name: f"{zlib.crc32(part):08x}" for name, part in parts.items()}
        tensors = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if entry["dtype"] == "BF16":
                wide = np.frombuffer(body[begin:end], "<u2").astype(np.uint32) << 16
                tensors[name] = wide.view(np.float32).reshape(entry["shape"])
            else:
                kind = np.dtype(TYPES[entry["dtype"]]).newbyteorder("<")
                tensors[name] = np.frombuffer(body[begin:end], kind).reshape(entry["shape"])
        return SavedCache(int(facts["version"]), json.loads(facts["state"]), tensors)

    @property
    def stretches(self) -> list[int]:
        """Tokens of each."""
        layout, per_frame = self.state["layout"], self.state["spec"]["tokens_per_frame"]
        sink, spans, tail = ([frames * per_frame for frames in layout[part]] for part in ("sink", "spans", "tail"))
        if self.version != 4:
            return [*sink, *spans, *tail]
        whole, waiting = divmod(self.state["rows"], self._span_rows)
        return [*sink, *[self._span_rows] * whole, *([waiting] if waiting else []), *tail]

    @property
    def _span_rows(self) -> int:
        spec, asked = self.state["spec"], self.state["config"]["span_frames"]
        frames = -(-1024 // spec["tokens_per_frame"]) if asked == "auto" else asked
        return int(-(-frames // spec["chunk_frames"]) * spec["chunk_frames"] * spec["tokens_per_frame"])

    def stretch(self, layer: int, which: str, number: int) -> Array:
        """Keys or values of one stretch: [B, H, S, D]."""
        prefix, config = f"layer.{layer}.{which}.{number}", self.state["config"]
        parts = {name[len(prefix) + 1 :]: each for name, each in self.tensors.items() if name.startswith(prefix + ".")}
        if "exact" in parts:
            return parts["exact"].astype(float)
        if config["codec"] == "klt":
            return self._klt(parts, self.state["codebooks"][prefix])
        bits = config["bits"] if which == "keys" or config["bits_v"] is None else config["bits_v"]
        if config["codec"] == "kivi" and which == "keys":
            return self._per_channel(parts, bits, self.stretches[number])
        x = self._groups(parts, bits, config["symmetric"] and config["codec"] != "kivi")
        if config["codec"] == "qvg":
            book = self.state["codebooks"][prefix]
            centroids = self.tensors[book if self.version == 1 else book[0]].astype(float)
            for stage in range(config["num_stages"]):
                x += _named(centroids[:, :, stage], parts["ids"][:, :, stage])
        return x @ hadamard(x.shape[-1]) if config["codec"] == "quarot" else x

    def _groups(self, parts: dict[str, Array], bits: int, symmetric: bool) -> Array:
        codes, group = equal_width(parts["codes"], bits).astype(float), self.state["config"]["group_size"]

        def of_channels(name: str) -> Array:
            return e4m3(parts[name]).swapaxes(2, 3).repeat(group, -1)

        if symmetric:
            return (codes - (2 ** (bits - 1) - 1)) * of_channels("scales")
        return codes * of_channels("scales") + of_channels("zero_points")

    def _per_channel(self, parts: dict[str, Array], bits: int, tokens: int) -> Array:
        channels = self.state["spec"]["head_dim"]
        x = self._groups(parts, bits, False)
        runs = x.reshape(*x.shape[:2], -1, channels, x.shape[-1])
        return runs.swapaxes(3, 4).reshape(*x.shape[:2], -1, channels)[:, :, :tokens]

    def _klt(self, parts: dict[str, Array], book: list[str] | str) -> Array:
        codewords, basis = (book, book) if isinstance(book, str) else book
        tensors, out = self.tensors, []
        x = _named(rows8(tensors[f"{codewords}.centroids"], tensors[f"{codewords}.centroid_scales"]), parts["ids"])
        scales = tensors[f"{basis}.basis_scales"]
        if f"{basis}.basis" in tensors:
            directions = rows8(tensors[f"{basis}.basis"], scales)
        else:
            directions = hadamard(scales.shape[-1]) * scales.astype(float)[:, :, None, :]
        for row, planes in enumerate(self.state["codebook_facts" if self.version == 1 else "planes"][basis]):
            codes, widths = bit_planes(parts["codes"][row], planes)
            coefficients = np.stack([LEVELS[width][codes[..., place]] for place, width in enumerate(widths)], -1)
            coefficients *= e4m3(parts["gains"][row])[..., None]
            out.append(x[row] + coefficients @ directions[row, :, : planes[0]])
        return np.stack(out)

    def history(self, layer: int, which: str) -> Array:
        """Everything that attention sees, hidden frames left out: [B, H, all tokens, D]."""
        layout, per_frame = self.state["layout"], self.state["spec"]["tokens_per_frame"]
        parts = [self.stretch(layer, which, number) for number in range(len(self.stretches))]
        oldest = len(layout["sink"])
        if layout["spans"]:
            parts[oldest] = parts[oldest][:, :, layout.get("hidden", 0) * per_frame :]
        return np.concatenate(parts, 2)

    def rotated(self, x: Array, origins: list[list[float]], tokens: Array | None = None) -> Array:
        """Tokens [B, H, S, D] of frames at these origins, rotated to their positions; `tokens`: only these of them, by number."""
        rope = self.state["rope"]
        rows, cols = np.mgrid[: rope["grid_rows"], : rope["grid_cols"]]
        grid = np.stack([0 * rows, rows, cols]).reshape(3, -1)  # [axes, tokens of a frame]
        places = (np.array(origins)[:, :, None] + grid).swapaxes(1, 2).reshape(-1, 3)
        places = places if tokens is None else places[tokens]
        angles = np.concatenate([places[:, [axis]] * rope["axis_frequencies"][axis] for axis in range(3)], 1)
        low, high = np.split(x, 2, -1)
        return np.concatenate([low * np.cos(angles) - high * np.sin(angles), low * np.sin(angles) + high * np.cos(angles)], -1)

    @property
    def _tokens(self) -> Array | None:
        """The number of every token that history holds, where that is not all of them."""
        if self.version != 4:
            return None
        layout, per_frame = self.state["layout"], self.state["spec"]["tokens_per_frame"]
        sink, every = sum(layout["sink"]) * per_frame, len(self.state["origins"]) * per_frame
        rows = self.tensors["rows.tokens"].astype(np.int64)
        return np.concatenate([np.arange(sink), rows, np.arange(sink + layout["merged"] * per_frame, every)])

    def attend(self, layer: int, q: Array, k: Array, v: Array, origins: list[list[float]]) -> Array:
        """Attention of a block at these origins over everything and itself."""
        keys = self.history(layer, "keys")
        if self.state["rope"] is not None:
            q, k = self.rotated(q, origins), self.rotated(k, origins)
            if self.state["config"]["keys"] == "before_rope":
                keys = self.rotated(keys, self.state["origins"], self._tokens)
        scores = q @ np.concatenate([keys, k], 2).swapaxes(2, 3) / np.sqrt(q.shape[-1])
        if self.version == 4:
            first = sum(self.state["layout"]["sink"]) * self.state["spec"]["tokens_per_frame"]
            scores[..., first : first + self.state["rows"]] += np.log(self.tensors["rows.counts"].astype(float))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        values = np.concatenate([self.history(layer, "values"), v], 2)
        return weights @ values / weights.sum(-1, keepdims=True)


def _named(rows: Array, ids: Array) -> Array:
    """rows [B, H, C, D], ids [B, H, S] -> [B, H, S, D]."""
    return np.take_along_axis(rows, ids[..., None].astype(int), 2)
