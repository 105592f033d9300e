"""Bars, lines and pies on 112 x 112 units, with numbers or an axis that can be read at 112 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sin

from llavit.starter.bench.pen import INK, SMALLEST, Pad, letters_on, width_of
from llavit.starter.palette import COLOURS

_TOP, _RIGHT = 12.0, 107.0
_GRID = (204, 204, 204)


def _frame(pad: Pad, top: int | None, font: str, lettered: bool) -> tuple[float, float]:
    """Axes, with a numbered grid up to `top` if it is given: the left end and the floor of the drawing area."""
    left, floor = 6.0, 97.0 if lettered else 105.0
    if top is not None:
        wide = width_of(str(top), font, SMALLEST * pad.scale) / pad.scale
        left = wide + 6
        for step in range(0, 11, 2):
            y = floor - (floor - _TOP) * step / 10
            pad.line([(left, y), (_RIGHT, y)], _GRID, 0.8)
            pad.text(str(top * step // 10), (left - 3, y), font, SMALLEST, INK, "r")
    pad.line([(left, _TOP - 4), (left, floor)], INK, 1)
    pad.line([(left, floor), (_RIGHT, floor)], INK, 1)
    return left, floor


def bars(
    pad: Pad,
    values: Sequence[int],
    colours: Sequence[str],
    names: Sequence[str] | None,
    top: int,
    axis: bool,
    font: str,
) -> None:
    """Upright bars; numbers stand at the axis, or else above the bars."""
    left, floor = _frame(pad, top if axis else None, font, names is not None)
    step = (_RIGHT - left - 2) / len(values)
    roof = _TOP if axis else _TOP + 6
    for place, (value, colour) in enumerate(zip(values, colours, strict=True)):
        middle = left + 2 + step * (place + 0.5)
        height = (floor - roof) * value / top
        pad.box((middle - 0.36 * step, floor - height, middle + 0.36 * step, floor), COLOURS[colour])
        if not axis:
            pad.text(str(value), (middle, floor - height - 7), font, SMALLEST)
        if names:
            pad.text(names[place], (middle, floor + 8), font, SMALLEST + 1)
    pad.line([(left, floor), (_RIGHT, floor)], INK, 1)


def line(
    pad: Pad, values: Sequence[int], colour: str, names: Sequence[str], top: int, axis: bool, font: str
) -> None:
    """A line through points above letters; numbers stand at the axis, or else above the points."""
    left, floor = _frame(pad, top if axis else None, font, True)
    step = (_RIGHT - left) / len(values)
    roof, base = (_TOP, floor) if axis else (_TOP + 8, floor - 15)
    points = [
        (left + step * (place + 0.5), base - (base - roof) * value / top)
        for place, value in enumerate(values)
    ]
    pad.line(points, COLOURS[colour], 2.2)
    for place, (x, y) in enumerate(points):
        pad.ring((x, y), 3.2, COLOURS[colour])
        pad.text(names[place], (x, floor + 8), font, SMALLEST + 1)
        if not axis:
            pad.text(str(values[place]), _beside(values, place, x, y), font, SMALLEST)


def _beside(values: Sequence[int], place: int, x: float, y: float) -> tuple[float, float]:
    """Where the number of a point stands: on the side of the line that is free."""
    before = values[place] - values[place - 1] if place else 0
    after = values[place + 1] - values[place] if place + 1 < len(values) else 0
    if before <= 0 <= after:
        return x, y + 10
    if after <= 0 <= before:
        return x, y - 10
    return (x - 5, y - 9) if before > 0 else (x + 5, y - 9)


def pie(pad: Pad, values: Sequence[int], colours: Sequence[str], font: str | None, start: float = 0) -> None:
    """A pie of shares of 100, clockwise from `start` (share of the turn), with its numbers if a font is given."""
    at = start
    for value, colour in zip(values, colours, strict=True):
        pad.slice((56, 56), 50, at, at + value / 100, COLOURS[colour])
        turn = 2 * pi * (at + value / 200) - pi / 2
        if font:
            spot = (56 + 34 * cos(turn), 56 + 34 * sin(turn))
            pad.text(str(value), spot, font, SMALLEST + 1, letters_on(colour))
        at += value / 100
