"""Heat maps over a picture: a transparent pixel for each patch, as HTML and as a layer of a matplotlib picture."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from PIL import Image

from llavit.inspect.report import data_url

# From hardly looked at to looked at most: transparent, amber, red, dark red; (share, R, G, B, opacity).
RAMP = np.array(
    [
        (0.0, 255, 214, 120, 0.0),
        (0.25, 255, 190, 80, 0.35),
        (0.5, 249, 130, 50, 0.6),
        (0.75, 224, 60, 40, 0.74),
        (1.0, 150, 10, 40, 0.84),
    ]
)

STYLE = """<style>
.maps { display: flex; gap: .6rem; flex-wrap: wrap; }
.maps figure { flex: 1 1 10rem; max-width: 20rem; margin: 0 0 .4rem; }
.map { position: relative; background-size: 100% 100%; border-radius: .3rem; overflow: hidden; }
.map img { position: absolute; inset: 0; width: 100%; height: 100%; max-width: none; image-rendering: pixelated; }
.map b { position: absolute; box-sizing: border-box; border: 2px solid #fff; outline: 1px solid #000; }
.heads { display: grid; gap: .25rem; grid-template-columns: repeat(auto-fill, minmax(4.2rem, 1fr)); }
.heads figure { margin: 0; } .heads figcaption { font-size: .7rem; }
</style>"""


def heat(patches_hw: np.ndarray, top: float | None = None) -> Image.Image:
    """Paint a map, one pixel a patch, transparent where nothing is.

    Args:
        patches_hw: (rows, columns), not negative.
        top: what has full colour; the map's greatest value if not given.

    Example:
        >>> image = heat(np.array([[0.0, 2.0]]))
        >>> image.size, image.getpixel((0, 0))[3], image.getpixel((1, 0))
        ((2, 1), 0, (150, 10, 40, 214))
    """
    top = float(patches_hw.max()) if top is None else top
    share = patches_hw / top if top > 0 else np.zeros_like(patches_hw)
    rgba = np.stack([np.interp(share, RAMP[:, 0], column) for column in RAMP[:, 1:].T], -1)
    rgba[..., 3] *= 255
    return Image.fromarray(rgba.round().astype(np.uint8), "RGBA")


def background(picture: Image.Image) -> tuple[str, str]:
    """Return (name of a CSS class, style element) that lays a picture under maps: once on a page, however many maps.

    Example:
        >>> name, style = background(Image.new("RGB", (2, 2)))
        >>> style.startswith(f"<style>.{name} ")
        True
    """
    url = data_url(picture)
    name = "under-" + hashlib.sha256(url.encode()).hexdigest()[:12]
    return name, f"<style>.{name} {{ background-image: url({url}); }}</style>"


def heat_html(
    patches_hw: np.ndarray, under: str, patch: int | None = None, top: float | None = None, more: str = ""
) -> str:
    """Return a map over a picture.

    Args:
        patches_hw: (rows, columns).
        under: CSS class of `background`.
        patch: number of a patch that is framed.
        top: see `heat`.
        more: HTML inside of it.

    Example:
        >>> heat_html(np.eye(2), "under", patch=3).count("left:50.00%;top:50.00%")
        1
    """
    rows, columns = patches_hw.shape
    frame = ""
    if patch is not None:
        row, column = divmod(patch, columns)
        frame = (
            f'<b style="left:{100 * column / columns:.2f}%;top:{100 * row / rows:.2f}%;'
            f'width:{100 / columns:.2f}%;height:{100 / rows:.2f}%"></b>'
        )
    image = f'<img alt="" src="{data_url(heat(patches_hw, top))}">'
    return f'<div class="map {under}" style="aspect-ratio:{columns}/{rows}">{image}{frame}{more}</div>'


def draw_heat(axis: Any, picture: Image.Image, patches_hw: np.ndarray, patch: int | None = None) -> None:
    """Draw a map over a picture on a matplotlib axis."""
    rows, columns = patches_hw.shape
    extent = (0, columns, rows, 0)
    axis.imshow(picture, extent=extent)
    axis.imshow(np.asarray(heat(patches_hw)), extent=extent, interpolation="nearest")
    axis.set(xticks=[], yticks=[], xlim=(0, columns), ylim=(rows, 0))
    if patch is not None:
        row, column = divmod(patch, columns)
        across = np.array([0, 1, 1, 0, 0]) + column
        down = np.array([0, 0, 1, 1, 0]) + row
        axis.plot(across, down, color="white", linewidth=2.5)
        axis.plot(across, down, color="black", linewidth=1)
