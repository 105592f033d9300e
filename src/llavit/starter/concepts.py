"""What can be drawn: one canonical name per concept, its category, and which concepts no training picture shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

HELD_OUT_SHARE = 0.15
# The salt was chosen once, so that every category has held-out concepts; changing it changes the split.
_SALT = "llavit-starter-372"

# Two categories that a fair person could both give to one picture are never options of one question.
_CLOSE_CATEGORIES = (
    {"food", "plant"},
    {"food", "drink"},
    {"food", "animal"},
    {"tool", "sports item"},
    {"tool", "electronic device"},
    {"tool", "musical instrument"},
    {"clothing", "sports item"},
    {"electronic device", "musical instrument"},
    {"electronic device", "furniture"},
)


def held_out(name: str) -> bool:
    """Whether a name (concept or word) is kept from training: a hash of the name alone, equal for every source.

    Examples:
        >>> held_out("dog") == held_out("dog")
        True
    """
    digest = hashlib.sha256(f"{_SALT}:{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_SHARE


@dataclass(frozen=True)
class Concept:
    """One thing with a name, drawn as an emoji, as a one-colour icon, or as both."""

    name: str
    plural: str
    category: str | None
    emoji: str | None
    icon: str | None
    countable: bool

    @property
    def held_out(self) -> bool:
        """True if no training picture shows this concept, in any style."""
        return held_out(self.name)


def article(noun: str) -> str:
    """The noun with "a" or "an" before it.

    Examples:
        >>> article("apple"), article("unicorn"), article("hourglass")
        ('an apple', 'a unicorn', 'an hourglass')
    """
    vowel = noun[0].lower() in "aeiou" and not noun.startswith(("uni", "eu", "one"))
    return f"{'an' if vowel or noun.startswith('hour') else 'a'} {noun}"


def _plural(name: str, irregular: dict[str, str]) -> str:
    if name in irregular:
        return irregular[name]
    head, of, rest = name.partition(" of ")
    if head.endswith(("s", "x", "ch", "sh")):
        head += "es"
    elif head.endswith("y") and head[-2:-1] not in "aeiou":
        head = head[:-1] + "ies"
    else:
        head += "s"
    return head + of + rest


@cache
def _data() -> dict[str, Any]:
    return json.loads(files("llavit.starter").joinpath("concepts.json").read_text(encoding="utf-8"))


@cache
def all_concepts() -> tuple[Concept, ...]:
    """Every concept, in the order of the data file.

    Examples:
        >>> [c.plural for c in all_concepts() if c.name in ("mouse", "pair of scissors")]
        ['mice', 'pairs of scissors']
    """
    data = _data()
    uncounted = set(data["not_counted"])
    return tuple(
        Concept(
            name=row["name"],
            plural=_plural(row["name"], data["plurals"]),
            category=row["category"],
            emoji=row["emoji"],
            icon=row["icon"],
            countable=row["name"] not in uncounted,
        )
        for row in data["concepts"]
    )


def plural(name: str) -> str:
    """More than one of a concept, whether or not it is in the data file.

    Examples:
        >>> plural("mouse"), plural("pair of scissors"), plural("bush"), plural("city"), plural("key"), plural("y")
        ('mice', 'pairs of scissors', 'bushes', 'cities', 'keys', 'ys')
    """
    return _plural(name, _data()["plurals"])


def countable(name: str) -> bool:
    """Whether one drawing of it plainly shows one of it."""
    return name not in _data()["not_counted"]


@cache
def pool(unseen: bool) -> tuple[Concept, ...]:
    """The concepts that training may show (`unseen=False`), or those that only a test shows."""
    return tuple(concept for concept in all_concepts() if concept.held_out == unseen)


@cache
def few(number: int) -> tuple[Concept, ...]:
    """Choose `number` of the concepts that training may show, alike from every category, by a hash of the name.

    Those drawn as an emoji and as an icon come first: every kind of picture can be made of them. A smaller
    choice is part of a larger one.

    Examples:
        >>> len(few(24)), set(few(12)) < set(few(24)), {c.category for c in few(12)} == set(categories())
        (24, True, True)
    """
    by_category: dict[str, list[Concept]] = {}
    for concept in sorted(pool(unseen=False), key=lambda c: hashlib.sha256(c.name.encode()).digest()):
        if concept.category:
            by_category.setdefault(concept.category, []).append(concept)
    for members in by_category.values():
        members.sort(key=lambda c: not (c.emoji and c.icon and c.countable))
    rounds = range(max(len(members) for members in by_category.values()))
    dealt = [by_category[name][i] for i in rounds for name in categories() if i < len(by_category[name])]
    return tuple(dealt[:number])


@cache
def categories() -> tuple[str, ...]:
    """Names of the categories, in the order of the data file; concepts outside of them have none."""
    return tuple(dict.fromkeys(c.category for c in all_concepts() if c.category))


@cache
def _look_alikes() -> dict[str, frozenset[str]]:
    pairs: dict[str, set[str]] = {}
    groups: list[list[str]] = [*_data()["look_alikes"]]
    groups += [[kind, example] for kind, examples in _data()["kinds_of"].items() for example in examples]
    for group in groups:
        for name in group:
            pairs.setdefault(name, set()).update(group)
    return {name: frozenset(others) for name, others in pairs.items()}


def confusable(name: str, others: Iterable[str]) -> bool:
    """Whether a person could take `name` for one of `others`: such names never meet in one question.

    Examples:
        >>> confusable("lemon", ["tangerine"]), confusable("lemon", ["bus"])
        (True, False)
    """
    alike = _look_alikes().get(name, frozenset())
    return any(other == name or other in alike for other in others)


def close_categories(one: str, other: str) -> bool:
    """Whether one picture could fairly belong to both categories."""
    return one == other or {one, other} in _CLOSE_CATEGORIES
