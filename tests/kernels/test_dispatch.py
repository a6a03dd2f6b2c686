"""A forced backend runs or raises; auto explains itself once."""

from __future__ import annotations

import logging

import pytest
import torch
from comfyui_qvg.kernels import assign_clusters, dispatch, explain
from comfyui_qvg.kernels.errors import BackendError

X = torch.zeros(1, 1, 4, 16)


def test_forced_triton_raises_where_it_cannot_run() -> None:
    with pytest.raises(BackendError, match=r"'triton' was forced for kmeans, but .*; use backend 'auto' or 'torch'") as caught:
        assign_clusters(X, X, backend="triton")
    assert caught.value.op == "kmeans" and caught.value.backend == "triton"


def test_unknown_backend() -> None:
    with pytest.raises(BackendError, match="known: auto, torch, triton"):
        assign_clusters(X, X, backend="cuda")


def test_auto_says_once_why(caplog: pytest.LogCaptureFixture) -> None:
    dispatch._say_once.cache_clear()
    with caplog.at_level(logging.INFO):
        assign_clusters(X, X)
        assign_clusters(X, X)
    assert len([record for record in caplog.records if "kmeans runs in torch" in record.message]) == 1


def test_explain_names_every_op() -> None:
    assert set(explain()) == set(dispatch.OPS)
    assert all(reason.startswith("torch (") for reason in explain("cpu").values())
