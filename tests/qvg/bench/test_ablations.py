"""What is taken apart, on keys and values that a run really made."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from comfyui_qvg.qvg import CacheError, CacheSpec, ConfigError, KVCache, MediaError, QVGConfig
from comfyui_qvg.qvg.bench.ablations import ablations, comparisons, row_text, write_ablations
from comfyui_qvg.qvg.bench.recording import Recording, recorded, spans_of
from comfyui_qvg.qvg.bench.synthetic import PAPER_NOISE, make_keys_values


def _recording(frames: int = 4) -> Recording:
    layers = [make_keys_values(seed, frames, 1, noise=PAPER_NOISE, rows=16, cols=32) for seed in (0, 1)]
    return Recording("synthetic", 0, 512, [layer.keys for layer in layers], [layer.values for layer in layers])


def test_an_exact_run_is_recorded_as_it_was(tmp_path: Path) -> None:
    """Keys before RoPE and values of every layer, in the order of their frames, whatever is written over them later."""
    spec = CacheSpec(layers=3, heads=2, head_dim=16, tokens_per_frame=4)
    generator = torch.Generator().manual_seed(0)
    given = [[torch.randn(2, 1, 2, 4, 16, generator=generator).bfloat16() for _ in range(3)] for _ in range(5)]
    with KVCache(spec, QVGConfig.preset("exact")) as cache:
        for frame in given:
            for layer, (keys, values) in enumerate(frame):
                cache.attend(layer, keys, keys.clone(), values.clone())
            cache.commit()
        found = recorded(cache, "test", 7)
    for layer in range(3):
        assert torch.equal(found.keys[layer], torch.cat([frame[layer][0] for frame in given], 2))
        assert torch.equal(found.values[layer], torch.cat([frame[layer][1] for frame in given], 2))
    found.save(tmp_path / "recording.safetensors")
    again = Recording.load(tmp_path / "recording.safetensors")
    assert (again.instrument, again.seed, again.tokens_per_frame, again.tokens) == ("test", 7, 4, 20)
    assert all(torch.equal(a, b) for a, b in zip(again.keys + again.values, found.keys + found.values, strict=True))


def test_only_exact_caches_are_recorded_and_only_recordings_are_read(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="this one's codec is 'kivi'"):
        recorded(KVCache(CacheSpec(1, 1, 64, 4), QVGConfig(codec="kivi", span_frames=1)), "test", 0)
    with pytest.raises(CacheError, match="its window 9; record a run with the preset 'exact'"):
        recorded(KVCache(CacheSpec(1, 1, 64, 4), QVGConfig(codec="none", window_frames=9)), "test", 0)
    (tmp_path / "other.safetensors").write_bytes(b"no tensors")
    with pytest.raises(MediaError, match="cannot be read as a recording"):
        Recording.load(tmp_path / "other.safetensors")


def test_spans_are_whole() -> None:
    assert [len(spans) for spans in spans_of([torch.zeros(1, 1, 10, 8)], 4)] == [2]
    with pytest.raises(ConfigError, match="holds 2048 tokens, but spans are 4096 long"):
        next(ablations(_recording(), 4096))


def test_every_part_is_measured_and_written(tmp_path: Path) -> None:
    """On tensors as smooth as the paper's its own numbers come out; where a part cannot hurt it does not."""
    rows = list(ablations(_recording(), 1024))
    assert len(rows) == 2 * len(list(comparisons(1024)))
    gain = {(row.what, row.against, row.tensor): row.gain for row in rows}
    assert gain["smoothing, 2 bits", "plain rounding", "keys"] > 4 and gain["first stage", "plain rounding", "keys"] > 4
    for tensor in ("keys", "values"):
        clusters = [gain[f"{count} centroids", "plain rounding", tensor] for count in (2, 4, 8, 16, 32, 64)]
        groups = [gain[f"groups of {size} channels", "of 128", tensor] for size in (64, 32, 16)]
        assert clusters == sorted(clusters) and groups == sorted(groups) and groups[0] > 1
        assert all(gain[f"{stage} stage", "one stage fewer", tensor] > 1 for stage in ("second", "third", "fourth"))
    # A span of its own codebook for every eighth of it is nearer, and dearer.
    apart = next(row for row in rows if row.against == "of 128" and row.what.startswith("spans"))
    assert apart.gain < 1
    write_ablations(rows, tmp_path / "ablations.csv")
    with (tmp_path / "ablations.csv").open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows) and written[0]["paper"] == "6.93" and written[-1]["paper"] == ""
    assert row_text(rows[0]).endswith("paper 6.93")
