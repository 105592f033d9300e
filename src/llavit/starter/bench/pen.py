"""Pens for pictures of signs, charts, clocks and diagrams: smooth shapes, and letters large enough to be read.

    Pad: shapes (drawn four times larger, then shrunk) --> drawings --> letters --> an RGB picture

Everything is laid out on 112 x 112 units, whatever the picture's size in pixels. The height of letters is given as
the height of their capitals, since fonts of one nominal size differ by a third.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import atan2, cos, pi, sin

from PIL import Image, ImageDraw, ImageFont

from llavit.starter.kit import Kit
from llavit.starter.palette import BACKGROUNDS, Rgb, backgrounds_for
from llavit.starter.studio import UNIT

Point = tuple[float, float]
Frame = tuple[float, float, float, float]
"""Left, top, right, bottom in units."""

SMALLEST = 8.0
"""Least height of capitals in units; 11 px of DejaVu Sans at 112 px."""
INK: Rgb = (24, 24, 24)
PALE: Rgb = (176, 176, 176)
WHITE: Rgb = (255, 255, 255)
_FINE = 4


@cache
def face(path: str, size: int) -> ImageFont.FreeTypeFont:
    """A TrueType font at a size in pixels."""
    return ImageFont.truetype(path, size)


@cache
def _proportions(path: str) -> tuple[float, float]:
    """Heights of a capital and of a small x, as shares of the nominal size."""
    heights = []
    for letter in "Hx":
        _, top, _, bottom = face(path, 100).getbbox(letter)
        heights.append((bottom - top) / 100)
    return heights[0], heights[1]


def face_with(path: str, capital: float) -> ImageFont.FreeTypeFont:
    """The font at the size where a capital is `capital` pixels tall."""
    return face(path, max(1, round(capital / _proportions(path)[0])))


def width_of(text: str, path: str, capital: float) -> float:
    """Width in pixels of a text whose capitals are `capital` pixels tall."""
    left, _, right, _ = face_with(path, capital).getbbox(text)
    return right - left


def largest(text: str, path: str, width: float, tallest: float) -> float:
    """Greatest height of capitals, at most `tallest`, at which a text is not wider than `width`; below 4 it stays 4."""
    capital = tallest
    while capital > 4 and width_of(text, path, capital) > width:
        capital -= 0.5
    return capital


@cache
def lining(path: str) -> bool:
    """Whether all digits are as tall as capitals; where they are not, 1 looks like I, and 0 like o."""
    capital = _proportions(path)[0] * 100
    boxes = [face(path, 100).getbbox(digit) for digit in "0123456789"]
    return all(0.85 * capital <= bottom - top <= 1.15 * capital for _, top, _, bottom in boxes)


@cache
def _slant(path: str) -> float:
    """How far the top of an l lies to the right of its foot, as a share of its height."""
    letter = Image.new("L", (160, 160))
    ImageDraw.Draw(letter).text((40, 120), "l", fill=255, font=face(path, 100), anchor="ls")
    box = letter.getbbox()
    assert box is not None
    _, top, _, bottom = box
    fifth = (bottom - top) // 5
    middles = []
    for upper, lower in ((top + fifth, top + 2 * fifth), (bottom - 2 * fifth, bottom - fifth)):
        strip = letter.crop((0, upper, 160, lower)).getbbox()
        assert strip is not None
        middles.append((strip[0] + strip[2]) / 2)
    return (middles[0] - middles[1]) / (bottom - top)


@cache
def plain(path: str) -> bool:
    """Whether a font can be read at the smallest size: upright, lining digits, an x not tiny beside a capital."""
    capital, small = _proportions(path)
    return small >= 0.6 * capital and lining(path) and abs(_slant(path)) < 0.06


def font_for(kit: Kit, small: bool = False, digits: bool = False) -> tuple[str, str]:
    """Family and path of a font of the split, each family as often.

    Args:
        kit: whose gallery and randomness are used.
        small: only plain fonts; for small letters, and for letters that stand alone.
        digits: only fonts whose digits are as tall as capitals.
    """
    every = list(kit.gallery.fonts(kit.split))
    fonts = [f for f in every if (plain(f[1]) or not small) and (lining(f[1]) or not digits)] or every
    family = kit.rng.choice(sorted({family for family, _ in fonts}))
    return kit.rng.choice([font for font in fonts if font[0] == family])


def letters_on(paint: str) -> Rgb:
    """White or dark: the colour of letters on a painted sign.

    Example:
        >>> letters_on("blue"), letters_on("yellow")
        ((255, 255, 255), (24, 24, 24))
    """
    return INK if paint in ("yellow", "orange") else WHITE


def ground_for(kit: Kit, colours: Sequence[str]) -> str:
    """A light background on which all of these paints stand out; white if there is none."""
    fits = [name for name in BACKGROUNDS if all(name in backgrounds_for(colour) for colour in colours)]
    return kit.rng.choice(fits or ["white"])


class Pad:
    """A picture in the making, in units: shapes lie below drawings, and these below letters.

    Example:
        >>> pad = Pad(112, (255, 255, 255))
        >>> pad.box((10, 10, 50, 50), (218, 24, 36))
        >>> pad.finish().getpixel((30, 30))
        (218, 24, 36)
    """

    def __init__(self, side: int, ground: Rgb):
        self.side, self.scale = side, side / UNIT
        self._shapes = Image.new("RGB", (side * _FINE, side * _FINE), ground)
        self._draw = ImageDraw.Draw(self._shapes)
        self._drawings: list[tuple[Image.Image, tuple[int, int]]] = []
        self._texts: list[tuple[str, Point, str, float, Rgb, str]] = []

    def _fine(self, values: Sequence[float]) -> list[int]:
        return [round(value * self.scale * _FINE) for value in values]

    def box(
        self, frame: Frame, fill: Rgb | None, outline: Rgb | None = None, line: float = 1, radius: float = 0
    ):
        """A rectangle, with round corners if a radius is given."""
        left, top, right, bottom = self._fine(frame)
        rounded, width = self._fine((radius, line))
        self._draw.rounded_rectangle(
            [left, top, right - 1, bottom - 1], rounded, fill=fill, outline=outline, width=max(1, width)
        )

    def ring(
        self, centre: Point, radius: float, fill: Rgb | None, outline: Rgb | None = None, line: float = 1
    ):
        """A disc or a circle."""
        x, y = centre
        self._draw.ellipse(
            self._fine((x - radius, y - radius, x + radius, y + radius)),
            fill=fill,
            outline=outline,
            width=max(1, self._fine((line,))[0]),
        )

    def oval(self, frame: Frame, fill: Rgb):
        """An ellipse that fills a frame."""
        self._draw.ellipse(self._fine(frame), fill=fill)

    def slice(self, centre: Point, radius: float, start: float, end: float, fill: Rgb, outline: Rgb = WHITE):
        """A piece of a pie, from one share of the turn to another, clockwise from the top."""
        x, y = centre
        self._draw.pieslice(
            self._fine((x - radius, y - radius, x + radius, y + radius)),
            360 * start - 90,
            360 * end - 90,
            fill=fill,
            outline=outline,
            width=max(1, self._fine((1,))[0]),
        )

    def line(self, points: Sequence[Point], ink: Rgb, width: float = 1):
        """A line through points, with round joints."""
        flat = [tuple(self._fine(point)) for point in points]
        thick = max(1, self._fine((width,))[0])
        self._draw.line(flat, fill=ink, width=thick, joint="curve")
        for x, y in flat if width > 1.5 else ():
            self._draw.ellipse([x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2], fill=ink)

    def polygon(self, points: Sequence[Point], fill: Rgb):
        """A filled polygon."""
        self._draw.polygon([tuple(self._fine(point)) for point in points], fill=fill)

    def arrow(self, start: Point, end: Point, ink: Rgb, width: float = 2.5, head: float = 8):
        """A straight arrow whose tip lies at `end`."""
        angle = atan2(end[1] - start[1], end[0] - start[0])
        neck = (end[0] - head * 0.8 * cos(angle), end[1] - head * 0.8 * sin(angle))
        self.line([start, neck], ink, width)
        wings = [
            (end[0] - head * cos(angle + turn), end[1] - head * sin(angle + turn))
            for turn in (pi / 6, -pi / 6)
        ]
        self.polygon([end, *wings], ink)

    def drawing(self, image: Image.Image, centre: Point):
        """A picture with transparency, in its own size in pixels."""
        width, height = image.size
        corner = (round(centre[0] * self.scale - width / 2), round(centre[1] * self.scale - height / 2))
        self._drawings.append((image, corner))

    def text(self, text: str, at: Point, font: str, capital: float, ink: Rgb = INK, align: str = "m"):
        """Letters beside a point: centred on it ("m"), from it to the right ("l") or up to it ("r")."""
        self._texts.append((text, at, font, capital, ink, align))

    def finish(self) -> Image.Image:
        """The picture as RGB."""
        image = self._shapes.resize((self.side, self.side), Image.Resampling.BOX)
        for drawing, corner in self._drawings:
            image.paste(drawing, corner, drawing)
        draw = ImageDraw.Draw(image)
        for text, (x, y), font, capital, ink, align in self._texts:
            baseline = y * self.scale + capital * self.scale / 2
            written = face_with(font, capital * self.scale)
            draw.text((x * self.scale, round(baseline)), text, fill=ink, font=written, anchor=f"{align}s")
        return image
