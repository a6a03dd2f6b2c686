"""A cache that merges tokens goes to disk in version 4 and comes back; what does not merge is written as before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_qvg.qvg import CacheFileError, KVCache
from comfyui_qvg.qvg.session import load_cache, save_cache
from torch import Tensor

from ...saved_caches import read_apart, rewrite
from ..cache.test_merge import CODECS, EXACT, PATH, ROPE, SPEC, asked, walk


@pytest.mark.parametrize("name", CODECS)
def test_it_goes_on_as_if_it_had_never_stopped(name: str, tmp_path: Path) -> None:
    cache = KVCache(SPEC, CODECS[name], ROPE)
    walk(cache, PATH, 0.01)
    save_cache(cache, tmp_path / "cache.safetensors")
    again = load_cache(tmp_path / "cache.safetensors")
    assert (again.layout, again.spans_due, again.merged_rows) == (cache.layout, cache.spans_due, cache.merged_rows)
    assert again.nbytes() == cache.nbytes()
    for one in (cache, again):
        walk(one, [2.0, 2.5, 20.0, 24.0, 28.0, 1.0], first=17)
    assert again.merged_rows == cache.merged_rows and again.nbytes() == cache.nbytes()
    assert torch.equal(asked(again), asked(cache))
    save_cache(again, tmp_path / "again.safetensors")
    metadata, state, tensors = read_apart(tmp_path / "again.safetensors")
    assert metadata["version"] == "4" and state["rows"] == len(tensors["rows.counts"]) == cache.merged_rows
    assert int(tensors["rows.counts"].long().sum()) == 12 * state["layout"]["merged"]


def test_a_cache_that_does_not_merge_is_written_as_it_was(tmp_path: Path) -> None:
    """No byte more, so that an earlier version of the pack reads it."""
    cache = KVCache(SPEC, EXACT.with_changes(merge=0.0), ROPE)
    walk(cache, PATH)
    save_cache(cache, tmp_path / "cache.safetensors")
    metadata, state, tensors = read_apart(tmp_path / "cache.safetensors")
    assert metadata["version"] == "3" and not [name for name in tensors if name.startswith("rows")]
    assert not {"merge", "merge_key"} & state["config"].keys() and set(state["layout"]) == {"sink", "spans", "tail", "hidden"}
    assert "rows" not in state and json.dumps(state).count("merge") == 0


def test_rows_that_cannot_be_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "cache.safetensors"
    cache = KVCache(SPEC, CODECS["klt"], ROPE)
    walk(cache, PATH)

    def counted(tensors: dict[str, Tensor]) -> None:
        tensors["rows.counts"].view(torch.int16)[0] += 1

    def elsewhere(tensors: dict[str, Tensor]) -> None:
        tensors["rows.tokens"][3] = 12 * 16

    def nothing(tensors: dict[str, Tensor]) -> None:
        counts = tensors["rows.counts"].view(torch.int16)
        counts[0], counts[1] = 0, counts[0] + counts[1]

    def short(tensors: dict[str, Tensor]) -> None:
        tensors["rows.tokens"] = tensors["rows.tokens"][1:].clone()

    def lost(tensors: dict[str, Tensor]) -> None:
        del tensors["rows.counts"]

    def say(**changes: Any) -> Callable[[dict[str, Any]], None]:
        return lambda state: state.update(changes)

    def laid_out(**changes: Any) -> Callable[[dict[str, Any]], None]:
        return lambda state: state["layout"].update(changes)

    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tensors": counted}, "its rows count 157 tokens"),
        ({"tensors": nothing}, "or one of them none"),
        ({"tensors": elsewhere}, "stands for token 192, but those that were merged are 12 to 168"),
        ({"tensors": short}, "rows.tokens is"),
        ({"tensors": lost}, "lacks the tensor rows.counts"),
        ({"state": say(rows=40)}, "rows"),
        ({"state": say(rows=10**9)}, "156 tokens were merged"),
        ({"state": say(rows=-1)}, "rows is -1"),
        ({"state": say(spans_due=3)}, "spans"),
        ({"state": laid_out(merged=14)}, "17 frames and 1 spans were made, and it holds 18"),
        ({"state": laid_out(merged=-1)}, "merged is -1"),
        ({"state": laid_out(spans=[1], merged=12)}, "what leaves the recent frames becomes rows"),
        ({"state": lambda state: state["config"].update(merge=0.0)}, "it is of version 4, but its merge is 0"),
        ({"state": lambda state: state["config"].update(merge=0.2)}, "merge is 0.2, but must be 0"),
        ({"version": 3}, "it is of version 3, but its merge is 0.98"),
        ({"state": lambda state: state.update(rope=None, origins=[])}, "0 positions for 17 frames"),
        ({"state": lambda state: state["spec"].update(batch=2)}, "batch of 2"),
    ]
    for change, reason in wrong:
        save_cache(cache, file)
        rewrite(file, **change)
        with pytest.raises(CacheFileError, match=reason):
            load_cache(file)
    save_cache(cache, file)
    load_cache(file)
