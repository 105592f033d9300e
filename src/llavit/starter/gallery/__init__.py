"""Drawings, fonts, words and tables of both editions: which split may show what, and how a drawing becomes pixels."""

from __future__ import annotations

from functools import cache
from typing import get_args

from llavit.starter.kit import Edition, Gallery


@cache
def open_gallery(edition: Edition = "starter") -> Gallery:
    """The gallery of an edition, opened once per process.

    Args:
        edition: "starter" needs PyPI packages only (the extra `starter`); "full" npm and Debian packages as well,
            which `llavit starter build --full` fetches.

    Raises:
        ImportError: a PyPI package is missing; the message names the extra.
        FileNotFoundError: an npm or Debian package is missing; the message says how to get it.
        ValueError: no such edition.

    Examples:
        >>> gallery = open_gallery("starter")
        >>> {drawing.source for drawing in gallery.drawings("test")} == {"openmoji", "mdi"}
        True
        >>> dog = next(d for d in gallery.drawings("train") if d.name == "dog")
        >>> gallery.render(dog, 40).size, gallery.render(dog, 40).mode
        ((40, 37), 'RGBA')
    """
    if edition == "starter":
        from llavit.starter.gallery.pypi import StarterGallery

        return StarterGallery()
    if edition == "full":
        from llavit.starter.gallery.full import FullGallery

        return FullGallery()
    raise ValueError(f"edition={edition!r}: expected one of {list(get_args(Edition))}")


@cache
def shown_in_training(edition: Edition) -> frozenset[str]:
    """Art families, font families and tables of an edition that training shows; a test's others are unseen styles.

    Examples:
        >>> shown = shown_in_training("starter")
        >>> "twemoji" in shown, "openmoji" in shown, "STIX" in shown
        (True, False, False)
    """
    gallery = open_gallery(edition)
    return frozenset(
        {drawing.source for drawing in (*gallery.drawings("train"), *gallery.pictures("train"))}
        | {family for family, _ in gallery.fonts("train")}
        | set(gallery.tables("train"))
    )
