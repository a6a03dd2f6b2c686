"""Of rows of one target: means, paired differences with their bootstrap interval, and a sign test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..bench.statistics import Interval, bootstrap_mean

Row = Mapping[str, Any]


class Paired(NamedTuple):
    """One method against another on the same cases: the mean difference with its 95 % interval, how often it was better and
    worse, and the two-sided probability of that by chance."""

    difference: Interval
    better: int
    worse: int
    chance: float


def sign_test(better: int, worse: int) -> float:
    """Two-sided, exact: how probable a split this uneven is where both are as likely (ties left out); 1 for none."""
    cases = better + worse
    if not cases:
        return 1.0
    tail = sum(math.comb(cases, k) for k in range(max(better, worse), cases + 1))
    return min(1.0, 2 * float(tail / 2**cases))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Values of the same cases in the same order. ValueError for none, or for lengths that differ."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    better, worse = sum(each > 0 for each in differences), sum(each < 0 for each in differences)
    return Paired(bootstrap_mean(differences), better, worse, sign_test(better, worse))


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are there; None where none is."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def mean_curve(curves: Sequence[Sequence[float]]) -> list[float]:
    """Value by value, as far as the shortest goes."""
    return [sum(values) / len(values) for values in zip(*curves, strict=False)]
