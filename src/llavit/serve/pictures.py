"""Pictures as the tower takes them, kept for when they are shown again: each turn of a chat sends its images anew."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from llavit.model.images import ImageLike, load_image


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that was decoded once.

    Attributes:
        pixels_chw: what the tower takes; shared by requests, so not to be changed.
        digest: of these pixels.
        size: width and height of the picture that they were made from.
    """

    pixels_chw: torch.Tensor
    digest: bytes
    size: tuple[int, int]


class Pictures:
    """An LRU of pictures with a budget of bytes; used from any thread.

    Args:
        process: makes pixels (n, 3, height, width) of n pictures, as `LlavitProcessor.pixel_values`.
        limit: bytes of pixels; 0 keeps nothing.

    Attributes:
        found: pictures that were there already, so far.

    Example:
        >>> pictures = Pictures(lambda images: torch.zeros(len(images), 3, 2, 2), limit=1000)
        >>> first, again = (pictures.load(Image.new("RGB", (4, 3))) for _ in range(2))
        >>> again is first, first.size, pictures.found
        (True, (4, 3), 1)
    """

    def __init__(self, process: Callable[[list[Image.Image]], torch.Tensor], limit: int):
        self.process, self.limit = process, limit
        self.bytes = self.found = 0
        self._kept: dict[Hashable, Picture] = {}  # the one not shown for longest first
        self._lock = threading.Lock()

    def load(self, image: ImageLike | Picture, owner: str = "image") -> Picture:
        """Return a picture; what it came from (a file, bytes, a data URL) is not decoded twice.

        Args:
            image: as of `load_image`.
            owner: what to call it in an error.

        Raises:
            ValueError: see `load_image`.
        """
        if isinstance(image, Picture):
            return image
        key = _key(image) if self.limit else None
        if key is None:  # a picture in memory is known by its pixels
            rgb = load_image(image, owner)
            key = ("pixels", rgb.size, _digest(rgb.tobytes())) if self.limit else None
            return self.take(key, lambda: rgb)
        return self.take(key, lambda: load_image(image, owner))

    def take(self, key: Hashable, decode: Callable[[], Image.Image]) -> Picture:
        """Return the picture of a key, or make and keep it.

        Args:
            key: whoever gives the same key would decode the same picture. None: it is not kept.
            decode: gives the picture in RGB; what it raises is raised, and nothing is kept.
        """
        with self._lock:
            if key is not None and (known := self._kept.pop(key, None)) is not None:
                self._kept[key] = known  # shown now: to the end of the order
                self.found += 1
                return known
        rgb = decode()
        pixels = self.process([rgb])[0]
        made = Picture(pixels, _digest(pixels.numpy().tobytes()), rgb.size)
        if key is not None and pixels.nbytes <= self.limit:
            with self._lock:
                if key not in self._kept:  # nobody else was faster
                    self._kept[key] = made
                    self.bytes += pixels.nbytes
                while self.bytes > self.limit:
                    self.bytes -= self._kept.pop(next(iter(self._kept))).pixels_chw.nbytes
        return made


def file_key(data: bytes) -> Hashable:
    """Return the key of a file's bytes.

    Example:
        >>> file_key(b"GIF89a") == file_key(b"GIF87a")
        False
    """
    return "bytes", _digest(data)


def _key(image: ImageLike) -> Hashable | None:
    """Say what tells an image from others without decoding it; None if that is not known."""
    if isinstance(image, bytes):
        return file_key(image)
    if isinstance(image, str) and image.startswith("data:"):
        return "url", _digest(image.encode("utf-8", "surrogatepass"))
    if not isinstance(image, str | Path):
        return None
    try:
        found = os.stat(image)
    except (OSError, ValueError):
        return None  # whoever opens it says what is wrong
    return "file", str(image), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
