"""Which item is what: the order of kinds and the balance of answers, as functions of (seed, split, index) alone.

An item never depends on how many items are built, so a small corpus is an exact prefix of a larger one.
Inside each kind, answers are dealt like cards: every answer once per round, in a shuffled order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import TypeVar

T = TypeVar("T")

KINDS: dict[str, float] = {
    "name": 0.22,
    "category": 0.08,
    "colour": 0.12,
    "place": 0.10,
    "size": 0.06,
    "count": 0.10,
    "relation": 0.10,
    "exist": 0.08,
    "word": 0.07,
    "chart": 0.04,
    "easyvqa": 0.03,
}
"""Every kind of picture with its default share of the training splits; val and test hold equal shares."""

_PERIOD = 200  # items after which the shares of the kinds are exact


@dataclass(frozen=True)
class Deal:
    """The position of an item among those of its kind: hands out balanced choices."""

    key: str
    ordinal: int

    def pick(self, label: str, values: Sequence[T]) -> T:
        """One of `values`: over len(values) items in a row each comes once; `label` makes choices independent."""
        block, place = divmod(self.ordinal, len(values))
        order = list(range(len(values)))
        Random(f"{self.key}/{label}/{block}").shuffle(order)
        return values[order[place]]


def checked_kinds(kinds: Mapping[str, float] | None) -> dict[str, float]:
    """Shares that sum to 1, in the order of `KINDS`.

    Raises:
        ValueError: an unknown kind, a negative weight, or nothing left.
    """
    given = dict(KINDS if kinds is None else kinds)
    unknown = sorted(set(given) - set(KINDS))
    if unknown:
        raise ValueError(f"unknown kinds {unknown}: choose from {list(KINDS)}")
    negative = {kind: weight for kind, weight in given.items() if weight < 0}
    if negative:
        raise ValueError(f"weights must not be negative: {negative}")
    total = sum(given.values())
    if total <= 0:
        raise ValueError("at least one kind needs a positive weight")
    return {kind: given[kind] / total for kind in KINDS if given.get(kind, 0) > 0}


class Plan:
    """The kinds of the items of one split.

    Examples:
        >>> plan = Plan({"name": 0.5, "count": 0.5}, seed=0, split="test")
        >>> sorted(plan.slot(i)[0] for i in range(200)).count("count")
        100
    """

    def __init__(self, kinds: Mapping[str, float], seed: int, split: str):
        self.key = f"{seed}/{split}"
        self._round = _one_round(tuple(kinds.items()))
        self._per_round = {kind: self._round.count(kind) for kind in kinds}

    def slot(self, index: int) -> tuple[str, Deal]:
        """Kind of item `index`, and its deal."""
        number, place = divmod(index, _PERIOD)
        order, before = _shuffled(self._round, f"{self.key}/{number}")
        kind = order[place]
        return kind, Deal(f"{self.key}/{kind}", number * self._per_round[kind] + before[place])

    def rng(self, index: int) -> Random:
        """The source of everything random in item `index`."""
        return Random(f"{self.key}/item/{index}")


@lru_cache(maxsize=64)
def _one_round(kinds: tuple[tuple[str, float], ...]) -> tuple[str, ...]:
    counts = {kind: max(1, int(share * _PERIOD)) for kind, share in kinds}
    by_rest = sorted(kinds, key=lambda item: -(item[1] * _PERIOD - counts[item[0]]))
    for kind, _ in by_rest * 2:
        if sum(counts.values()) < _PERIOD:
            counts[kind] += 1
    while sum(counts.values()) > _PERIOD:
        counts[max(counts, key=lambda kind: counts[kind])] -= 1
    return tuple(kind for kind in counts for _ in range(counts[kind]))


@lru_cache(maxsize=1024)
def _shuffled(names: tuple[str, ...], key: str) -> tuple[list[str], list[int]]:
    order = list(names)
    Random(key).shuffle(order)
    seen: dict[str, int] = {}
    before = []
    for kind in order:
        before.append(seen.get(kind, 0))
        seen[kind] = before[-1] + 1
    return order, before
