"""One drawing as pixels: rasterised from its SVG once per process, cut to its content, tinted and resized."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import Image

from llavit.starter.palette import BACKGROUNDS, Rgb, distance
from llavit.starter.sources import HINT, drawing_path

RASTER = 128
"""Width in pixels at which an SVG is rasterised; larger pictures use their own size."""


@cache
def sprite(source: str, file: str, raster: int = RASTER) -> Image.Image:
    """An RGBA drawing, cut to the box of what is visible.

    Raises:
        ImportError: resvg-py or the package of the drawing is missing.
        FileNotFoundError: the package has no such drawing.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError(f"'resvg_py' is not installed; {HINT}") from error
    svg = drawing_path(source, file).read_text(encoding="utf-8")
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=raster))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    # A faint glow or shadow must not count as part of the object.
    box = image.getchannel("A").point(lambda a: 255 if a > 40 else 0).getbbox()
    if box is None:
        raise ValueError(f"the drawing {file!r} of {source} is empty")
    return image.crop(box)


def fitted(source: str, file: str, size: float) -> tuple[int, int]:
    """Width and height of a drawing whose longer side is `size` pixels."""
    width, height = sprite(source, file).size
    longer = max(width, height)
    return max(1, round(width * size / longer)), max(1, round(height * size / longer))


def paste(
    canvas: Image.Image, source: str, file: str, box: tuple[int, int, int, int], tint: Rgb | None
) -> None:
    """Draw a sprite into `box` (left, top, right, bottom) of an RGB canvas, in one colour if a tint is given."""
    size = (box[2] - box[0], box[3] - box[1])
    raster = RASTER if max(size) <= RASTER else max(canvas.size)
    drawn = sprite(source, file, raster)
    if tint is None:
        drawn = drawn.resize(size, Image.Resampling.LANCZOS)
        canvas.paste(drawn, box[:2], drawn)
    else:
        canvas.paste(tint, box, drawn.getchannel("A").resize(size, Image.Resampling.LANCZOS))


@cache
def backgrounds_behind(source: str, file: str) -> tuple[str, ...]:
    """Backgrounds on which an untinted drawing is plainly visible."""
    return plain_backgrounds(sprite(source, file))


def plain_backgrounds(drawing: Image.Image) -> tuple[str, ...]:
    """Backgrounds from which at least a third of an RGBA drawing differs; the best one if there is none.

    Example:
        >>> plain_backgrounds(Image.new("RGBA", (8, 8), (255, 206, 222, 255)))[:2]
        ('white', 'light gray')
    """
    pixels = np.asarray(drawing.resize((24, 24), Image.Resampling.BILINEAR))
    seen = pixels[pixels[..., 3] > min(128, int(pixels[..., 3].max()) - 1)][
        :, :3
    ]  # a thread is faint everywhere
    share = {name: float((distance(seen, ground) >= 15).mean()) for name, ground in BACKGROUNDS.items()}
    plain = tuple(name for name in BACKGROUNDS if share[name] >= 0.35)
    return plain or (max(share, key=lambda name: share[name]),)
