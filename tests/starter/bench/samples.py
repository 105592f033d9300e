"""Samples of tasks, made once for all tests of a session."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

from llavit.starter.bench.registry import TASKS
from llavit.starter.bench.task import Task
from llavit.starter.gallery import open_gallery
from llavit.starter.kit import LETTER, SHORT, YES_NO, Gallery, Sample, Split

COMPOSED = (
    *("mini-mme", "mini-mmb", "mini-gqa", "mini-pope"),
    *("mini-mmvp", "mini-realworld", "mini-cv2d", "mini-cv3d"),
)


@cache
def gallery() -> Gallery:
    return open_gallery("starter")


@cache
def groups(name: str, number: int = 120, split: Split = "test", seed: int = 0) -> list[list[Sample]]:
    """The samples of the first `number` calls of a task's maker."""
    return [TASKS[name].samples(gallery(), i, split, seed) for i in range(number)]


def samples(name: str, number: int = 120, split: Split = "test", seed: int = 0) -> list[Sample]:
    return [sample for group in groups(name, number, split, seed) for sample in group]


def question(text: str) -> str:
    """A question without its options and instruction."""
    for instruction in (LETTER, SHORT, YES_NO):
        text = text.replace(instruction, "")
    return text.split("\nA. ")[0].strip()


def assert_repeats(task: Task, numbers: Sequence[int]) -> None:
    """An item is a function of its number."""
    for number in numbers:
        one, other = (task.samples(gallery(), number)[0] for _ in range(2))
        assert one.image.tobytes() == other.image.tobytes() and one.image.size == (112, 112)
        assert (one.ask, one.more, one.caption, one.truth) == (
            other.ask,
            other.more,
            other.caption,
            other.truth,
        )
        json.dumps(one.truth)
