"""A family of drawings by one hand, and how one of them becomes pixels: rasterised, cut, tinted, resized."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from llavit.starter.kit import Drawing, Split
from llavit.starter.palette import Rgb
from llavit.starter.sources import HINT

RASTER = 128
"""Longer side in pixels at which vector drawings are rasterised, unless a larger one is asked for."""


@dataclass(frozen=True, eq=False)  # hashed by identity: a family has thousands of drawings
class Family:
    """Drawings that look alike in style.

    Attributes:
        source: name of the family, `Drawing.source` of all its drawings.
        splits: that may show it.
        drawings: in a fixed order.
        raster: (key, width in pixels) -> the whole drawing as RGBA, before it is cut.
    """

    source: str
    splits: tuple[Split, ...]
    drawings: tuple[Drawing, ...]
    raster: Callable[[str, int], Image.Image]


def rasterised(svg: str, width: int) -> Image.Image:
    """An SVG as RGBA pixels.

    Raises:
        ImportError: resvg-py is missing.
        ValueError: the drawing is broken or has no size.

    Examples:
        >>> square = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><path d="M0 0h1v2h-1z"/></svg>'
        >>> rasterised(square, 8).getchannel("A").getbbox()
        (0, 0, 4, 8)
    """
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError(f"'resvg_py' is not installed; {HINT}") from error
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=width)))).convert("RGBA")


@lru_cache(maxsize=4096)
def _cut(family: Family, key: str, width: int) -> Image.Image:
    image = family.raster(key, width)
    # A faint glow or shadow must not count as part of the object.
    box = image.getchannel("A").point(lambda a: 255 if a > 40 else 0).getbbox()
    if box is None:
        raise ValueError(f"the drawing {key!r} of {family.source} is empty")
    return image.crop(box)


def drawn(family: Family, key: str, size: int, tint: Rgb | None = None) -> Image.Image:
    """One drawing of a family, cut to its content, its longer side `size` pixels; in one colour if a tint is given."""
    if size < 1:
        raise ValueError(f"size={size}: a drawing has at least one pixel")
    sprite = _cut(family, key, RASTER)
    if size > max(sprite.size):
        sprite = _cut(family, key, min(1024, RASTER * size // max(sprite.size) + 1))
    longer = max(sprite.size)
    wanted = (max(1, round(sprite.width * size / longer)), max(1, round(sprite.height * size / longer)))
    if tint is None:
        return sprite.resize(wanted, Image.Resampling.LANCZOS)
    alpha = sprite.getchannel("A").resize(wanted, Image.Resampling.LANCZOS)
    image = Image.new("RGBA", wanted, (*tint, 255))
    image.putalpha(alpha)
    return image
