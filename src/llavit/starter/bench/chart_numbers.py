"""Numbers for charts, out of real tables: stretched so that they can be read off a small picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llavit.starter.kit import Kit

TOP = 10
"""Values of a chart with an axis are 1 to 10 of its units; one unit is a tenth of its height, which can be read."""
UNITS = (1, 2, 5, 10)
"""Numbers that one unit may stand for."""


@dataclass(frozen=True)
class Series:
    """The numbers of one chart.

    Attributes:
        table: that they were taken from.
        column: of the table.
        raw: the numbers as they stand there.
        values: what the chart shows, in the same order: the raw numbers stretched to a round range.
        unit: what all values are multiples of.
    """

    table: str
    column: str
    raw: tuple[float, ...]
    values: tuple[int, ...]
    unit: int


def series(
    kit: Kit, number: int, wanted: Callable[[Sequence[int]], bool], unit: int, top: int = TOP, least: int = 1
) -> Series:
    """Draw rows of a table of the split until their numbers, stretched to `least`..`top` units, are as wanted.

    Args:
        kit: whose tables and randomness are used.
        number: of values.
        wanted: judges the values in units.
        unit: by which they are multiplied afterwards.
        top: largest value that is possible, in units.
        least: smallest difference between any two values, in units.

    Raises:
        RuntimeError: no table of the split has numbers that fit.
    """
    rng = kit.rng
    tables = list(kit.gallery.tables(kit.split))
    columns = {table: kit.gallery.columns(table) for table in tables}
    for _ in range(20_000):
        table = rng.choice(tables)
        column, every = rng.choice(list(columns[table]))
        low, high = sorted(rng.sample(range(1, top + 1), 2))
        raw = rng.sample(every, number)
        span = max(raw) - min(raw)
        if span <= 0:
            continue
        values = [low + round((value - min(raw)) * (high - low) / span) for value in raw]
        ordered = sorted(values)
        if min(b - a for a, b in pairwise(ordered)) >= least and wanted(values):
            return Series(table, column, tuple(raw), tuple(value * unit for value in values), unit)
    raise RuntimeError(f"no {number} numbers of the tables {tables} fit this chart")


def shares(kit: Kit, number: int, wanted: Callable[[Sequence[int]], bool]) -> Series:
    """Draw rows of a table as shares of a pie: multiples of 5 that sum to 100, each at least 10, all different.

    Raises:
        RuntimeError: no table of the split has numbers that fit.
    """
    rng = kit.rng
    tables = list(kit.gallery.tables(kit.split))
    columns = {table: kit.gallery.columns(table) for table in tables}
    for _ in range(50_000):
        table = rng.choice(tables)
        column, every = rng.choice(list(columns[table]))
        raw = rng.sample(every, number)
        if min(raw) < 0 or sum(raw) <= 0:
            continue
        values = [5 * round(20 * value / sum(raw)) for value in raw]
        if sum(values) == 100 and min(values) >= 10 and len(set(values)) == number and wanted(values):
            return Series(table, column, tuple(raw), tuple(values), 5)
    raise RuntimeError(f"no {number} numbers of the tables {tables} fit a pie")
