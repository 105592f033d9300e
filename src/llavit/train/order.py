"""The order of the samples: a pure function of seed, number of records and number of samples to draw."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

Arrange = Callable[[list[int]], list[int]]


def by_length(lengths: Sequence[int]) -> Arrange:
    """Sort the samples of a step, longest first, so that each micro-batch holds samples of like length.

    The step keeps its samples, so its loss and gradient stay the same; only padding gets less. And where memory
    runs out, it does so at once.

    Args:
        lengths: tokens of every sample of the data, roughly.

    Example:
        >>> by_length([9, 1, 8, 2])([0, 1, 2, 3])
        [0, 2, 3, 1]
    """
    return lambda step: sorted(step, key=lambda index: (-lengths[index], index))


class SeededOrder(Sampler[int]):
    """Shuffled passes over the records, one after the other, cut off after `total` samples.

    The whole of a stage is one sequence, so a resumed run finds its place by counting, and batches do not end
    where a pass over the data does.

    Args:
        records: how many records there are.
        total: how many samples to draw.
        seed: another seed, another order.
        arrange: puts the samples of one optimizer step in another order; see `by_length`.
        step: how many samples those are.

    Example:
        >>> order = list(SeededOrder(records=3, total=7, seed=0))
        >>> len(order), sorted(order[:3]), sorted(order[3:6])
        (7, [0, 1, 2], [0, 1, 2])
    """

    def __init__(self, records: int, total: int, seed: int, arrange: Arrange | None = None, step: int = 1):
        self.records, self.total, self.seed = records, total, seed
        self.arrange, self.step = arrange, step

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        """Give the samples, the ones of each step as `arrange` puts them."""
        drawn = self._shuffled()
        if self.arrange is None:
            yield from drawn
            return
        while step := list(itertools.islice(drawn, self.step)):
            yield from self.arrange(step)

    def _shuffled(self) -> Iterator[int]:
        for start in range(0, self.total, self.records):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + start // self.records)
            shuffled = torch.randperm(self.records, generator=generator).tolist()
            yield from shuffled[: self.total - start]
