"""Which samples share a row."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Put samples into few rows of a token budget, and fill the rows evenly.

    First-fit-decreasing finds a number of rows, at most 11/9 of the fewest possible, plus one. As a batch is as
    long as its longest row, the samples are then dealt out anew, the longest first and each to the emptiest row,
    over that many rows or some more: the number that leaves least padding. The result depends on the lengths alone.

    Args:
        lengths: tokens of each sample.
        budget: tokens of a row; a sample that is longer gets a row of its own.

    Returns:
        for each row the indices of its samples, ascending; the row with the smallest index comes first.

    Raises:
        ValueError: a budget below 1.

    Example:
        >>> pack([5, 9, 4, 1, 3], budget=12)
        [[0, 2, 3], [1, 4]]
    """
    if budget < 1:
        raise ValueError(f"expected a budget of at least 1 token a row, got {budget}")
    longest_first = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    best, filled = _first_fit(longest_first, lengths, budget)
    positions = len(best) * max(filled, default=0)
    for number in range(len(best), min(2 * len(best), len(lengths)) + 1):
        rows, filled = _evenly(longest_first, lengths, number)
        if max(filled) <= max(budget, *lengths) and number * max(filled) < positions:
            best, positions = rows, number * max(filled)
    return sorted(sorted(row) for row in best)


def _evenly(order: Sequence[int], lengths: Sequence[int], number: int) -> tuple[list[list[int]], list[int]]:
    """Put each sample into the emptiest of so many rows; give the rows and the tokens in each."""
    rows: list[list[int]] = [[] for _ in range(number)]
    filled = [0] * number
    for index in order:
        emptiest = filled.index(min(filled))
        rows[emptiest].append(index)
        filled[emptiest] += lengths[index]
    return rows, filled


def _first_fit(
    order: Sequence[int], lengths: Sequence[int], budget: int
) -> tuple[list[list[int]], list[int]]:
    """Put each sample into the first row that has room; give the rows and the tokens in each."""
    rows: list[list[int]] = []
    filled: list[int] = []
    for index in order:
        place = next((row for row, used in enumerate(filled) if used + lengths[index] <= budget), None)
        if place is None:
            rows.append([])
            filled.append(0)
            place = len(rows) - 1
        rows[place].append(index)
        filled[place] += lengths[index]
    return rows, filled
