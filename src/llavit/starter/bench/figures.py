"""Figures of parts, drawn by code: a house, a flower, a car ... with the point at which a pointer meets each part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import permutations
from math import cos, dist, pi, sin

from llavit.starter.bench.pen import INK, WHITE, Pad, Point
from llavit.starter.palette import COLOURS, Rgb

SPOTS: tuple[Point, ...] = ((9, 12), (9, 56), (9, 100), (103, 12), (103, 56), (103, 100))
"""Where letters may stand, in units: left and right of a figure, which lies between x = 24 and x = 88."""
_GREY: Rgb = (150, 150, 150)
_SKIN: Rgb = (244, 204, 164)


def _house(pad: Pad, paint: Rgb) -> dict[str, Point]:
    pad.box((72, 20, 81, 50), _GREY)
    pad.polygon([(22, 56), (56, 24), (90, 56)], paint)
    pad.box((30, 56, 82, 100), (250, 236, 205), INK, 1)
    pad.box((36, 66, 50, 80), COLOURS["blue"], INK, 1)
    pad.box((58, 68, 73, 100), COLOURS["brown"], INK, 1)
    return {"chimney": (77, 26), "roof": (40, 46), "window": (42, 73), "door": (66, 86)}


def _flower(pad: Pad, paint: Rgb) -> dict[str, Point]:
    pad.line([(56, 44), (56, 84)], COLOURS["green"], 4)
    pad.oval((58, 58, 84, 70), COLOURS["green"])
    pad.polygon([(40, 80), (72, 80), (67, 104), (45, 104)], COLOURS["brown"])
    for petal in range(6):
        angle = petal * pi / 3
        pad.ring((56 + 14 * cos(angle), 34 + 14 * sin(angle)), 9, paint)
    pad.ring((56, 34), 8, INK)
    return {"petal": (40, 34), "stem": (56, 73), "leaf": (77, 64), "pot": (50, 92)}


def _car(pad: Pad, paint: Rgb) -> dict[str, Point]:
    pad.polygon([(36, 50), (44, 32), (70, 32), (80, 50)], paint)
    pad.box((22, 48, 92, 72), paint, radius=5)
    pad.polygon([(42, 49), (48, 37), (56, 37), (56, 49)], (214, 240, 255))
    pad.box((60, 50, 75, 69), None, INK, 1.4, radius=2)
    pad.ring((26, 58), 4.5, (255, 247, 150), INK, 1)
    for x in (38, 78):
        pad.ring((x, 74), 10, INK)
        pad.ring((x, 74), 4, _GREY)
    return {"headlight": (26, 58), "window": (50, 44), "door": (69, 58), "wheel": (38, 78)}


def _fish(pad: Pad, paint: Rgb) -> dict[str, Point]:
    pad.polygon([(66, 56), (90, 36), (90, 76)], paint)
    pad.polygon([(44, 38), (56, 20), (66, 42)], _GREY)
    pad.oval((22, 34, 76, 78), paint)
    pad.ring((35, 50), 5, WHITE, INK, 1)
    pad.ring((35, 50), 2, INK)
    pad.line([(22, 62), (32, 63)], INK, 2)
    return {"fin": (56, 29), "eye": (35, 50), "mouth": (25, 63), "tail": (84, 56)}


def _face(pad: Pad, paint: Rgb) -> dict[str, Point]:
    for x in (24, 88):
        pad.ring((x, 58), 8, _SKIN, INK, 1)
    pad.ring((56, 58), 32, _SKIN, INK, 1)
    pad.polygon([(26, 48), (34, 22), (78, 22), (86, 48), (70, 36), (42, 36)], paint)
    for x in (44, 68):
        pad.ring((x, 54), 4.5, WHITE, INK, 1)
        pad.ring((x, 54), 2, INK)
    pad.polygon([(56, 56), (50, 68), (62, 68)], (226, 160, 118))
    pad.line([(44, 76), (56, 80), (68, 76)], COLOURS["red"], 3)
    return {"hair": (46, 28), "eye": (44, 54), "ear": (88, 58), "mouth": (62, 79)}


def _boat(pad: Pad, paint: Rgb) -> dict[str, Point]:
    pad.line([(54, 16), (54, 80)], COLOURS["brown"], 3)
    pad.polygon([(58, 24), (58, 74), (88, 74)], WHITE)
    pad.line([(58, 24), (58, 74), (88, 74), (58, 24)], INK, 1)
    pad.polygon([(54, 14), (34, 20), (54, 27)], paint)
    pad.polygon([(24, 80), (90, 80), (78, 102), (36, 102)], COLOURS["brown"])
    return {"flag": (44, 20), "mast": (54, 52), "sail": (68, 62), "hull": (74, 91)}


def _snowman(pad: Pad, paint: Rgb) -> dict[str, Point]:
    for x in (26, 86):
        pad.line([(56, 70), (x, 54)], COLOURS["brown"], 2.4)
    pad.ring((56, 82), 23, WHITE, INK, 1)
    pad.ring((56, 44), 16, WHITE, INK, 1)
    pad.box((40, 29, 72, 33), INK)
    pad.box((46, 10, 66, 30), INK)
    pad.box((43, 56, 69, 62), paint, radius=2)
    for x in (50, 62):
        pad.ring((x, 40), 1.8, INK)
    pad.polygon([(56, 44), (56, 49), (40, 47)], COLOURS["orange"])
    return {"hat": (56, 20), "nose": (47, 47), "arm": (80, 56), "scarf": (64, 59)}


FIGURES: dict[str, Callable[[Pad, Rgb], dict[str, Point]]] = {
    "house": _house,
    "flower": _flower,
    "car": _car,
    "fish": _fish,
    "face": _face,
    "boat": _boat,
    "snowman": _snowman,
}
"""Draw a figure in a paint; they return the points of its parts."""
UNSEEN = ("boat", "snowman")
"""Figures that only a test shows."""


@cache
def spots_for(points: Sequence[Point]) -> tuple[Point, ...]:
    """A spot for the letter of each point, such that the pointers are short and so do not cross.

    Example:
        >>> spots_for(((20, 10), (90, 100)))
        ((9, 12), (103, 100))
    """
    ways = permutations(SPOTS, len(points))
    return min(ways, key=lambda way: sum(dist(spot, point) for spot, point in zip(way, points, strict=True)))
