"""Assignment and update against the definition, and what must hold on any device."""

from __future__ import annotations

import pytest
import torch
from comfyui_qvg.kernels import assign_clusters, subtract_centroids, update_centroids
from comfyui_qvg.kernels.kmeans import reference


def _data(tokens: int, clusters: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, tokens, 64, generator=generator), torch.randn(2, 3, clusters, 64, generator=generator)


@pytest.mark.parametrize(("tokens", "clusters"), [(1, 1), (17, 5), (513, 256)], ids=["one_token", "odd", "all_ids"])
def test_assign_is_the_nearest(tokens: int, clusters: int) -> None:
    x, centroids = _data(tokens, clusters)
    ids = assign_clusters(x, centroids)
    assert ids.dtype == torch.uint8
    distances = torch.cdist(x.double(), centroids.double())
    chosen = torch.gather(distances, 3, ids.long()[..., None])[..., 0]
    assert torch.allclose(chosen, distances.amin(-1), rtol=1e-6)


def test_assign_in_pieces_equals_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, centroids = _data(101, 7)
    whole = assign_clusters(x, centroids)
    monkeypatch.setattr(reference, "_MAX_DISTANCES", 6 * 7 * 10)
    assert torch.equal(assign_clusters(x, centroids), whole)


def test_update_is_the_mean_and_empty_clusters_stay() -> None:
    x, centroids = _data(40, 9)
    ids = assign_clusters(x, centroids)
    ids[ids == 3] = 4
    updated = update_centroids(x, ids, centroids)
    for cluster in range(9):
        member = (ids[1, 2] == cluster).nonzero()[:, 0]
        expected = x[1, 2, member].mean(0) if len(member) else centroids[1, 2, cluster]
        assert torch.allclose(updated[1, 2, cluster], expected, atol=1e-5)


def test_both_ways_to_sum_agree() -> None:
    """The one-hot product that other devices use, run here beside index_add_."""
    x, centroids = _data(100, 9)
    ids = assign_clusters(x, centroids).flatten(0, 1).long()
    flat = x.flatten(0, 1)
    one_hot = torch.nn.functional.one_hot(ids, 9).float().transpose(1, 2) @ flat
    assert torch.allclose(reference._cluster_sums(flat, ids, 9), one_hot, atol=1e-5)


def test_subtract() -> None:
    x, centroids = _data(11, 4)
    ids = assign_clusters(x, centroids)
    assert torch.equal(subtract_centroids(x, ids, centroids)[0, 1, 5], x[0, 1, 5] - centroids[0, 1, ids[0, 1, 5].long()])


def test_refuses_shapes_that_do_not_fit() -> None:
    x, centroids = _data(5, 3)
    with pytest.raises(ValueError, match=r"\[B, H, S, D\]"):
        assign_clusters(x[..., :32], centroids)
    with pytest.raises(ValueError, match="do not fit uint8"):
        assign_clusters(x, torch.zeros(2, 3, 257, 64))
    with pytest.raises(ValueError, match="one per token"):
        update_centroids(x, torch.zeros(2, 3, 4, dtype=torch.uint8), centroids)
