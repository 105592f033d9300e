"""Which image files are decoded of those that others send, over HTTP or to the web page."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from llavit.model.images import load_image

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
"""What is decoded. Pillow's other decoders stay shut: some start programs (EPS), few are looked after as well."""

UNKNOWN = f"not an image in a format that is known ({', '.join(FORMATS)})"


def load_upload(path: str | Path) -> Image.Image:
    """Return the RGB image of a file that somebody sent, whatever the file is called.

    Raises:
        ValueError: it is of none of `FORMATS`, is broken, or has more pixels than Pillow's limit.

    Example:
        >>> load_upload(__file__)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: formats.py: not an image in a format that is known (PNG, JPEG, GIF, WEBP, BMP, TIFF); it begins ...
    """
    name = Path(path).name
    try:
        with suppress(Image.DecompressionBombError), Image.open(path, formats=FORMATS):
            pass  # decoded below, where errors have words for it
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            head = file.read(20)
        raise ValueError(f"{name}: {UNKNOWN}; it begins with {head!r}") from None
    return load_image(path, name)
