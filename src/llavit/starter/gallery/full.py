"""The gallery of the "full" edition: npm and Debian packages besides those of PyPI, every family in one split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files

from PIL import Image

from llavit.starter import words as word_list
from llavit.starter.gallery import clipart, emoji, icons, tables, wild
from llavit.starter.gallery.art import Family, drawn
from llavit.starter.kit import Drawing, Edition, Split
from llavit.starter.packages import missing_packages
from llavit.starter.palette import Rgb

CLOTHES = {"train": 5_000, "val": 300, "test": 300}
"""Photos of Fashion-MNIST that a split may show."""
_SPLITS: tuple[Split, ...] = ("train", "val", "test")


class FullGallery:
    """Nine emoji sets, three of icons, clip art, flags, photos, fonts and tables.

    Raises:
        FileNotFoundError: packages of the edition are missing.
    """

    edition: Edition = "full"

    def __init__(self) -> None:
        missing = [package.name for package in missing_packages()]
        if missing:
            raise FileNotFoundError(
                f"the full edition lacks {', '.join(missing)}: `llavit starter build --full` gets the packages; "
                "the edition made of PyPI packages is `starter`"
            )

    @cached_property
    def objects(self) -> tuple[Family, ...]:
        """Families of drawings that are objects of scenes."""
        sets = [known for known, _ in emoji.iconify_families()]
        train = [emoji.twemoji()[0], icons.mdi()[0]]
        test = [emoji.fluent()[0], emoji.openmoji()[0], icons.game_icons(), wild.stamps()]
        return (*sets, *train, icons.lucide(), *test)

    @cached_property
    def alone(self) -> tuple[Family, ...]:
        """Families of pictures that are shown alone."""
        sets = [others for _, others in emoji.iconify_families()]
        others = [pair[1] for pair in (emoji.twemoji(), icons.mdi(), emoji.fluent(), emoji.openmoji())]
        photos = [clipart.clothes(split, CLOTHES[split]) for split in _SPLITS]
        return (*sets, *others, clipart.clipart(), *clipart.flags(), *photos, wild.art4apps(), wild.photos())

    @cached_property
    def _rasters(self) -> dict[tuple[str, str], Family]:
        return {(f.source, d.key): f for f in (*self.objects, *self.alone) for d in f.drawings}

    @cached_property
    def _shown(self) -> dict[tuple[str, bool], tuple[Drawing, ...]]:
        return {
            (split, alone): tuple(
                d
                for f in families
                if split in f.splits
                for d in f.drawings
                if split == "test" or (d.source, d.key) not in self.left_out
            )
            for split in _SPLITS
            for alone, families in ((False, self.objects), (True, self.alone))
        }

    @cached_property
    def left_out(self) -> frozenset[tuple[str, str]]:
        """Drawings (family, key) kept from training because one of the test looks like them: see `starter.twins`."""
        text = files("llavit.starter.gallery").joinpath("twins.json").read_text(encoding="utf-8")
        return frozenset((source, key) for source, key in json.loads(text))

    def drawings(self, split: Split) -> Sequence[Drawing]:
        """Objects of scenes; only the test shows concepts that are held out."""
        return self._shown[split, False]

    def pictures(self, split: Split) -> Sequence[Drawing]:
        """What is shown alone: flags, photos, cartoons, and what a title tells."""
        return self._shown[split, True]

    def render(self, drawing: Drawing, size: int, tint: Rgb | None = None) -> Image.Image:
        """The drawing as RGBA, cut to its content; the longer side has `size` pixels."""
        return drawn(self._rasters[drawing.source, drawing.key], drawing.key, size, tint)

    def fonts(self, split: Split) -> Sequence[tuple[str, str]]:
        """Families with the path of a font file; a family belongs to one split."""
        return tables.fonts(split)

    def words(self, split: Split) -> Sequence[str]:
        """Short common words; those of the test are not in the other splits."""
        return word_list.words(split == "test")

    def tables(self, split: Split) -> Sequence[str]:
        """Names of tables of numbers; a table belongs to one split."""
        return tables.tables(split)

    def columns(self, table: str) -> Sequence[tuple[str, tuple[float, ...]]]:
        """Numeric columns of a table: names and values."""
        return tables.columns(table)
