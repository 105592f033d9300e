"""Colours that nobody disputes: eight far-apart paints, six light backgrounds, and which of them go together."""

from __future__ import annotations

from functools import cache

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (218, 24, 36),
    "green": (24, 150, 52),
    "blue": (24, 76, 222),
    "yellow": (250, 214, 10),
    "purple": (142, 40, 188),
    "orange": (255, 126, 0),
    "black": (18, 18, 18),
    "brown": (122, 70, 26),
}
BACKGROUNDS: dict[str, Rgb] = {
    "white": (255, 255, 255),
    "light gray": (214, 214, 214),
    "light yellow": (255, 247, 196),
    "light blue": (200, 226, 255),
    "light green": (204, 240, 200),
    "pink": (255, 206, 222),
}
MIN_DISTANCE = 30.0
"""Smallest CIE76 distance of a paint from the background that it lies on."""


def _lab(rgb: Rgb) -> tuple[float, float, float]:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    r, g, b = linear
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.95047,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.08883,
    )
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def distance(one: Rgb, other: Rgb) -> float:
    """CIE76 colour difference; about 2 is just visible, 30 is plain to anyone."""
    return sum((a - b) ** 2 for a, b in zip(_lab(one), _lab(other), strict=True)) ** 0.5


@cache
def backgrounds_for(colour: str | None) -> tuple[str, ...]:
    """Backgrounds on which a paint stands out; every background if no paint is given.

    Examples:
        >>> "light yellow" in backgrounds_for("yellow"), "white" in backgrounds_for("blue")
        (False, True)
    """
    if colour is None:
        return tuple(BACKGROUNDS)
    if colour == "yellow":  # far away in hue, but a thin yellow line on a pale ground is hard to see
        return ("white", "light gray", "light blue")
    return tuple(name for name, rgb in BACKGROUNDS.items() if distance(rgb, COLOURS[colour]) >= MIN_DISTANCE)


@cache
def colours_on(background: str) -> tuple[str, ...]:
    """Paints that stand out on a background."""
    return tuple(colour for colour in COLOURS if background in backgrounds_for(colour))
