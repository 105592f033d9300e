"""Judge answers by a task's metric: a mark for each item, points for each unit (item, or group that counts as one).

    metric     an answer is right if                                            unparsed if
    choice     the letter read out of it is the item's                          no one letter can be read
    yes_no     the word read out of it is the item's                            neither yes nor no is said
    exact      normalised, it is the answer or an accepted one                  nothing is left, normalised
    relaxed    its one number is within 5 % of the answer's; where the          a number is expected, and there is none
               answer is no number: as exact                                    or more than one
    anls       (points) ANLS over the answer and accepted ones, 0 below 0.5     nothing is written
    caption    (points) CIDEr-D against the answer; noun recall beside it       nothing is written

A unit of a grouped task has its points only if all its items are right. What failed (an error in place of an answer)
or is unparsed scores 0 and is counted, so that every score is over all items and says how much of it was no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llavit.evaluate.bench import BenchTask
from llavit.evaluate.caption import cider_d, noun_recall
from llavit.evaluate.items import Item
from llavit.evaluate.reading import number_of, read_letter, read_number, read_yes_no
from llavit.evaluate.score import is_right, normalise

TOLERANCE = 0.05
"""Of relaxed accuracy, as ChartQA has it (arXiv 2203.10244)."""

Status = Literal["answered", "unparsed", "failed"]


@dataclass(frozen=True)
class Mark:
    """What one answer is worth.

    Attributes:
        score: 0 or 1; anything from 0 to 1 for ANLS, to 10 for CIDEr-D.
        status: "answered"; "unparsed": no answer can be read out of the text; "failed": there is no text.
        read: the answer as it was compared, or None.
        more: further scores of the item, by name.
    """

    score: float
    status: Status
    read: str | None
    more: dict[str, float] = field(default_factory=dict)


def judge(task: BenchTask, texts: Sequence[str | None]) -> list[Mark]:
    """Mark each answer of a task.

    Args:
        task: says the metric.
        texts: what the model wrote to each item; None where there was an error instead.

    Raises:
        ValueError: not one text to each item.
        ImportError: the package of ANLS is missing.

    Example:
        >>> items = (Item("1", None, "Is it?", "yes", "t"), Item("2", None, "Is it?", "no", "t"))
        >>> task = BenchTask("t@mine-1", "t", "general", "yes_no", items=items)
        >>> [(mark.score, mark.status) for mark in judge(task, ["Yes.", "perhaps"])]
        [(1.0, 'answered'), (0.0, 'unparsed')]
    """
    if len(texts) != len(task.items):
        raise ValueError(
            f"task {task.id}: expected a text to each of {len(task.items)} items, got {len(texts)}"
        )
    if task.metric == "caption":
        return _captions(task.items, texts)
    mark = _MARKS[task.metric]
    return [
        Mark(0.0, "failed", None) if text is None else mark(text, item)
        for item, text in zip(task.items, texts, strict=True)
    ]


def points(task: BenchTask, marks: Sequence[Mark]) -> list[float]:
    """Return the points of each unit, in the order of `BenchTask.units`: of a group, the least of its items'.

    Example:
        >>> items = tuple(Item(str(n), None, "Is it?", "yes", "t", group="pair 1") for n in range(2))
        >>> task = BenchTask("t@mine-1", "t", "general", "yes_no", group="pair", items=items)
        >>> points(task, judge(task, ["yes", "no"]))
        [0.0]
    """
    return [min(marks[position].score for position in unit) for unit in task.units()]


def require(metrics: Sequence[str]) -> None:
    """Check that what the metrics need is installed.

    Raises:
        ImportError: names the extra.
    """
    if "anls" in metrics:
        _anls_score()


def _choice(text: str, item: Item) -> Mark:
    letter = read_letter(text, item.options or ())
    return _mark(letter, letter == item.answer)


def _yes_no(text: str, item: Item) -> Mark:
    word = read_yes_no(text)
    return _mark(word, word == normalise(item.answer))


def _exact(text: str, item: Item) -> Mark:
    right = is_right(text, item)
    return _mark(normalise(text) or (text.strip() if right else None), right)


def _relaxed(text: str, item: Item) -> Mark:
    wanted = [number for right in (item.answer, *item.accepted) if (number := number_of(right)) is not None]
    if not wanted:
        return _exact(text, item)
    number = read_number(text)
    right = number is not None and any(abs(number - one) <= TOLERANCE * abs(one) for one in wanted)
    if not right and is_right(text, item):  # an accepted answer in words: "a dozen"
        return _exact(text, item)
    return _mark(None if number is None else f"{number:g}", right)


def _anls(text: str, item: Item) -> Mark:
    read = " ".join(text.lower().split())
    if not read:
        return Mark(0.0, "unparsed", None)
    right = tuple(" ".join(one.lower().split()) for one in (item.answer, *item.accepted))
    return Mark(float(_anls_score()(right, read)), "answered", read)


def _captions(items: Sequence[Item], texts: Sequence[str | None]) -> list[Mark]:
    scores = cider_d([text or "" for text in texts], [[item.answer] for item in items])
    marks = []
    for item, text, score in zip(items, texts, scores, strict=True):
        if text is None or not text.strip():
            marks.append(Mark(0.0, "failed" if text is None else "unparsed", None, {"noun_recall": 0.0}))
        else:
            marks.append(Mark(score, "answered", text, {"noun_recall": noun_recall(text, _nouns(item))}))
    return marks


def _nouns(item: Item) -> Sequence[str]:
    """The nouns of a picture, each with its further names where the truth states them."""
    stated = item.truth.get("nouns") if isinstance(item.truth, dict) else None
    return ["|".join(names) for names in stated] if stated else item.accepted


def _mark(read: str | None, right: bool) -> Mark:
    return Mark(float(right), "unparsed" if read is None else "answered", read)


def _anls_score() -> Callable[..., float]:
    try:
        from anls_star import anls_score
    except ImportError as error:
        raise ImportError("ANLS needs the package anls-star: pip install 'llavit[eval]'") from error
    return anls_score


_MARKS: dict[str, Callable[[str, Item], Mark]] = {
    "choice": _choice,
    "yes_no": _yes_no,
    "exact": _exact,
    "relaxed": _relaxed,
    "anls": _anls,
}
