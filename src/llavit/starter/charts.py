"""Bar charts of real numbers: 3 to 5 bars told apart by colour or by a letter; test tables are never in train."""

from __future__ import annotations

import csv
import json
from functools import cache
from itertools import pairwise
from random import Random
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from llavit.starter.palette import BACKGROUNDS, COLOURS, colours_on
from llavit.starter.scene import Question, Scene
from llavit.starter.sources import font_path, table_path
from llavit.starter.studio import Studio

TABLES = (
    "anscombe.json",
    "burtin.json",
    "cars.json",
    "driving.json",
    "iris.json",
    "la-riots.csv",
    "ohlc.json",
    "seattle-weather.csv",
    "stocks.csv",
    "us-employment.csv",
)
"""Tables whose numbers training draws."""

HELD_OUT_TABLES = ("barley.json", "wheat.json", "iowa-electricity.csv", "crimea.json")
"""Tables whose numbers only the test draws."""

LETTERS = "ABCDEFHKLMPRSTUX"
GROUNDS = ("white", "light gray", "light blue")
MIN_GAP = 0.10
"""Smallest difference between any two bars, as a share of the tallest."""

_SKIP = {"year", "date", "Year", "longitude", "latitude", "month"}


@cache
def columns(table: str) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """The numeric columns of a table."""
    text = table_path(table).read_text(encoding="utf-8")
    rows = json.loads(text) if table.endswith("json") else list(csv.DictReader(text.splitlines()))
    found: dict[str, list[float]] = {}
    for row in rows[:2000]:
        for column, value in row.items():
            if column in _SKIP or value is None:
                continue
            try:
                found.setdefault(column, []).append(float(value))
            except (TypeError, ValueError):
                continue
    return tuple((name, tuple(values)) for name, values in found.items() if len(set(values)) >= 6)


def _heights(rng: Random, tables: tuple[str, ...], number: int) -> tuple[str, str, list[float], list[float]]:
    """Table, column, values, and bar heights (share of the tallest) that differ plainly."""
    while True:
        table = rng.choice(tables)
        column, every = rng.choice(columns(table))
        for _ in range(12):
            values = rng.sample(every, number)
            low, high = min(values), max(values)
            if high <= low:
                continue
            # As in most charts of measurements the axis need not start at 0; it shows no numbers here.
            base = 0.0 if low >= 0.12 * high and low > 0 else low - 0.2 * (high - low)
            heights = [(v - base) / (high - base) for v in values]
            order = sorted(heights)
            if all(b - a >= MIN_GAP for a, b in pairwise(order)):
                return table, column, values, heights


_FORMS: list[tuple[str, str, str]] = [
    *(("colour", which, c) for which in ("tallest", "shortest") for c in COLOURS),
    *(("letter", which, "") for which in ("tallest", "shortest") for _ in range(4)),
    *(("compare", "", answer) for answer in ("yes", "no") for _ in range(4)),
]


def make(studio: Studio) -> tuple[Scene, Question]:
    """A bar chart: which bar is the tallest or shortest, or which of two is taller?"""
    rng = studio.rng
    forms = [form for form in _FORMS if form[0] == "colour"] if studio.brief else _FORMS
    form, which, wanted = studio.deal.pick("chart", forms)
    tables = HELD_OUT_TABLES if studio.split == "test" else TABLES
    number = rng.randint(3, 5)
    table, column, values, heights = _heights(rng, tables, number)
    mode = rng.choice(("colour", "letter")) if form == "compare" else form
    grounds = [g for g in GROUNDS if form != "colour" or wanted in colours_on(g)]
    background = rng.choice(grounds)
    if mode == "colour":
        names = rng.sample(colours_on(background), number)
        if form == "colour":
            target = heights.index(max(heights) if which == "tallest" else min(heights))
            if wanted in names:
                names[names.index(wanted)] = names[target]
            names[target] = wanted
        colours = names
    else:
        names = rng.sample(LETTERS, number)
        colours = [rng.choice(colours_on(background))] * number
    bars = [
        {"name": n, "colour": c, "value": v, "height": round(h, 4)}
        for n, c, v, h in zip(names, colours, values, heights, strict=True)
    ]
    details: dict[str, Any] = {
        "table": table,
        "column": column,
        "mode": mode,
        "bars": bars,
        "unseen_style": table in HELD_OUT_TABLES,
    }
    scene = Scene("chart", studio.image_size, background, details=details)
    if form == "compare":
        return scene, _compare(scene, rng, wanted)
    return scene, _extreme(scene, which)


def _bar(bar: dict[str, Any], mode: str) -> str:
    return f"the {bar['name']} bar" if mode == "colour" else f"bar {bar['name']}"


def _extreme(scene: Scene, which: str) -> Question:
    pick = max if which == "tallest" else min
    bar = pick(scene.details["bars"], key=lambda b: b["height"])
    return Question("chart", f"chart.{scene.details['mode']}", bar["name"], {"which": which})


def _compare(scene: Scene, rng: Random, answer: str) -> Question:
    pair = sorted(rng.sample(scene.details["bars"], 2), key=lambda b: b["height"], reverse=answer == "yes")
    one, other = (_bar(bar, scene.details["mode"]) for bar in pair)
    return Question("chart", "chart.compare", answer, {"bar": one, "other": other})


def more(scene: Scene, studio: Studio) -> list[Question]:
    """Further questions about the chart."""
    number = str(len(scene.details["bars"]))
    return [
        _extreme(scene, "tallest"),
        _extreme(scene, "shortest"),
        _compare(scene, studio.rng, "yes"),
        _compare(scene, studio.rng, "no"),
        Question("count", "chart.count", number),
    ]


def caption(scene: Scene, studio: Studio) -> str:
    """One sentence: how many bars, and the extreme ones."""
    mode, bars = scene.details["mode"], scene.details["bars"]
    number = {3: "three", 4: "four", 5: "five"}[len(bars)]
    tall = _bar(max(bars, key=lambda b: b["height"]), mode)
    short = _bar(min(bars, key=lambda b: b["height"]), mode)
    return studio.rng.choice(
        (
            f"A bar chart with {number} bars; {tall} is the tallest.",
            f"A bar chart with {number} bars; {short} is the shortest.",
            f"A chart of {number} bars: {tall} is the tallest and {short} the shortest.",
        )
    )


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_path("DejaVuSans-Bold")), size)


def render(scene: Scene) -> Image.Image:
    """Draw the bars on an axis, with a letter under each where letters tell them apart."""
    assert scene.background is not None
    side, scale = scene.image_size, scene.image_size / 112
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    draw = ImageDraw.Draw(image)
    bars, lettered = scene.details["bars"], scene.details["mode"] == "letter"
    left, right, top = 8 * scale, 106 * scale, 6 * scale
    floor = (94 if lettered else 104) * scale
    step = (right - left - 2 * scale) / len(bars)
    for place, bar in enumerate(bars):
        x = left + 2 * scale + step * place
        box = [round(x + 0.12 * step), round(floor - bar["height"] * (floor - top))]
        draw.rectangle([*box, round(x + 0.88 * step) - 1, round(floor) - 1], fill=COLOURS[bar["colour"]])
        if lettered:
            spot = (x + step / 2, floor + 9.5 * scale)
            draw.text(spot, bar["name"], fill=(20, 20, 20), font=_font(round(14 * scale)), anchor="mm")
    line = max(1, round(scale))
    draw.line([round(left), round(top), round(left), round(floor)], fill=(60, 60, 60), width=line)
    draw.line([round(left), round(floor), round(right), round(floor)], fill=(60, 60, 60), width=line)
    return image
