"""Colours that nobody disputes: eight far-apart paints, six light backgrounds, and which of them go together."""

from __future__ import annotations

from functools import cache

import numpy as np

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
# sRGB to XYZ, each row divided by that of the white point
_XYZ = np.array(
    [
        [0.4124 / 0.95047, 0.3576 / 0.95047, 0.1805 / 0.95047],
        [0.2126, 0.7152, 0.0722],
        [0.0193 / 1.08883, 0.1192 / 1.08883, 0.9505 / 1.08883],
    ]
)
MIN_DISTANCE = 30.0
"""Smallest CIE76 distance of a paint from the background that it lies on."""


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab of sRGB colours, both (..., 3)."""
    share = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    x, y, z = np.moveaxis(linear @ _XYZ.T, -1, 0)
    x, y, z = (np.where(v > 0.008856, np.cbrt(v), 7.787 * v + 16 / 116) for v in (x, y, z))
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def distance(one: Rgb | np.ndarray, other: Rgb) -> np.ndarray:
    """CIE76 difference of a colour, or of many (..., 3), from another; about 2 is just visible, 30 is plain."""
    return np.linalg.norm(lab(np.asarray(one)) - lab(np.asarray(other)), axis=-1)


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
