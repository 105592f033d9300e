"""mini-sqa: what kind of thing is it? Which of these four is a reptile? How many legs does it have?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from llavit.starter.bench.asking import PLACES, by_turns, short
from llavit.starter.bench.pen import Pad
from llavit.starter.bench.things import Shown, drawings_of, named, shelf, unseen_concept, unseen_style
from llavit.starter.concepts import article, held_out
from llavit.starter.kit import Ask, Gallery, Kit, Sample, Split
from llavit.starter.palette import BACKGROUNDS
from llavit.starter.phrases import listed

KIND = (
    "What kind of {group} is shown?",
    "What kind of {group} is this?",
    "To which kind of {group} does it belong?",
    "Which kind of {group} does the picture show?",
    "How would you classify this {group}?",
    "Under which heading does this {group} fall?",
)
WHICH = (
    "Which of these is {a_kind}?",
    "Where in the picture is {a_kind}?",
    "Which picture shows {a_kind}?",
    "Which of the four is {a_kind}?",
    "In which quarter do you find {a_kind}?",
    "Only one of the four is {a_kind}: which?",
)
LEGS = (
    "How many legs does this animal have?",
    "How many legs has an animal of this kind?",
    "What is the number of legs of this animal?",
    "On how many legs does this animal walk, if it has any?",
    "Count the legs that this animal has in nature.",
)
NAME = ("What is this?", "What is shown?", "What does the picture show?", "Name it.", "What has been drawn?")
WHERE = (
    "What is at the {place}?",
    "Which thing is at the {place}?",
    "What does the {place} quarter show?",
    "What can be seen at the {place}?",
    "Name the thing at the {place}.",
)
CENTRES = ((29.0, 29.0), (83.0, 29.0), (29.0, 83.0), (83.0, 83.0))
"""Middles of the quarters, in units."""


@cache
def taxonomy() -> dict[str, dict[str, list[str]]]:
    """`groups`: kinds that exclude each other; `kinds`: names of each kind; `legs`: names by the number of legs."""
    return json.loads(files("llavit.starter.bench").joinpath("taxonomy.json").read_text(encoding="utf-8"))


@lru_cache(maxsize=32)
def members(gallery: Gallery, split: Split, part: str) -> dict[str, tuple[str, ...]]:
    """Names that a split can draw, by kind ("kinds") or by number of legs ("legs")."""
    drawn = shelf(gallery, split)  # type: ignore[arg-type]  # hashed by identity
    return {kind: tuple(name for name in names if name in drawn) for kind, names in taxonomy()[part].items()}


def classify(kit: Kit) -> list[Sample]:
    """One thing and four kinds of its group; four things and one kind; or one animal and its legs."""
    form, kit = by_turns(kit, "form", ("kind", "kind", "which", "which", "legs"))
    if form == "legs":
        return [_legs(kit)]
    group, kit = by_turns(kit, "group", tuple(taxonomy()["groups"]))
    kinds = taxonomy()["groups"][group]
    kind = kit.deal.pick("answer", kinds)
    others = kit.rng.sample([other for other in kinds if other != kind], 3)
    return [_kind(kit, group, kind, others) if form == "kind" else _which(kit, kind, others)]


def _one_of(kit: Kit, names: Sequence[str], label: str) -> str:
    """A name: in 3 of 10 tests one that training never shows, where there is one."""
    unseen = kit.split == "test" and kit.deal.pick(label, (True, False, False) * 3 + (False,))
    wanted = [name for name in names if held_out(name) == unseen] or list(names)
    for name in kit.rng.sample(wanted, len(wanted)):
        if drawings_of(kit, name):
            return name
    return kit.rng.choice(list(names))


def _single(
    kit: Kit, name: str, ask: Ask, more: Sequence[Ask], caption: str, truth: dict[str, Any]
) -> Sample:
    shown, ground = named(kit, [name])
    pad = Pad(kit.image_size, BACKGROUNDS[ground])
    size = kit.rng.uniform(64, 100)
    slack = (108 - size) / 2
    pad.drawing(
        shown[0].pixels(kit, size), (56 + kit.rng.uniform(-slack, slack), 56 + kit.rng.uniform(-slack, slack))
    )
    return _sample(kit, pad, shown, ask, more, caption, {**truth, "ground": ground})


def _sample(
    kit: Kit,
    pad: Pad,
    shown: Sequence[Shown],
    ask: Ask,
    more: Sequence[Ask],
    caption: str,
    truth: dict[str, Any],
) -> Sample:
    names = [thing.name for thing in shown]
    return Sample(
        pad.finish(),
        ask,
        tuple(more),
        caption,
        {**truth, "names": names, "sources": [thing.drawing.source for thing in shown]},
        tuple(names),
        unseen_concept(shown),
        unseen_style(kit, shown),
    )


def _kind(kit: Kit, group: str, kind: str, others: Sequence[str]) -> Sample:
    name = _one_of(kit, members(kit.gallery, kit.split, "kinds")[kind], "unseen")  # type: ignore[arg-type]
    ask = kit.choice(kit.phrase(KIND, group=group), kind, others, topic="kind")
    more = [short(kit.phrase(NAME), name, topic="name")]
    caption = f"{article(name)}, which is {article(kind)}.".capitalize()
    return _single(kit, name, ask, more, caption, {"form": "kind", "group": group, "kind": kind})


def _which(kit: Kit, kind: str, others: Sequence[str]) -> Sample:
    kinds = members(kit.gallery, kit.split, "kinds")  # type: ignore[arg-type]
    right = kit.deal.pick("place", range(4))
    order = list(others)
    kit.rng.shuffle(order)
    order.insert(right, kind)
    names = [_one_of(kit, kinds[k], f"unseen {k}") for k in order]
    shown, ground = named(kit, names)
    pad = Pad(kit.image_size, BACKGROUNDS[ground])
    for thing, centre in zip(shown, CENTRES, strict=True):
        pad.drawing(thing.pixels(kit, 44), centre)
    ask = kit.choice(
        kit.phrase(WHICH, a_kind=article(kind)), PLACES[right], [p for p in PLACES if p != PLACES[right]]
    )
    more = [
        short(kit.phrase(WHERE, place=place), name, topic=place)
        for place, name in zip(PLACES, names, strict=True)
    ]
    kit.rng.shuffle(more)
    caption = f"{listed([f'{article(n)} at the {p}' for n, p in zip(names, PLACES, strict=True)], 'and')}.".capitalize()
    return _sample(
        kit,
        pad,
        shown,
        ask,
        more[:3],
        caption,
        {"form": "which", "kind": kind, "kinds": order, "ground": ground},
    )


def _legs(kit: Kit) -> Sample:
    every = {number: names for number, names in members(kit.gallery, kit.split, "legs").items() if names}  # type: ignore[arg-type]
    number = kit.deal.pick("legs", sorted(every))
    name = _one_of(kit, every[number], "unseen")
    others = kit.rng.sample([other for other in sorted(taxonomy()["legs"]) if other != number], 3)
    ask = kit.choice(kit.phrase(LEGS), number, others, topic="legs")
    caption = f"{article(name)}, an animal with {number if number != '0' else 'no'} legs.".capitalize()
    return _single(
        kit,
        name,
        ask,
        [short(kit.phrase(NAME), name, topic="name")],
        caption,
        {"form": "legs", "kind": number},
    )
