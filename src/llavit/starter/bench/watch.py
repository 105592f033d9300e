"""A gallery that remembers which of its sources a task has used."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from llavit.starter.kit import Drawing, Edition, Gallery, Split
from llavit.starter.palette import Rgb


class Watched:
    """Passes everything on to a gallery; `seen` holds the art families and tables that were asked for."""

    def __init__(self, gallery: Gallery):
        self._gallery = gallery
        self.edition: Edition = gallery.edition
        self.seen: set[str] = set()

    def drawings(self, split: Split) -> Sequence[Drawing]:
        """As the gallery."""
        return self._gallery.drawings(split)

    def pictures(self, split: Split) -> Sequence[Drawing]:
        """As the gallery."""
        return self._gallery.pictures(split)

    def render(self, drawing: Drawing, size: int, tint: Rgb | None = None) -> Image.Image:
        """As the gallery; the art family has been seen."""
        self.seen.add(drawing.source)
        return self._gallery.render(drawing, size, tint)

    def fonts(self, split: Split) -> Sequence[tuple[str, str]]:
        """As the gallery."""
        return self._gallery.fonts(split)

    def words(self, split: Split) -> Sequence[str]:
        """As the gallery."""
        return self._gallery.words(split)

    def tables(self, split: Split) -> Sequence[str]:
        """As the gallery."""
        return self._gallery.tables(split)

    def columns(self, table: str) -> Sequence[tuple[str, tuple[float, ...]]]:
        """As the gallery; the table has been seen."""
        self.seen.add(table)
        return self._gallery.columns(table)
