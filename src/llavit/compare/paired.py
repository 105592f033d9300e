"""Two variants on the same questions with the same seeds: the difference, and how sure it is.

A score is a mean over families, of means over tasks, of means over units (items, or groups that count as one). So a
difference d[seed, unit] has two sources of chance: which seeds were run, and which questions were asked. Its variance
is taken as the sum of both (crossed random effects; what both hold counts twice, which errs on the safe side):

    se^2 = var over seeds of the seeds' differences / seeds  +  sum over tasks of weight^2 * var over units / units

where the second term averages each unit over the seeds first. The 95 % interval and the two-sided p value come from
Student's t, with degrees of freedom by Welch and Satterthwaite: few where seeds matter most or a task has few units,
many where there are many questions. These degrees are too many where two or three seeds differ much and happen to lie
close; so the interval is never narrower than Student's t over the seeds' differences alone, nor p smaller.
With one seed the first term is unknown: the interval then covers questions only, and says so.
Where all units differ alike, their spread cannot be seen. It is then taken with two more units in each task, one that
speaks for either side (as Bonett and Price do for proportions, 2012), so that few questions never look certain. So is
that of a task with a single unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
ROUNDING = 1e-9
"""Values that lie closer are alike: means of points, fractions from 0 to 1, differ by more or not at all."""

Points = Mapping[str, Sequence[float]]
"""By task: the points of its units, in their order."""


@dataclass(frozen=True)
class Difference:
    """A mean with its interval.

    Attributes:
        mean: the difference, or the mean.
        low: lower end of the 95 % interval.
        high: upper end.
        p: two-sided, of no difference.
        seeds: how many seeds are behind it.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int


def difference(ours: Sequence[Points], theirs: Sequence[Points], families: Mapping[str, str]) -> Difference:
    """Compare two variants.

    Args:
        ours: points by task, for each seed.
        theirs: the baseline's, for the same seeds in the same order.
        families: family of each task; tasks without one are left out.

    Raises:
        ValueError: other seeds, tasks or units on one side, or no task.
        ImportError: SciPy is not installed.

    Example:
        >>> ours, theirs = [{"t": [1.0, 1.0, 0.0, 1.0]}], [{"t": [1.0, 0.0, 0.0, 0.0]}]
        >>> found = difference(ours, theirs, {"t": "general"})
        >>> found.mean, found.low < 0 < found.high
        (0.5, True)
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"expected the same seeds on both sides, got {len(ours)} and {len(theirs)}")
    weights = task_weights(families)
    rows: list[float] = []
    per_unit: dict[str, np.ndarray] = {}
    for task in weights:
        sides = [_units(task, side) for side in (ours, theirs)]
        if sides[0].shape != sides[1].shape:
            raise ValueError(f"task {task}: expected the same units on both sides")
        per_unit[task] = sides[0] - sides[1]  # (seeds, units)
    for seed in range(len(ours)):
        rows.append(sum(weight * float(per_unit[task][seed].mean()) for task, weight in weights.items()))
    of_tasks: list[tuple[float, int]] = []  # variance, degrees of freedom
    for task, weight in weights.items():
        over_seeds = per_unit[task].mean(axis=0)
        if len(over_seeds) > 1:
            of_tasks.append((weight**2 * _variance_of_mean(over_seeds), len(over_seeds) - 1))
    mean = float(np.mean(rows))
    of_seeds = [(_variance_of_mean(rows), len(rows) - 1)] if len(rows) > 1 else []
    alike = not any(part for part, _ in of_seeds + of_tasks)
    unseen = [task for task in weights if alike or per_unit[task].shape[1] == 1]
    of_tasks += [_unseen_spread(per_unit[task], weights[task]) for task in unseen]
    half, p = _interval(mean, of_seeds + of_tasks)
    if of_seeds and of_seeds[0][0]:
        half, p = map(max, (half, p), _interval(mean, of_seeds))
    return Difference(mean, mean - half, mean + half, p, len(rows))


def over_seeds(scores: Sequence[float]) -> Difference:
    """Give the mean of one variant's scores, with the 95 % interval over seeds (Student's t).

    Its ends are NaN for a single seed, and where all seeds scored the same: their spread cannot be seen then, and an
    interval without width would claim that there is none.

    Raises:
        ImportError: SciPy is not installed.

    Example:
        >>> found = over_seeds([0.4, 0.5, 0.6])
        >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
        (0.5, 0.252, 0.748)
    """
    mean = float(np.mean(scores))
    variance = _variance_of_mean(scores)
    if not variance:
        return Difference(mean, math.nan, math.nan, math.nan, len(scores))
    half = _students_t(len(scores) - 1) * math.sqrt(variance)
    return Difference(mean, mean - half, mean + half, math.nan, len(scores))


def task_weights(families: Mapping[str, str]) -> dict[str, float]:
    """Weight tasks so that families count alike, and within one its tasks.

    Raises:
        ValueError: no tasks.

    Example:
        >>> task_weights({"a": "x", "b": "x", "c": "y"})
        {'a': 0.25, 'b': 0.25, 'c': 0.5}
    """
    if not families:
        raise ValueError("expected at least one task")
    members = {family: list(families.values()).count(family) for family in families.values()}
    return {task: 1 / len(members) / members[family] for task, family in families.items()}


def require_scipy() -> None:
    """Raise an ImportError that names the extra, if SciPy is not installed."""
    try:
        import scipy.special  # noqa: F401
    except ImportError as error:
        raise ImportError("intervals of a comparison need SciPy: pip install 'llavit[compare]'") from error


def _interval(mean: float, parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Give half of the 95 % interval, and p, out of a variance's parts and the degrees of freedom of each."""
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / count for part, count in parts)
    error = math.sqrt(variance)
    return _students_t(freedom) * error, _two_sided(mean / error, freedom)


def _variance_of_mean(values: Sequence[float] | np.ndarray) -> float:
    """Give the variance of a mean; 0.0 where the values are alike but for rounding, which would pass for certainty."""
    if np.ptp(values) <= ROUNDING * max(1.0, float(np.abs(values).max())):
        return 0.0
    return float(np.var(values, ddof=1)) / len(values)


def _unseen_spread(differences: np.ndarray, weight: float) -> tuple[float, int]:
    """Give the variance that units which all differ alike may have, and its degrees of freedom."""
    units = [*differences.mean(axis=0), 1.0, -1.0]
    return weight**2 * float(np.var(units)) / len(units), max(1, len(units) - 3)


def _students_t(freedom: float) -> float:
    """Give Student's t at the upper end of the 95 % interval."""
    require_scipy()
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + LEVEL / 2))


def _two_sided(t: float, freedom: float) -> float:
    """Give the two-sided p value of a t."""
    require_scipy()
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(t)))


def _units(task: str, side: Sequence[Points]) -> np.ndarray:
    rows = [side[seed][task] for seed in range(len(side)) if task in side[seed]]
    if len(rows) < len(side) or len({len(row) for row in rows}) != 1:
        raise ValueError(f"task {task}: expected it, with the same units, for every seed")
    return np.asarray(rows, dtype=np.float64)
