"""Codebooks by number: which parts of them a session has on disk already."""

from __future__ import annotations

from torch import Tensor

from ..codec.span import Basis, Codebook, KMeansCodebook, TransformCodebook

# Of a span of keys or values: number of its group of codewords, and of its basis (-1: the codec has none).
Reference = tuple[int, int]
# By layer, then keys and values.
References = list[list[Reference]]
# (layer, which, kind, number) of a group (kind 0) or basis (1).
Part = tuple[int, int, int, int]


class Books:
    """Codebooks of keys or values of one layer that are on disk: numbers by identity, codewords of every group so far, bases."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        # What identities belong to, so that none is given to something else.
        self._kept: dict[int, object] = {}
        self._begun = [0, 0]
        self.codewords: dict[int, int] = {}
        self.bases: set[int] = set()

    def reference(self, codebook: Codebook | None) -> Reference:
        """What a span with this codebook points to; new numbers for what is not known."""
        if isinstance(codebook, TransformCodebook):
            return self._number(codebook.group, 0), self._number(codebook.basis, 1)
        return (self._number(codebook, 0), -1) if codebook is not None else (-1, -1)

    def learn(self, codebook: Codebook | None, reference: Reference) -> None:
        """A codebook that was read from the disk has these numbers, and is all there."""
        if codebook is None:
            return
        group, basis = reference
        if isinstance(codebook, TransformCodebook):
            self._learn(codebook.group, group, 0)
            self._learn(codebook.basis, basis, 1)
            self.bases.add(basis)
        else:
            self._learn(codebook, group, 0)
        self.codewords[group] = codewords(codebook)

    def grown(self, codebook: Codebook | None, group: int) -> dict[str, Tensor]:
        """Codewords behind those that are on disk, by name; they are from now on."""
        written = self.codewords.get(group, 0)
        if codebook is None or written >= codewords(codebook):
            return {}
        self.codewords[group] = codewords(codebook)
        if isinstance(codebook, KMeansCodebook):
            return {"centroids": codebook.centroids}
        values, scales = codebook.codewords
        return {"centroids": values[:, :, written:], "centroid_scales": scales[:, :, written:]}

    def forget(self, groups: set[int], bases: set[int]) -> None:
        """Only these are in memory any more."""
        for identity, one in list(self._kept.items()):
            if self._numbers[identity] not in (bases if isinstance(one, Basis) else groups):
                del self._numbers[identity], self._kept[identity]
        self.codewords = {group: count for group, count in self.codewords.items() if group in groups}
        self.bases &= bases

    def copy(self) -> Books:
        """For a checkpoint that may fail."""
        other = Books()
        other._numbers, other._kept, other._begun = dict(self._numbers), dict(self._kept), list(self._begun)
        other.codewords, other.bases = dict(self.codewords), set(self.bases)
        return other

    def _number(self, one: object, kind: int) -> int:
        if id(one) not in self._numbers:
            self._learn(one, self._begun[kind], kind)
        return self._numbers[id(one)]

    def _learn(self, one: object, number: int, kind: int) -> None:
        self._numbers[id(one)], self._kept[id(one)] = number, one
        self._begun[kind] = max(self._begun[kind], number + 1)


def codewords(codebook: Codebook) -> int:
    """How many there are; centroids of k-means are whole from the beginning."""
    return int(codebook.codewords.values.shape[2]) if isinstance(codebook, TransformCodebook) else codebook.clusters
