"""Questions with the instruction that says what kind of answer is wanted, as in LLaVA's data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from llavit.starter.kit import SHORT, YES_NO, Ask, Kit
from llavit.starter.plan import Deal

T = TypeVar("T")

PLACES = ("top left", "top right", "bottom left", "bottom right")
"""Quarters of a picture, row by row."""


def short(question: str, answer: str, accepted: Sequence[str] = (), topic: str = "") -> Ask:
    """A question that is answered in a word or a few.

    Example:
        >>> short("What is it?", "dog").text.splitlines()
        ['What is it?', 'Answer the question using a single word or phrase.']
    """
    return Ask(f"{question}\n{SHORT}", answer, tuple(accepted), topic=topic)


def yes_no(question: str, truth: bool, topic: str = "") -> Ask:
    """A question that is answered with yes or no.

    Example:
        >>> yes_no("Is it red?", True).answer
        'yes'
    """
    return Ask(f"{question}\n{YES_NO}", "yes" if truth else "no", topic=topic)


def by_turns(kit: Kit, label: str, kinds: Sequence[T]) -> tuple[T, Kit]:
    """Deal one of several kinds, and a kit whose own deals are balanced within that kind.

    A kind that is listed twice comes twice as often.

    Example:
        >>> from random import Random
        >>> kits = [Kit(None, "train", Random(0), Deal("example", n)) for n in range(8)]
        >>> made = [by_turns(kit, "kind", ("read", "compare")) for kit in kits]
        >>> [own.deal.pick("answer", ("yes", "no")) for kind, own in made if kind == "read"].count("yes")
        2
    """
    kind = kit.deal.pick(label, kinds)
    block = kit.deal.ordinal // len(kinds)
    before = [Deal(kit.deal.key, n).pick(label, kinds) for n in range(block * len(kinds), kit.deal.ordinal)]
    deal = Deal(f"{kit.deal.key}/{label}/{kind}", block * list(kinds).count(kind) + before.count(kind))
    return kind, replace(kit, deal=deal)
