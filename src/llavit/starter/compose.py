"""Scenes made of drawings: one recipe per kind of picture, each with the question it was made for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llavit.starter import ask
from llavit.starter.concepts import Concept, categories
from llavit.starter.palette import COLOURS
from llavit.starter.scene import PLACES, Question, Scene, Thing, side_of
from llavit.starter.studio import FRAME, GAP, LARGE, MIN_OBJECT, SMALL, UNIT, Studio, free_of

Made = tuple[Scene, Question]


def _single(studio: Studio, kind: str, thing: Thing, frame: str | None = None) -> Scene:
    background = studio.background([thing])
    return Scene(kind, studio.image_size, background, frame, (thing,))


def name(studio: Studio) -> Made:
    """One drawing: which of four is it?"""
    concept = studio.rng.choice(studio.concepts)
    thing = studio.thing(concept, studio.source(concept), studio.rng.randint(44, 100))
    return _single(studio, "name", thing), ask.name_options(thing, studio)


def category(studio: Studio) -> Made:
    """One drawing: which of four kinds of thing is it?"""
    wanted = studio.deal.pick(f"category/{studio.unseen}", categories())
    concept = studio.rng.choice([c for c in studio.concepts if c.category == wanted])
    thing = studio.thing(concept, studio.source(concept), studio.rng.randint(44, 100))
    return _single(studio, "category", thing), ask.category_options(thing, studio)


def colour(studio: Studio) -> Made:
    """A tinted icon, or a drawing in a coloured frame: which colour?"""
    form, wanted = studio.deal.pick("colour", [(f, c) for f in ("thing", "frame") for c in COLOURS])
    if form == "thing":
        concept = studio.rng.choice([c for c in studio.concepts if c.icon])
        thing = studio.thing(concept, "icon", studio.rng.randint(48, 96), colour=wanted)
        return _single(studio, "colour", thing), ask.colour(thing)
    concept = studio.rng.choice([c for c in studio.concepts if c.emoji])
    thing = studio.thing(concept, studio.emoji, studio.rng.randint(44, 84), margin=FRAME + GAP)
    scene = _single(studio, "colour", thing, frame=wanted)
    return scene, ask.frame(scene)


def place(studio: Studio) -> Made:
    """One small drawing in a ninth of the picture: where is it?"""
    row, column = studio.deal.pick("place", [(r, c) for r in range(3) for c in range(3)])
    concept = studio.rng.choice(studio.concepts)
    centre = tuple(UNIT * (0.2, 0.5, 0.8)[cell] + studio.rng.uniform(-5, 5) for cell in (column, row))
    size = studio.rng.randint(MIN_OBJECT, SMALL)
    thing = studio.thing(concept, studio.source(concept), size, (centre[0], centre[1]))
    assert thing.place == PLACES[row][column], (thing, row, column)
    return _single(studio, "place", thing), ask.place(thing)


def size(studio: Studio) -> Made:
    """One drawing, plainly small or plainly large."""
    wanted = studio.deal.pick("size", ("small", "large"))
    concept = studio.rng.choice(studio.concepts)
    limits = (MIN_OBJECT, SMALL) if wanted == "small" else (LARGE, 104)
    thing = studio.thing(concept, studio.source(concept), studio.rng.randint(*limits))
    return _single(studio, "size", thing), ask.size(thing)


def count(studio: Studio) -> Made:
    """One to six copies of a drawing, often among a few copies of another: how many?"""
    number = studio.deal.pick("count", (1, 2, 3, 4, 5, 6))
    countable = [c for c in studio.concepts if c.countable]
    asked, other = studio.distinct(2, countable)
    others = studio.rng.randint(1, min(3, 9 - number)) if studio.rng.random() < 0.4 else 0
    things = copies(studio, ((asked, number), (other, others)))
    scene = Scene("count", studio.image_size, studio.background(things), None, tuple(things))
    return scene, ask.count(scene, asked)


def copies(studio: Studio, groups: Sequence[tuple[Concept, int]]) -> list[Thing]:
    """So many small copies of each concept, at most nine in all, each in a ninth of the picture."""
    cells = studio.rng.sample(range(9), sum(number for _, number in groups))
    things: list[Thing] = []
    side = studio.rng.randint(MIN_OBJECT, 33)
    for concept, number in groups:
        source = studio.source(concept)
        tint = studio.rng.choice(list(COLOURS)) if source == "icon" else None
        for _ in range(number):
            row, column = divmod(cells.pop(), 3)
            slack = (UNIT / 3 - GAP - 1 - side) / 2
            centre = [UNIT / 6 * (2 * cell + 1) + studio.rng.uniform(-slack, slack) for cell in (column, row)]
            things.append(studio.thing(concept, source, side, (centre[0], centre[1]), tint, margin=1))
    return things


def scatter(studio: Studio, concepts: list[Concept], tint_first: bool = False) -> list[Thing]:
    """Objects anywhere, without overlap; fewer objects are larger."""
    top = {1: 72, 2: 48, 3: 40, 4: 36}[len(concepts)]
    sources = [studio.source(c) for c in concepts]
    if tint_first:
        sources[0] = "icon"
    while True:
        things: list[Thing] = []
        for concept, source in zip(concepts, sources, strict=True):
            for _ in range(40):
                thing = studio.thing(concept, source, studio.rng.randint(MIN_OBJECT, top))
                if free_of(thing.box, things, GAP * studio.scale):
                    things.append(thing)
                    break
        if len(things) == len(concepts):
            return things


def exist(studio: Studio) -> Made:
    """One to four different drawings: is a certain one there?"""
    answer, form = studio.deal.pick(
        "exist", [(a, f) for a in ("yes", "no") for f in ("plain", "plain", "plain", "tinted")]
    )
    among = [c for c in studio.concepts if c.icon] if form == "tinted" else studio.concepts
    first = studio.rng.choice(among)
    rest = studio.absent([first], studio.rng.randint(1, 4) - 1) if studio.rng.random() < 0.85 else []
    things = scatter(studio, [first, *rest], tint_first=form == "tinted")
    scene = Scene("exist", studio.image_size, studio.background(things), None, tuple(things))
    if form == "tinted":
        return scene, ask.exist_tinted(things[0], answer, studio)
    return scene, ask.exist(scene, studio, answer, about=things[0].concept)


_CHECKS = [("check", side, answer) for side in ask.SIDES for answer in ("yes", "no")]
_RELATIONS = _CHECKS + [(form, side, "") for form in ("side", "what") for side in ask.SIDES]


def relation(studio: Studio) -> Made:
    """Two or three drawings: how does one lie to the other?"""
    form, side, answer = studio.deal.pick("relation", _RELATIONS)
    number = 3 if studio.rng.random() < 0.35 else 2
    concepts = studio.distinct(number)
    twins = form != "what" and studio.rng.random() < 0.2
    if twins:  # the same drawing twice, told apart by colour
        tinted = [c for c in concepts if c.icon]
        twins = bool(tinted)
        if twins:
            concepts = [tinted[0], tinted[0], *[c for c in concepts if c is not tinted[0]][: number - 2]]
    # What is asked is whether `one` lies at `side` of `other`; if the answer is no, it lies at the opposite side.
    true_side = ask.OPPOSITE[side] if answer == "no" else side
    things = related(studio, concepts, true_side, twins, alone=form == "what")
    scene = Scene("relation", studio.image_size, studio.background(things), None, tuple(things))
    one, other = things[:2]
    if form == "check":
        return scene, ask.relation_check(one, other, side, answer, scene, studio)
    if form == "side":
        return scene, ask.relation_side(one, other, scene, studio)
    return scene, ask.relation_what(one, other, side, scene, studio)


def related(studio: Studio, concepts: list[Concept], side: str, twins: bool, alone: bool) -> list[Thing]:
    """Objects of which the first lies at `side` of the second; if `alone`, no third one lies on that side."""
    top = 46 if len(concepts) == 2 else 36
    sources = ["icon" if twins and i < 2 else studio.source(c) for i, c in enumerate(concepts)]
    tints = studio.rng.sample(list(COLOURS), len(concepts))
    while True:
        sizes = [studio.rng.randint(MIN_OBJECT, top) for _ in concepts]
        along, across = studio.rng.uniform(36, 64), studio.rng.uniform(-10, 10)
        first = studio.rng.uniform(20, UNIT - 20 - along)
        level = studio.rng.uniform(26, UNIT - 26)
        ends = [(first, level), (first + along, level + across)]
        if side in ("above", "below"):
            ends = [(y, x) for x, y in ends]
        if side in ("right", "below"):
            ends.reverse()
        things = [
            studio.thing(c, s, z, at, t)
            for c, s, z, at, t in zip(concepts[:2], sources, sizes, ends, tints, strict=False)
        ]
        if side_of(things[0], things[1], studio.image_size) != side or not free_of(
            things[0].box, things[1:], GAP * studio.scale
        ):
            continue
        if len(concepts) == 2:
            return things
        for _ in range(20):
            third = studio.thing(concepts[2], sources[2], sizes[2], None, tints[2])
            clear = not alone or ask.opposite_half(third, things[1], side)
            if clear and free_of(third.box, things, GAP * studio.scale):
                return [*things, third]


MAKERS: dict[str, Callable[[Studio], Made]] = {
    "name": name,
    "category": category,
    "colour": colour,
    "place": place,
    "size": size,
    "count": count,
    "exist": exist,
    "relation": relation,
}
