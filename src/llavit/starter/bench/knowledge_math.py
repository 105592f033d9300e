"""mini-mathvista: clocks, dice, sums, more or fewer, and fractions of a pie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import cos, pi, sin
from typing import Any

from llavit.starter.bench.asking import by_turns, short, yes_no
from llavit.starter.bench.pen import INK, SMALLEST, WHITE, Pad, face_with, font_for, ground_for, largest
from llavit.starter.kit import Ask, Kit, Sample
from llavit.starter.palette import BACKGROUNDS, COLOURS, Rgb, colours_on

MINUTES = (0, 15, 30, 45)
FRACTIONS = tuple(
    (a, b)
    for b in (2, 3, 4, 5, 6, 8)
    for a in range(1, b)
    if not (b % 2 == a % 2 == 0 or b % 3 == a % 3 == 0)
)
"""Parts and wholes without a common divisor: each fraction can be written in one way."""
_LINE = (128, 128, 128)
_PIPS = {
    0: (),
    1: ((0, 0),),
    2: ((-1, -1), (1, 1)),
    3: ((-1, -1), (0, 0), (1, 1)),
    4: ((-1, -1), (1, -1), (-1, 1), (1, 1)),
    5: ((-1, -1), (1, -1), (0, 0), (-1, 1), (1, 1)),
    6: ((-1, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (1, 1)),
}

TIME = (
    "What time does the clock show?",
    "What time is it?",
    "Which time is shown on the clock?",
    "Read the clock.",
    "What does the clock say?",
    "Tell me the time on this clock.",
)
DICE = (
    "What is the sum of the dice?",
    "What do the two dice add up to?",
    "How many dots do the dice show in total?",
    "Add the numbers on the dice: what do you get?",
    "What is the total of both dice?",
)
DOMINO = (
    "What is the sum of the domino?",
    "What do both halves of the domino add up to?",
    "How many dots does the domino have in total?",
    "Add the two halves of the domino: what do you get?",
    "What is the total of the domino?",
)
SUM = (
    "What is the result?",
    "What is the answer to the calculation?",
    "Which number belongs in place of the question mark?",
    "Solve the calculation in the picture.",
    "What number does this come to?",
    "Work out what is written here.",
)
MORE = (
    "Which color has {which} dots?",
    "Of which color are there {which} dots?",
    "Are there {which} {one} or {other} dots?",
    "Compare the {one} and {other} dots: which color has {which}?",
    "Counting {one} and {other} dots, which color has {which}?",
)
DIFFERENCE = (
    "How many more {one} dots than {other} dots are there?",
    "By how many dots is {one} ahead of {other}?",
    "How many more dots are {one} than {other}?",
    "What is the difference between the numbers of {one} and {other} dots?",
)
FRACTION = (
    "What fraction of the circle is {colour}?",
    "Which fraction of the pie is {colour}?",
    "How much of the circle is {colour}, as a fraction?",
    "What part of the pie is {colour}?",
    "Write the {colour} part of the circle as a fraction.",
    "As a fraction, how much is {colour}?",
)
PARTS = (
    "Into how many equal parts is the circle cut?",
    "How many pieces does the circle have?",
    "What is the number of pieces?",
    "Count the pieces of the circle.",
)


def calculate(kit: Kit) -> list[Sample]:
    """One picture to be counted, read or calculated; answers of each form are dealt alike."""
    form, kit = by_turns(kit, "form", tuple(_FORMS))
    return [_FORMS[form](kit)]


def _pad(kit: Kit, ground: str) -> Pad:
    return Pad(kit.image_size, BACKGROUNDS[ground])


def _sample(
    kit: Kit,
    pad: Pad,
    ask: Ask,
    more: Sequence[Ask],
    caption: str,
    truth: dict[str, Any],
    style: bool = False,
) -> Sample:
    return Sample(pad.finish(), ask, tuple(more), caption, truth, unseen_style=style and kit.split == "test")


def _clock(kit: Kit) -> Sample:
    hour, minute = kit.deal.pick("time", [(h, m) for h in range(1, 13) for m in MINUTES])
    family, font = font_for(kit, small=True)
    face = kit.rng.choice((WHITE, (255, 247, 196), (200, 226, 255)))
    rim = kit.rng.choice([c for c in COLOURS if c != "yellow"])
    ground = ground_for(kit, [rim])
    numbered = kit.rng.choice((12, 4, 0))
    pad = _pad(kit, ground)
    if kit.rng.random() < 0.3:
        pad.box((4, 4, 108, 108), face, COLOURS[rim], 4, radius=10)
    else:
        pad.ring((56, 56), 52, face, COLOURS[rim], 4)

    def at(turn: float, radius: float) -> tuple[float, float]:
        return 56 + radius * sin(2 * pi * turn), 56 - radius * cos(2 * pi * turn)

    for mark in range(1, 13):
        if numbered and mark % (12 // numbered) == 0:
            pad.text(str(mark), at(mark / 12, 39.5), font, SMALLEST)
        else:
            pad.line([at(mark / 12, 41), at(mark / 12, 45.5)], INK, 2.4 if mark % 3 == 0 else 1.4)
    pad.line([at((hour % 12 + minute / 60) / 12, 0), at((hour % 12 + minute / 60) / 12, 20)], INK, 4.4)
    pad.line([at(minute / 60, 0), at(minute / 60, 32)], INK, 2.2)
    pad.ring((56, 56), 3.4, INK)
    time = f"{hour}:{minute:02d}"
    ask = short(kit.phrase(TIME), time, (f"{hour:02d}:{minute:02d}",), topic="time")
    truth = {"form": "clock", "hour": hour, "minute": minute, "ground": ground, "font": family}
    other = f"{hour % 12 + 1}:{minute:02d}"
    shown = kit.rng.choice((time, other))
    more = [yes_no(f"Does the clock show {shown}?", shown == time, topic="time")]
    return _sample(kit, pad, ask, more, f"A clock that shows {time}.", truth, style=numbered > 0)


def _pips(pad: Pad, centre: tuple[float, float], number: int, step: float, radius: float, ink: Rgb) -> None:
    for x, y in _PIPS[number]:
        pad.ring((centre[0] + step * x, centre[1] + step * y), radius, ink)


def _dice(kit: Kit) -> Sample:
    noun, kit = by_turns(kit, "noun", ("dice", "domino"))
    domino = noun == "domino"
    low, high = (0, 6) if domino else (1, 6)
    total = kit.deal.pick("total", range(2, 13))
    one = kit.rng.choice([n for n in range(low, high + 1) if low <= total - n <= high])
    faces = (one, total - one)
    paint = kit.rng.choice(list(COLOURS))
    ground = ground_for(kit, [paint])
    pad = _pad(kit, ground)
    ink = INK if paint in ("yellow", "orange") else WHITE
    if domino:
        y = 56 + kit.rng.uniform(-22, 22)
        pad.box((6, y - 25, 106, y + 25), COLOURS[paint], radius=7)
        pad.line([(56, y - 21), (56, y + 21)], ink, 1.4)
        for number, x in zip(faces, (31, 81), strict=True):
            _pips(pad, (x, y), number, 13, 4.6, ink)
    else:
        for number, x in zip(faces, (30, 82), strict=True):
            y = 56 + kit.rng.uniform(-24, 24)
            pad.box((x - 23, y - 23, x + 23, y + 23), COLOURS[paint], radius=8)
            _pips(pad, (x, y), number, 12.5, 4.6, ink)
    ask = short(kit.phrase(DOMINO if domino else DICE), str(total), topic="total")
    side = kit.rng.randrange(2)
    where = f"{('left', 'right')[side]} {'half of the domino' if domino else 'die'}"
    more = [
        short(f"How many dots are on the {where}?", str(faces[side]), topic="dots"),
        short(f"What color is the {noun}?" if domino else "What color are the dice?", paint, topic="color"),
    ]
    caption = (
        f"A {paint} domino with {faces[0]} and {faces[1]}."
        if domino
        else f"Two {paint} dice: {faces[0]} and {faces[1]}."
    )
    return _sample(
        kit, pad, ask, more, caption, {"form": noun, "faces": faces, "colour": paint, "ground": ground}
    )


def _sum(kit: Kit) -> Sample:
    result = kit.deal.pick("result", range(2, 17))
    plus = kit.deal.pick("sign", (True, False))
    if plus:
        one = kit.rng.randint(max(1, result - 9), min(9, result - 1))
        other = result - one
    else:
        other = kit.rng.randint(1, 9)
        one = result + other
    family, font = font_for(kit, digits=True)
    text = f"{one} {'+' if plus else '-'} {other} = ?"
    colour = kit.rng.choice([c for c in COLOURS if c != "yellow"])
    ground = ground_for(kit, [colour])
    pad = _pad(kit, ground)
    capital = largest(text.replace("-", "+"), font, 100 * kit.scale, 24 * kit.scale) / kit.scale
    _write(pad, (one, other), plus, 56 + kit.rng.uniform(-36, 36), font, capital, COLOURS[colour])
    ask = short(kit.phrase(SUM), str(result), topic="result")
    truth = {
        "form": "sum",
        "text": text,
        "one": one,
        "other": other,
        "plus": plus,
        "ground": ground,
        "font": family,
    }
    which, number = kit.rng.choice((("first", one), ("second", other)))
    more = [
        short(f"What is the {which} number?", str(number), topic="number"),
        short("Is it plus or minus?", "plus" if plus else "minus", topic="sign"),
    ]
    caption = f"The calculation {one} {'plus' if plus else 'minus'} {other}."
    return _sample(kit, pad, ask, more, caption, truth, style=True)


def _write(
    pad: Pad, numbers: tuple[int, int], plus: bool, y: float, font: str, capital: float, ink: Rgb
) -> None:
    """A calculation, centred; the minus is drawn as wide as the plus, for not every font has one."""
    one, other = numbers
    pixels = face_with(font, capital * pad.scale).getlength
    left, middle, right = f"{one} ", "+", f" {other} = ?"
    start = 56 - pixels(left + middle + right) / pad.scale / 2
    sign = start + pixels(left) / pad.scale
    width = pixels(middle) / pad.scale
    pad.text(left, (start, y), font, capital, ink, "l")
    pad.text(right, (sign + width, y), font, capital, ink, "l")
    if plus:
        pad.text(middle, (sign, y), font, capital, ink, "l")
    else:
        pad.line([(sign + 0.12 * width, y), (sign + 0.88 * width, y)], ink, max(1.2, capital / 9))


def _more(kit: Kit) -> Sample:
    fewer, first = kit.deal.pick("asked", [(f, m) for f in (False, True) for m in (False, True)])
    ground = kit.rng.choice(list(BACKGROUNDS))
    right, wrong = kit.rng.sample(colours_on(ground), 2)
    small = kit.rng.randint(2, 5)
    large = small + kit.rng.randint(2, 4)
    counts = {right: small if fewer else large, wrong: large if fewer else small}
    cells = kit.rng.sample([(c, r) for c in range(4) for r in range(4)], small + large)
    pad = _pad(kit, ground)
    for (column, row), colour in zip(cells, [c for c, n in counts.items() for _ in range(n)], strict=True):
        x, y = (14 + 28 * cell + kit.rng.uniform(-3, 3) for cell in (column, row))
        pad.ring((x, y), 9, COLOURS[colour])
    names = (right, wrong) if first else (wrong, right)
    ask = short(
        kit.phrase(MORE, which="fewer" if fewer else "more", one=names[0], other=names[1]),
        right,
        topic="more",
    )
    ahead, behind = sorted(counts, key=lambda colour: -counts[colour])
    more = [
        short(kit.phrase(DIFFERENCE, one=ahead, other=behind), str(large - small), topic="difference"),
        short(f"How many {ahead} dots are there?", str(large), topic="count"),
    ]
    caption = f"{large} {ahead} dots and {small} {behind} dots."
    truth = {"form": "more", "fewer": fewer, "counts": counts, "ground": ground}
    return _sample(kit, pad, ask, more, caption, truth)


def _fraction(kit: Kit) -> Sample:
    part, whole = kit.deal.pick("fraction", FRACTIONS)
    ground = kit.rng.choice(list(BACKGROUNDS))
    colour, rest = kit.rng.sample(colours_on(ground), 2)
    if kit.rng.random() < 0.5:
        rest = "white"
    pad = _pad(kit, ground)
    start = kit.rng.randrange(whole) / whole
    radius = kit.rng.uniform(40, 52)
    for piece in range(whole):
        fill = COLOURS[colour] if piece < part else COLOURS.get(rest, WHITE)
        pad.slice(
            (56, 56),
            radius,
            start + piece / whole,
            start + (piece + 1) / whole,
            fill,
            _LINE if rest == "white" else WHITE,
        )
    ask = short(kit.phrase(FRACTION, colour=colour), f"{part}/{whole}", topic="fraction")
    more = [
        short(kit.phrase(PARTS), str(whole), topic="parts"),
        short(f"How many pieces are {colour}?", str(part), topic="pieces"),
    ]
    caption = f"A circle cut into {whole} parts, {part} of them {colour}."
    truth = {
        "form": "fraction",
        "part": part,
        "whole": whole,
        "colour": colour,
        "rest": rest,
        "ground": ground,
    }
    return _sample(kit, pad, ask, more, caption, truth)


_FORMS: dict[str, Callable[[Kit], Sample]] = {
    "clock": _clock,
    "dice": _dice,
    "sum": _sum,
    "more": _more,
    "fraction": _fraction,
}
