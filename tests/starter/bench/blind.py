"""A reader of questions that never sees a picture: what it gets right can be guessed."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log

from llavit.starter.kit import Ask

Judge = Callable[[str, Ask], float]


def exact(answer: str, ask: Ask) -> float:
    """1 if the answer is the right one, whatever its case."""
    return float(answer.lower() in {right.lower() for right in (ask.answer, *ask.accepted)})


def relaxed(answer: str, ask: Ask) -> float:
    """Numbers may be off by 5 %."""
    try:
        wanted, given = float(ask.answer), float(answer)
    except ValueError:
        return exact(answer, ask)
    return float(abs(given - wanted) <= 0.05 * abs(wanted))


def anls(answer: str, ask: Ask) -> float:
    """1 less the share of letters to change; 0 from a half on."""
    one, other = answer.lower(), ask.answer.lower()
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    share = row[-1] / max(len(one), len(other), 1)
    return 1 - share if share < 0.5 else 0.0


JUDGES: dict[str, Judge] = {
    "choice": exact,
    "yes_no": exact,
    "exact": exact,
    "relaxed": relaxed,
    "anls": anls,
}


def majority(asks: Sequence[Ask], judge: Judge) -> float:
    """Score of the one answer that is given most often."""
    most = Counter(ask.answer for ask in asks).most_common(1)[0][0]
    return sum(judge(most, ask) for ask in asks) / len(asks)


def _words(text: str) -> list[str]:
    """Words and pairs of words of the question itself."""
    words = re.findall(r"[a-z0-9]+", text.split("\nA. ")[0].split("\nAnswer")[0].split("\nPlease")[0].lower())
    return sorted({*words, *(" ".join(pair) for pair in pairwise(words))})


def by_words(train: Sequence[Ask], test: Sequence[Ask], judge: Judge) -> float:
    """Score of naive Bayes over the words of a question; a choice is judged option by option, with its letter."""
    options = all(ask.options for ask in (*train, *test))
    answers = _best_options(train, test) if options else _best_answers(train, test)
    return sum(judge(answer, ask) for answer, ask in zip(answers, test, strict=True)) / len(test)


def assert_blind_is_at_chance(metric: str, train: Sequence[Ask], test: Sequence[Ask], most: float) -> None:
    """Neither the commonest answer nor the words of a question score more than `most`."""
    judge = JUDGES[metric]
    assert majority(test, judge) <= most
    assert by_words(train, test, judge) <= most


def _best_answers(train: Sequence[Ask], test: Sequence[Ask]) -> list[str]:
    prior = Counter(ask.answer for ask in train)
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for ask in train:
        seen[ask.answer].update(_words(ask.text))

    def best(ask: Ask) -> str:
        words = _words(ask.text)
        known = [word for word in words if any(word in counts for counts in seen.values())]
        return max(
            sorted(prior),
            key=lambda a: (
                log(prior[a]) + sum(log((seen[a][word] + 0.1) / (prior[a] + 0.2)) for word in known)
            ),
        )

    return [best(ask) for ask in test]


def _marks(ask: Ask, place: int) -> list[str]:
    assert ask.options is not None
    option = ask.options[place]
    return [f"={option}", f"@{place}", *(f"{option}/{word}" for word in _words(ask.text))]


def _best_options(train: Sequence[Ask], test: Sequence[Ask]) -> list[str]:
    """Letters of the options that were most often right beside such words."""
    right: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    for ask in train:
        for place in range(len(ask.options or ())):
            shown.update(_marks(ask, place))
            if "ABCDEFGHIJ"[place] == ask.answer:
                right.update(_marks(ask, place))

    def best(ask: Ask) -> str:
        base = 1 / len(ask.options or ())

        def weight(place: int) -> float:
            return sum(log((right[m] + 2 * base) / (shown[m] + 2)) for m in _marks(ask, place))

        return "ABCDEFGHIJ"[max(range(len(ask.options or ())), key=weight)]

    return [best(ask) for ask in test]
