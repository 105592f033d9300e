"""mini-ai2d: arrows from thing to thing, food chains, and letters that point at things or at parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise, permutations
from math import atan2, cos, sin
from typing import Any

from llavit.starter.bench.asking import by_turns, short
from llavit.starter.bench.figures import FIGURES, UNSEEN, spots_for
from llavit.starter.bench.pen import INK, WHITE, Pad, Point, font_for
from llavit.starter.bench.things import Shown, everyday, named, shelf, unlike, unseen_concept, unseen_style
from llavit.starter.concepts import article, held_out
from llavit.starter.kit import Ask, Kit, Sample
from llavit.starter.palette import BACKGROUNDS, COLOURS
from llavit.starter.phrases import listed

LETTERS = "EHKMPRTX"
"""Letters of labels; those of options are others."""
_CENTRES: tuple[Point, ...] = ((24, 24), (88, 24), (24, 88), (88, 88))
_SIZE = 36

NEXT = {
    "after": (
        "What comes after the {thing}?",
        "What follows the {thing}?",
        "To what does the arrow from the {thing} point?",
        "Which thing is next after the {thing}?",
        "What do you reach from the {thing}?",
        "Where does the arrow that starts at the {thing} lead?",
    ),
    "before": (
        "What comes before the {thing}?",
        "What is followed by the {thing}?",
        "From what does the arrow to the {thing} come?",
        "Which thing is just before the {thing}?",
        "What leads to the {thing}?",
        "Where does the arrow that ends at the {thing} start?",
    ),
    "start": (
        "What is at the start of the diagram?",
        "Where does the path of arrows start?",
        "What comes first?",
        "Which thing is the first one?",
        "With what does the diagram begin?",
        "To which thing does no arrow lead?",
    ),
    "end": (
        "What is at the end of the diagram?",
        "Where does the path of arrows end?",
        "What comes last?",
        "Which thing is the last one?",
        "With what does the diagram finish?",
        "From which thing does no arrow start?",
    ),
}
FOOD = {
    "after": (
        "Arrows lead from the food to the eater. What eats the {thing}?",
        "The arrows point to the one that eats. By what is the {thing} eaten?",
        "In this food chain, what is the {thing} eaten by?",
        "Arrows lead from the eaten to the eater. Who eats the {thing}?",
        "The arrows point from prey to hunter. What hunts the {thing}?",
    ),
    "before": (
        "Arrows lead from the food to the eater. What does the {thing} eat?",
        "The arrows point to the one that eats. What is eaten by the {thing}?",
        "In this food chain, what does the {thing} eat?",
        "Arrows lead from the eaten to the eater. What is the food of the {thing}?",
        "The arrows point from prey to hunter. What does the {thing} hunt?",
    ),
}
LABEL = {
    "thing": (
        "What does the letter {letter} label?",
        "To what does the letter {letter} belong?",
        "What is labelled {letter}?",
        "Which thing is marked with {letter}?",
        "At what does the line from {letter} end?",
        "What is the letter {letter} connected to?",
    ),
    "letter": (
        "Which letter labels the {thing}?",
        "Which letter belongs to the {thing}?",
        "What is the label of the {thing}?",
        "With which letter is the {thing} marked?",
        "The line from which letter ends at the {thing}?",
        "What letter is the {thing} connected to?",
    ),
}


def diagram(kit: Kit) -> list[Sample]:
    """A diagram, and a choice of what an arrow or a letter points at."""
    form, kit = by_turns(kit, "form", tuple(_FORMS))
    return [_FORMS[form](kit)]


@cache
def _paths() -> tuple[tuple[int, ...], ...]:
    """Orders of the four corners whose arrows do not cross: at most one of them is a diagonal."""
    diagonals = ({0, 3}, {1, 2})
    return tuple(
        order for order in permutations(range(4)) if sum({a, b} in diagonals for a, b in pairwise(order)) <= 1
    )


def _five(kit: Kit, among: Sequence[str]) -> list[str]:
    """Four names to draw and one that is not drawn; in 3 of 10 tests those that training never shows."""
    wanted = kit.split == "test" and kit.deal.pick("unseen", (True, False, False) * 3 + (False,))
    pool = [name for name in among if held_out(name) == wanted]
    try:
        return unlike(kit, pool, 5)
    except ValueError:  # too few of that kind
        return unlike(kit, among, 5)


def _things(kit: Kit, animals: bool = False) -> list[str]:
    """Names of everyday things with a category, or of animals alone."""
    drawn = shelf(kit.gallery, kit.split)  # type: ignore[arg-type]  # hashed by identity
    known = {name: found[0].category for name, found in drawn.items() if name in everyday()}
    return [name for name, category in known.items() if (category == "animal" if animals else category)]


def _chain(kit: Kit, food: bool = False) -> Sample:
    kind = kit.deal.pick("kind", ("after", "before") if food else ("after", "before", "start", "end"))
    *names, absent = _five(kit, _things(kit, animals=food))
    shown, ground = named(kit, names)
    order = kit.rng.choice(_paths())
    pad = Pad(kit.image_size, BACKGROUNDS[ground])
    for here, there in pairwise(order):
        pad.arrow(*_between(_CENTRES[here], _CENTRES[there]), INK, 2.6, 9)
    for thing, centre in zip(shown, _CENTRES, strict=True):
        pad.drawing(thing.pixels(kit, _SIZE), centre)
    chain = [names[corner] for corner in order]
    place = kit.deal.pick("step", range(3))
    asked, answer = {
        "after": (chain[place], chain[place + 1]),
        "before": (chain[place + 1], chain[place]),
        "start": ("", chain[0]),
        "end": ("", chain[3]),
    }[kind]
    others = [name for name in (*names, *([absent] if asked else [])) if name not in (asked, answer)]
    ask = kit.choice(
        kit.phrase((FOOD if food else NEXT)[kind], thing=asked), answer, others, topic=f"{kind} {asked}"
    )
    more = []
    for step in range(3):
        if chain[step] != asked:
            question = kit.phrase((FOOD if food else NEXT)["after"], thing=chain[step])
            more.append(short(question, chain[step + 1], topic=f"step {step}"))
    nouns = [article(name) for name in chain]
    caption = f"Arrows lead from {nouns[0]} to {nouns[1]}, then to {nouns[2]} and to {nouns[3]}."
    truth = {
        "form": "food" if food else "chain",
        "kind": kind,
        "asked": asked,
        "chain": chain,
        "order": order,
    }
    return _sample(kit, pad, shown, ask, more, caption, truth, ground)


def _between(here: Point, there: Point, gap: float = 22) -> tuple[Point, Point]:
    """Ends of an arrow that leaves room around two drawings."""
    angle = atan2(there[1] - here[1], there[0] - here[0])
    reach = gap * max(abs(cos(angle)), abs(sin(angle))) + gap * 0.62 * min(abs(cos(angle)), abs(sin(angle)))
    step = (reach * cos(angle), reach * sin(angle))
    return (here[0] + step[0], here[1] + step[1]), (there[0] - step[0], there[1] - step[1])


def _labels(kit: Kit) -> Sample:
    """Three letters on the left, three things on the right, and a line from each letter to its thing."""
    *names, spare, absent = _five(kit, _things(kit))
    del spare
    shown, ground = named(kit, names)
    family, font = font_for(kit, small=True)
    pad = Pad(kit.image_size, BACKGROUNDS[ground])
    letters = kit.rng.sample(LETTERS, 4)
    rows = (20.0, 56.0, 92.0)
    heights = kit.rng.sample(rows, 3)
    for thing, y, letter, height in zip(shown, rows, letters, heights, strict=False):
        pad.line([(22, height), (70, y)], INK, 1.8)
        pad.ring((70, y), 2.6, INK)
        pad.drawing(thing.pixels(kit, 33), (91, y))
        pad.text(letter, (12, height), font, 12)
    return _labelled(kit, pad, names, letters, absent, ground, family, shown)


def _labelled(
    kit: Kit,
    pad: Pad,
    names: Sequence[str],
    letters: Sequence[str],
    absent: str | None,
    ground: str,
    family: str,
    shown: Sequence[Shown],
    figure: str | None = None,
) -> Sample:
    """A question about one letter; a thing and a letter that are not there fill the choice up."""
    kind = kit.deal.pick("kind", ("thing", "letter"))
    place = kit.deal.pick("label", range(len(names)))
    wrong = [name for name in (*names, absent) if name and name != names[place]]
    if kind == "thing":
        ask = kit.choice(
            kit.phrase(LABEL["thing"], letter=letters[place]), names[place], wrong, topic=names[place]
        )
    else:
        others = [letter for letter in letters if letter != letters[place]]
        ask = kit.choice(
            kit.phrase(LABEL["letter"], thing=names[place]), letters[place], others, topic=names[place]
        )
    more = [
        short(kit.phrase(LABEL["letter"], thing=name), letter, topic=name)
        for name, letter in zip(names, letters, strict=False)
        if name != names[place]
    ]
    said = [f"{letter} at the {name}" for letter, name in zip(letters, names, strict=False)]
    caption = _sentence(figure, said)
    truth = {
        "form": "part" if figure else "label",
        "kind": kind,
        "asked": names[place],
        "labels": dict(zip(names, letters, strict=False)),
        "figure": figure,
        "font": family,
    }
    return _sample(kit, pad, shown, ask, more, caption, truth, ground, figure)


def _sentence(figure: str | None, said: Sequence[str]) -> str:
    what = article(figure) if figure else "a diagram"
    return f"{what[0].upper()}{what[1:]} with the labels {listed(list(said), 'and')}."


def _parts(kit: Kit) -> Sample:
    """A figure drawn of parts, each with a letter."""
    unseen = kit.split == "test" and kit.deal.pick("unseen", (True, False, False) * 3 + (False,))
    figure = kit.rng.choice([name for name in FIGURES if (name in UNSEEN) == unseen])
    family, font = font_for(kit, small=True)
    ground = kit.rng.choice(["white", "light gray", "light blue", "light green"])
    pad = Pad(kit.image_size, BACKGROUNDS[ground])
    paint = kit.rng.choice(("red", "blue", "purple", "orange", "yellow"))
    points = FIGURES[figure](pad, COLOURS[paint])
    letters = kit.rng.sample(LETTERS, len(points))
    spots = spots_for(tuple(points.values()))
    for letter, spot, point in zip(letters, spots, points.values(), strict=True):
        start = (spot[0] + (7.5 if spot[0] < 56 else -7.5), spot[1])
        pad.line([start, point], WHITE, 2.6)
        pad.line([start, point], INK, 1.4)
        pad.ring(point, 2.4, INK, WHITE, 0.8)
        pad.text(letter, spot, font, 10)
    return _labelled(kit, pad, list(points), letters, None, ground, family, (), figure)


def _sample(
    kit: Kit,
    pad: Pad,
    shown: Sequence[Shown],
    ask: Ask,
    more: Sequence[Ask],
    caption: str,
    truth: dict[str, Any],
    ground: str,
    figure: str | None = None,
) -> Sample:
    names = tuple(thing.name for thing in shown)
    return Sample(
        pad.finish(),
        ask,
        tuple(more),
        caption,
        {**truth, "ground": ground},
        names,
        unseen_concept(shown) or figure in UNSEEN,
        unseen_style(kit, shown) or ("font" in truth and kit.split == "test"),
    )


_FORMS: dict[str, Callable[[Kit], Sample]] = {
    "chain": _chain,
    "food": lambda kit: _chain(kit, food=True),
    "labels": _labels,
    "parts": _parts,
}
