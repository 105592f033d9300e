"""Which samples share a row."""

from __future__ import annotations

from collections.abc import Sequence


def first_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Put samples into as few rows of a token budget as first-fit-decreasing finds.

    That is at most 11/9 of the fewest possible, plus one. The order depends on the lengths alone.

    Args:
        lengths: tokens of each sample.
        budget: tokens of a row; a sample that is longer gets a row of its own.

    Returns:
        for each row the indices of its samples, ascending; the row with the smallest index comes first.

    Raises:
        ValueError: a budget below 1.

    Example:
        >>> first_fit([5, 9, 4, 1], budget=10)
        [[0, 2], [1, 3]]
    """
    if budget < 1:
        raise ValueError(f"expected a budget of at least 1 token a row, got {budget}")
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((row for row, free in enumerate(room) if free >= lengths[index]), None)
        if place is None:
            rows.append([])
            room.append(budget)
            place = len(rows) - 1
        rows[place].append(index)
        room[place] -= lengths[index]
    return sorted(sorted(row) for row in rows)
