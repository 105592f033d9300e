"""The order of the samples: a pure function of seed, number of records and number of samples to draw."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class SeededOrder(Sampler[int]):
    """Shuffled passes over the records, one after the other, cut off after `total` samples.

    The whole of a stage is one sequence, so a resumed run finds its place by counting, and batches do not end
    where a pass over the data does.

    Args:
        records: how many records there are.
        total: how many samples to draw.
        seed: another seed, another order.

    Example:
        >>> order = list(SeededOrder(records=3, total=7, seed=0))
        >>> len(order), sorted(order[:3]), sorted(order[3:6])
        (7, [0, 1, 2], [0, 1, 2])
    """

    def __init__(self, records: int, total: int, seed: int):
        self.records, self.total, self.seed = records, total, seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        for start in range(0, self.total, self.records):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + start // self.records)
            shuffled = torch.randperm(self.records, generator=generator).tolist()
            yield from shuffled[: self.total - start]
