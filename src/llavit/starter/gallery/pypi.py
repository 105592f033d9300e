"""The gallery of the "starter" edition: PyPI packages only, with the split that the starter corpus has."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from PIL import Image

from llavit.starter import charts
from llavit.starter import words as word_list
from llavit.starter.concepts import all_concepts, held_out
from llavit.starter.gallery.art import Family, drawn, rasterised
from llavit.starter.gallery.names import accepted_names
from llavit.starter.kit import Drawing, Edition, Split
from llavit.starter.palette import Rgb
from llavit.starter.sources import drawing_path, font_path


class StarterGallery:
    """Twemoji for training and validation, OpenMoji for the test, Material Design Icons for all of them.

    Held-out concepts are shown by the test alone. The icons are one family for all splits: tinted shapes are what
    colours are asked about, and the edition has a single set of them.
    """

    edition: Edition = "starter"

    @cached_property
    def families(self) -> dict[str, Family]:
        """Art families by name."""
        splits: dict[str, tuple[Split, ...]] = {
            "twemoji": ("train", "val"),
            "openmoji": ("test",),
            "mdi": ("train", "val", "test"),
        }
        return {
            source: Family(source, which, _drawings(source), _Rasteriser(source))
            for source, which in splits.items()
        }

    def drawings(self, split: Split) -> Sequence[Drawing]:
        """All that a split may show; only the test shows concepts that are held out."""
        return self._shown[split]

    @cached_property
    def _shown(self) -> dict[str, tuple[Drawing, ...]]:
        every: tuple[Split, ...] = ("train", "val", "test")
        return {
            split: tuple(
                drawing
                for family in self.families.values()
                if split in family.splits
                for drawing in family.drawings
                if split == "test" or not held_out(drawing.name)
            )
            for split in every
        }

    def pictures(self, split: Split) -> Sequence[Drawing]:
        """None in this edition."""
        return ()

    def render(self, drawing: Drawing, size: int, tint: Rgb | None = None) -> Image.Image:
        """The drawing as RGBA, cut to its content; the longer side has `size` pixels."""
        return drawn(self.families[drawing.source], drawing.key, size, tint)

    def fonts(self, split: Split) -> Sequence[tuple[str, str]]:
        """Families with the path of a TrueType file: a family belongs to the test, or to the other splits."""
        families = word_list.HELD_OUT_FONTS if split == "test" else word_list.FONTS
        return [(family, str(font_path(file))) for family, files in families.items() for file in files]

    def words(self, split: Split) -> Sequence[str]:
        """Short common words; those of the test are not in the other splits."""
        return word_list.words(split == "test")

    def tables(self, split: Split) -> Sequence[str]:
        """Names of tables of numbers; those of the test are not in the other splits."""
        return charts.HELD_OUT_TABLES if split == "test" else charts.TABLES

    def columns(self, table: str) -> Sequence[tuple[str, tuple[float, ...]]]:
        """Numeric columns of a table: names and values."""
        return charts.columns(table)


class _Rasteriser:
    def __init__(self, source: str):
        self.source = "icon" if source == "mdi" else source

    def __call__(self, key: str, width: int) -> Image.Image:
        return rasterised(drawing_path(self.source, key).read_text(encoding="utf-8"), width)


def _drawings(source: str) -> tuple[Drawing, ...]:
    mono = source == "mdi"
    return tuple(
        Drawing(source, key, c.name, c.category, tintable=mono, accepted=accepted_names(c.name))
        for c in all_concepts()
        if (key := c.icon if mono else c.emoji)
    )
