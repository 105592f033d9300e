"""Score short answers: normalise, compare, average by task, and set the baselines beside."""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from llavit.evaluate.items import Item

_ARTICLES = {"a", "an", "the"}
_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)}
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_MINUS = re.compile(
    r"(?<![\w)\]}.,])[-−](?=[$€£¥]?\.?\d)"
)  # not the dash of "3-5", nor the hyphen of "covid-19"
_SIGN = "\ue000"  # stands for the minus while punctuation is taken out: of private use, in no answer


def normalise(answer: str) -> str:
    """Return an answer in the form in which it is compared.

    Lower case, no punctuation (but the minus of a number), no articles (but in an answer of nothing else: the option
    "A"), single spaces, numbers from zero to ten as digits, thousands without commas.

    Example:
        >>> normalise("The Red  umbrella."), normalise("Three"), normalise("A."), normalise("-1,250")
        ('red umbrella', '3', 'a', '-1250')
    """
    joined = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), answer.lower())
    signed = _MINUS.sub(_SIGN, joined)
    bare = signed.translate(str.maketrans(string.punctuation, " " * len(string.punctuation))).split()
    bare = [word.replace(_SIGN, "-") for word in bare]
    return " ".join(_NUMBERS.get(word, word) for word in bare if word not in _ARTICLES) or " ".join(bare)


def is_right(answer: str, item: Item) -> bool:
    """Whether an answer equals the item's, or another that it accepts, both normalised.

    Example:
        >>> from pathlib import Path
        >>> is_right("A red one.", Item("1", Path("x.png"), "Which?", "red one", "colour"))
        True
    """
    read = normalise(answer)
    return any(
        read == normalise(right) and (read != "" or answer.strip() == right.strip())  # "+" is not "-"
        for right in (item.answer, *item.accepted)
    )


def majority_answers(items: Sequence[Item]) -> list[str]:
    """Return for each item the most frequent answer of its task among these very items.

    Where no item accepts a further answer, no constant answer can score higher.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        counts[item.task][normalise(item.answer)] += 1
    return [counts[item.task].most_common(1)[0][0] for item in items]


@dataclass(frozen=True)
class TaskScore:
    """Share of right answers, 0 to 1, and the number of items behind it."""

    accuracy: float
    items: int


def scores_by_task(items: Sequence[Item], answers: Sequence[str]) -> dict[str, TaskScore]:
    """Return the score of each task, in the order in which the tasks first appear.

    Raises:
        ValueError: if there is not one answer to each item.
    """
    if len(items) != len(answers):
        raise ValueError(f"expected one answer to each of {len(items)} items, got {len(answers)}")
    right: dict[str, list[bool]] = defaultdict(list)
    for item, answer in zip(items, answers, strict=True):
        right[item.task].append(is_right(answer, item))
    return {task: TaskScore(sum(hits) / len(hits), len(hits)) for task, hits in right.items()}


def accuracy(items: Sequence[Item], answers: Sequence[str]) -> float:
    """Return the share of right answers over all items, 0 to 1."""
    by_task = scores_by_task(items, answers)
    return sum(score.accuracy * score.items for score in by_task.values()) / max(1, len(items))
