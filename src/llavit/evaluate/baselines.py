"""What a score is to be held against: the most frequent answer, the same model blind, and with wrong pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random

from llavit.evaluate.bench import BenchTask
from llavit.evaluate.items import Picture
from llavit.evaluate.score import normalise

BASELINES = ("majority", "blind", "shuffled")
"""majority: always the task's most frequent answer. blind: the same questions to the same model without pictures.
shuffled: each with the picture of another item."""

_TRIES = 1_000


def majority_texts(task: BenchTask) -> list[str]:
    """Return the most frequent answer among a task's own items, to each of its items.

    Where each item has one right answer (`choice`, `yes_no`, `exact`), no constant answer has more right items. With
    accepted answers, the tolerance of `relaxed`, the shares of `anls` and `caption`, or groups, another one may score
    higher. Of equally frequent ones it is the first.

    Example:
        >>> from llavit.evaluate.items import Item
        >>> items = tuple(Item(str(n), None, "?", answer, "t") for n, answer in enumerate(["no", "Yes", "yes"]))
        >>> majority_texts(BenchTask("t@mine-1", "t", "general", "yes_no", items=items))
        ['Yes', 'Yes', 'Yes']
    """
    counts = Counter(normalise(item.answer) for item in task.items)
    most = counts.most_common(1)[0][0]
    answer = next(item.answer for item in task.items if normalise(item.answer) == most)
    return [answer] * len(task.items)


def shuffled_pictures(task: BenchTask) -> list[Picture]:
    """Return for each item the picture of another one: the same for items of one picture, never one of its group.

    The pictures are dealt anew among those who own them, so each is shown as often as before. The deal depends on the
    task's name alone.

    Raises:
        ValueError: the task has pictures of one group only.
    """
    owners: dict[Path, set[str]] = {}
    for item in task.items:
        if item.image is not None:
            owners.setdefault(item.image, set()).add(item.group or f"item {item.id}")
    dealt = _deal(list(owners), owners, task.id)
    return ["none" if item.image is None else dealt[item.image] for item in task.items]


def _deal(images: Sequence[Path], owners: dict[Path, set[str]], name: str) -> dict[Path, Path]:
    """Give each picture another one whose owners are other groups: one ring of all pictures, in a random order."""
    if not images:
        return {}
    for attempt in range(_TRIES):
        ring = list(images)
        Random(f"{name} {attempt}").shuffle(ring)
        dealt = dict(zip(ring, [*ring[1:], ring[0]], strict=True))
        if all(owners[image].isdisjoint(owners[other]) for image, other in dealt.items()):
            return dealt
    raise ValueError(
        f"task {name}: the baseline `shuffled` needs pictures of several groups, and finds no deal of its "
        f"{len(images)} pictures in which none stays in its group; leave the baseline out"
    )
