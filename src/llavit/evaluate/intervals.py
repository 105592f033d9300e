"""Means with 95 % bootstrap intervals, over units and over tasks.

A unit (an item, or a group of items that count together) is what is resampled: items of a group are not independent.
The mean of several tasks is resampled within each task.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        score: the mean.
        low: lower end of the 95 % interval.
        high: upper end.
    """

    score: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return plain values for JSON, rounded to six digits."""
        return {"score": round(self.score, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


def resampled_means(values: Sequence[float], name: str, resamples: int = RESAMPLES) -> np.ndarray:
    """Return the means of resamples of some values.

    Args:
        values: points of units.
        name: seeds the resampling: the same name and values, the same means.
        resamples: how many.

    Example:
        >>> resampled_means([1.0, 1.0], "task").mean()
        np.float64(1.0)
    """
    numbers = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return numbers[rng.integers(0, len(numbers), (resamples, len(numbers)))].mean(axis=1)


def estimate(values: Sequence[float], name: str) -> Estimate:
    """Return the mean of the points of a task's units, with the percentile interval of its bootstrap.

    Where all are wrong or all are right, resamples are all alike, and that is no certainty: the interval is then
    Clopper and Pearson's (1934), which for n units all wrong ends at 1 - 0.025^(1/n).

    Args:
        values: points of the units, from 0 to 1.
        name: seeds the resampling.

    Raises:
        ValueError: no values.

    Example:
        >>> estimate([1.0, 0.0, 1.0, 0.0], "task").score
        0.5
        >>> estimate([0.0] * 100, "task").as_dict()
        {'score': 0.0, 'low': 0.0, 'high': 0.036217}
    """
    found = mean_estimate({name: values})
    unseen = 1 - ((1 - LEVEL) / 2) ** (1 / len(values))
    if set(values) == {0.0}:
        return Estimate(0.0, 0.0, unseen)
    if set(values) == {1.0}:
        return Estimate(1.0, 1.0 - unseen, 1.0)
    return found


def mean_estimate(
    by_task: Mapping[str, Sequence[float]], weights: Mapping[str, float] | None = None
) -> Estimate:
    """Return the mean of the means of several tasks, with its interval.

    Args:
        by_task: points of the units of each task.
        weights: of each task; equal if None.

    Raises:
        ValueError: no tasks, or one without units.

    Example:
        >>> mean_estimate({"a": [1.0, 1.0, 1.0], "b": [0.0]}).score
        0.5
    """
    if not by_task or not all(len(values) for values in by_task.values()):
        raise ValueError("expected the points of at least one unit for each of at least one task")
    share = weights or dict.fromkeys(by_task, 1.0)
    total = sum(share[name] for name in by_task)
    score = sum(share[name] / total * float(np.mean(values)) for name, values in by_task.items())
    means = sum(share[name] / total * resampled_means(values, name) for name, values in by_task.items())
    low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Estimate(score, float(low), float(high))


def loss_estimate(
    before: Mapping[str, Sequence[float]],
    after: Mapping[str, Sequence[float]],
    weights: Mapping[str, float] | None = None,
) -> Estimate:
    """Return how much lower the mean over tasks is after than before, with the interval of the paired bootstrap.

    What is resampled is the difference of each unit, so that units which are hard either way do not widen the interval.

    Args:
        before: points of the units of each task.
        after: of the same units.
        weights: of each task; equal if None.

    Raises:
        ValueError: not the same tasks and units, or none.

    Example:
        >>> loss_estimate({"a": [1.0, 1.0, 0.0]}, {"a": [0.0, 1.0, 0.0]}).score
        0.3333333333333333
    """
    if {name: len(values) for name, values in before.items()} != {
        name: len(values) for name, values in after.items()
    }:
        raise ValueError("expected points of the same units before and after, got others")
    lost = {
        name: [a - b for a, b in zip(values, after[name], strict=True)] for name, values in before.items()
    }
    return mean_estimate(lost, weights)
