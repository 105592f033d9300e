"""mini-chartqa: bars, lines and pies of numbers that come from tables which training never shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from llavit.starter.bench import chart_drawing
from llavit.starter.bench.asking import by_turns, short, yes_no
from llavit.starter.bench.chart_numbers import TOP, UNITS, Series, series, shares
from llavit.starter.bench.pen import Pad, font_for
from llavit.starter.kit import Ask, Kit, Sample
from llavit.starter.palette import BACKGROUNDS, colours_on
from llavit.starter.phrases import listed

NAMES = "ABCDEFHKLMPRSTUX"
GROUNDS = ("white", "light gray", "light blue")
_KINDS = ("value", "value", "extreme", "extreme", "difference", "compare")

VALUE = (
    "What is the value of {one}?",
    "Which value does {one} have?",
    "What number does {one} stand for?",
    "How much is {one}?",
    "Read the value of {one}.",
    "Tell me the number for {one}.",
)
EXTREME = {
    "letter": (
        "Which {mark} has the {which} value?",
        "Which {mark} is the {which}?",
        "What is the label of the {which} value?",
        "Which letter has the {which} value?",
        "Tell me the letter of the {which} {mark}.",
        "At which letter is the {which} {mark}?",
    ),
    "colour": (
        "What color is the {which} {mark}?",
        "Which color is the {which} {mark}?",
        "What is the color of the {which} {mark}?",
        "Which color has the {which} value?",
        "Tell me the color of the {which} {mark}.",
        "The {mark} with the {which} value has what color?",
    ),
}
DIFFERENCE = (
    "What is the difference between {one} and {other}?",
    "How far apart are the values of {one} and {other}?",
    "By how much do {one} and {other} differ?",
    "How much more is {one} than {other}?",
    "How much larger is the value of {one} than that of {other}?",
)
COMPARE = (
    "Is the value of {one} larger than the value of {other}?",
    "Is {one} larger than {other}?",
    "Does {one} have a larger value than {other}?",
    "Compared with {other}, does {one} have the larger value?",
    "Does {one} exceed {other}?",
)


@dataclass(frozen=True)
class Chart:
    """What a chart shows: `names` are letters, or the colours of the bars or slices."""

    form: str
    names: tuple[str, ...]
    values: tuple[int, ...]
    by: str
    axis: bool

    @property
    def mark(self) -> str:
        """What one value is drawn as."""
        return {"bar": "bar", "line": "point", "pie": "slice"}[self.form]

    def noun(self, place: int) -> str:
        """Words for one value."""
        name = self.names[place]
        return f"the {name} {self.mark}" if self.by == "colour" else f"{self.mark} {name}"


def read_chart(kit: Kit) -> list[Sample]:
    """A chart of three to five values, and a question whose answer was dealt before the numbers were drawn."""
    form, kit = by_turns(kit, "form", ("bar", "bar", "line", "pie"))
    kind, kit = by_turns(kit, "kind", _KINDS)
    rng = kit.rng
    family, font = font_for(kit, small=True)
    ground = rng.choice(GROUNDS)
    by = (
        "letter"
        if form == "line"
        else "colour"
        if form == "pie"
        else kit.deal.pick("by", ("letter", "colour"))
    )
    axis = form != "pie" and kit.deal.pick("axis", (True, False))
    numbers, asked = _numbers(kit, form, kind, axis)
    number = len(numbers.values)
    names = rng.sample(NAMES, number) if by == "letter" else rng.sample(colours_on(ground), number)
    if by == "colour" and kind == "extreme":  # every colour is the answer equally often
        _name(names, asked[0], kit.deal.pick("paint", colours_on(ground)))
    one_colour = rng.choice([c for c in colours_on(ground) if c != "yellow"])
    colours = names if by == "colour" else [one_colour] * number
    chart = Chart(form, tuple(names), numbers.values, by, axis)
    pad = Pad(kit.image_size, BACKGROUNDS[ground])
    top = TOP * numbers.unit if axis else max(numbers.values)
    if form == "bar":
        chart_drawing.bars(pad, chart.values, colours, names if by == "letter" else None, top, axis, font)
    elif form == "line":
        chart_drawing.line(pad, chart.values, one_colour, names, top, axis, font)
    else:
        written = font if kind in ("value", "difference") or rng.random() < 0.3 else None
        chart_drawing.pie(pad, chart.values, colours, written, rng.random())
    truth = {"kind": kind, "asked": asked, "chart": asdict(chart), "numbers": asdict(numbers)}
    ask = {"value": _value, "extreme": _extreme, "difference": _difference, "compare": _compare}[kind](
        kit, chart, asked
    )
    numbered = form != "pie" or written is not None
    return [
        Sample(
            pad.finish(),
            ask,
            _more(kit, chart, numbered),
            _caption(chart, numbered),
            truth | {"ground": ground, "font": family},
            unseen_style=kit.split == "test",
        )
    ]


def _caption(chart: Chart, numbered: bool) -> str:
    """All numbers, or the order of the slices where the picture has no numbers."""
    if numbered:
        parts = [f"{name} {value}" for name, value in zip(chart.names, chart.values, strict=True)]
        return f"A {chart.form} chart of {listed(parts, 'and')}."
    order = sorted(chart.names, key=lambda name: -chart.values[chart.names.index(name)])
    return f"A pie chart; its slices from large to small are {listed(order, 'and')}."


def _numbers(kit: Kit, form: str, kind: str, axis: bool) -> tuple[Series, tuple[int, ...]]:
    """Numbers that give the dealt answer, and the places of the values that the question is about."""
    number = kit.rng.randint(3, 4 if form == "pie" or axis else 5)
    if form == "pie":
        return _pie_numbers(kit, kind, number)
    unit = kit.deal.pick("unit", UNITS) if axis else 1
    top = TOP if axis else 99
    least = 1 if axis else 8
    if kind == "value":
        wanted = kit.deal.pick(f"value {axis}", range(1, TOP + 1)) if axis else kit.rng.randint(3, top)
        numbers = series(kit, number, lambda values: wanted in values, unit, top, least)
        return numbers, (numbers.values.index(wanted * unit),)
    if kind == "difference":
        wanted = kit.deal.pick(f"difference {axis}", range(2, 9)) if axis else kit.rng.randint(8, 60)
        numbers = series(kit, number, lambda values: wanted in _differences(values), unit, top, least)
        return numbers, _differences([value // unit for value in numbers.values])[wanted]
    gap = 1 if axis else 8
    return _ordered(kit, series(kit, number, lambda values: True, unit, top, gap), kind)


def _pie_numbers(kit: Kit, kind: str, number: int) -> tuple[Series, tuple[int, ...]]:
    if kind == "value":
        wanted = kit.deal.pick("share", range(10, 65, 5))
        number = 3 if wanted > 40 else number  # four different shares leave no room for a large one
        numbers = shares(kit, number, lambda values: wanted in values)
        return numbers, (numbers.values.index(wanted),)
    if kind == "difference":
        wanted = kit.deal.pick("share apart", range(5, 45, 5))
        number = 3 if wanted > 20 else number
        numbers = shares(kit, number, lambda values: wanted in _differences(values))
        return numbers, _differences(numbers.values)[wanted]
    return _ordered(kit, shares(kit, number, _plainly_apart), kind)


def _plainly_apart(values: Sequence[int]) -> bool:
    """Whether angles differ enough to be compared without numbers."""
    ordered = sorted(values)
    return all(after >= 1.35 * before for before, after in pairwise(ordered))


def _differences(values: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Differences with the places that have them, the larger value first."""
    places = range(len(values))
    return {values[a] - values[b]: (a, b) for a in places for b in places if values[a] > values[b]}


def _ordered(kit: Kit, numbers: Series, kind: str) -> tuple[Series, tuple[int, ...]]:
    """Places for a question about order."""
    values = numbers.values
    if kind == "extreme":
        pick = kit.deal.pick("which", (max, min))
        return numbers, (values.index(pick(values)),)
    one, other = kit.rng.sample(range(len(values)), 2)
    if (values[one] > values[other]) != kit.deal.pick("larger", (True, False)):
        one, other = other, one
    return numbers, (one, other)


def _name(names: list[str], place: int, wanted: str) -> None:
    if wanted in names:
        names[names.index(wanted)] = names[place]
    names[place] = wanted


def _value(kit: Kit, chart: Chart, asked: Sequence[int]) -> Ask:
    return short(
        kit.phrase(VALUE, one=chart.noun(asked[0])), str(chart.values[asked[0]]), topic=f"value {asked[0]}"
    )


def _extreme(kit: Kit, chart: Chart, asked: Sequence[int]) -> Ask:
    highest = chart.values[asked[0]] == max(chart.values)
    words = ("largest", "smallest") if chart.form == "pie" else ("highest", "lowest")
    which = words[0] if highest else words[1]
    return short(
        kit.phrase(EXTREME[chart.by], which=which, mark=chart.mark),
        chart.names[asked[0]],
        topic=f"the {which}",
    )


def _difference(kit: Kit, chart: Chart, asked: Sequence[int]) -> Ask:
    one, other = asked
    question = kit.phrase(DIFFERENCE, one=chart.noun(one), other=chart.noun(other))
    return short(
        question, str(abs(chart.values[one] - chart.values[other])), topic=f"difference {sorted(asked)}"
    )


def _compare(kit: Kit, chart: Chart, asked: Sequence[int]) -> Ask:
    one, other = asked
    question = kit.phrase(COMPARE, one=chart.noun(one), other=chart.noun(other))
    return yes_no(question, chart.values[one] > chart.values[other], topic=f"compare {sorted(asked)}")


def _more(kit: Kit, chart: Chart, written: bool) -> tuple[Ask, ...]:
    """Further questions; a pie without numbers is not asked for any."""
    places = list(range(len(chart.values)))
    one, other = kit.rng.sample(places, 2)
    asks = [
        _extreme(kit, chart, (chart.values.index(max(chart.values)),)),
        _extreme(kit, chart, (chart.values.index(min(chart.values)),)),
        _compare(kit, chart, (one, other)),
    ]
    if written:
        asks.append(_value(kit, chart, (kit.rng.choice(places),)))
        asks.append(_difference(kit, chart, sorted((one, other), key=lambda place: -chart.values[place])))
    return tuple(asks)
