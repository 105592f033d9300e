"""Drawings for diagrams and choices: which there are of a name, and a ground on which all of them stand out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from PIL import Image

from llavit.starter.concepts import all_concepts, confusable, held_out
from llavit.starter.gallery import shown_in_training
from llavit.starter.kit import Drawing, Gallery, Kit, Split
from llavit.starter.palette import BACKGROUNDS, COLOURS, backgrounds_for
from llavit.starter.sprites import plain_backgrounds

NO_THINGS = ("flag", "symbol", "country", "outline", "number", "letter", "action")
"""Categories of a gallery that are no things."""


@lru_cache(maxsize=16)
def shelf(gallery: Gallery, split: Split) -> dict[str, tuple[Drawing, ...]]:
    """Drawings of things by name, as a split may show them."""
    found: dict[str, list[Drawing]] = {}
    for drawing in gallery.drawings(split):
        if drawing.category not in NO_THINGS:
            found.setdefault(drawing.name, []).append(drawing)
    return {name: tuple(drawings) for name, drawings in found.items()}


@lru_cache(maxsize=8192)
def _plain(gallery: Gallery, drawing: Drawing) -> tuple[str, ...]:
    return plain_backgrounds(gallery.render(drawing, 64))


@lru_cache(maxsize=8192)
def solid(gallery: Gallery, drawing: Drawing) -> bool:
    """Whether a drawing is still seen at a quarter of the picture: not a stick, not a few thin lines."""
    image = gallery.render(drawing, 48)
    covered = sum(image.getchannel("A").histogram()[129:])
    return min(image.size) >= 0.35 * max(image.size) and covered >= 0.15 * 48 * 48


@dataclass(frozen=True)
class Shown:
    """A drawing as it is shown: tinted if it has no colours of its own."""

    drawing: Drawing
    tint: str | None

    @property
    def name(self) -> str:
        """Of what it shows."""
        return self.drawing.name

    def pixels(self, kit: Kit, size: float) -> Image.Image:
        """RGBA; the longer side has `size` units."""
        tint = COLOURS[self.tint] if self.tint else None
        return kit.gallery.render(self.drawing, round(size * kit.scale), tint)


@cache
def everyday() -> frozenset[str]:
    """Names of things that anybody knows, and of which is known what could be mistaken for what.

    Example:
        >>> "dog" in everyday(), "blackbuck" in everyday()
        (True, False)
    """
    return frozenset(concept.name for concept in all_concepts())


def drawings_of(kit: Kit, name: str) -> list[Drawing]:
    """Solid drawings of a name; there may be none."""
    every = shelf(kit.gallery, kit.split)[name]  # type: ignore[arg-type]  # hashed by identity
    return [drawing for drawing in every if solid(kit.gallery, drawing)]  # type: ignore[arg-type]


def named(kit: Kit, names: Sequence[str]) -> tuple[list[Shown], str]:
    """One drawing of each name, and a background on which all of them stand out; on white if there is none."""
    gallery, rng = kit.gallery, kit.rng
    every = shelf(gallery, kit.split)  # type: ignore[arg-type]
    drawings = [rng.choice(drawings_of(kit, name) or every[name]) for name in names]
    fits = [_plain(gallery, drawing) for drawing in drawings if not drawing.tintable]  # type: ignore[arg-type]
    ground = rng.choice([g for g in BACKGROUNDS if all(g in fit for fit in fits)] or ["white"])
    tints = [colour for colour in COLOURS if ground in backgrounds_for(colour)]
    return [Shown(d, rng.choice(tints) if d.tintable else None) for d in drawings], ground


def unlike(kit: Kit, among: Sequence[str], number: int, beside: Sequence[str] = ()) -> list[str]:
    """Random names of solid drawings that nobody would mistake for one another, nor for those in `beside`.

    Raises:
        ValueError: there are not that many.
    """
    order = list(among)
    kit.rng.shuffle(order)
    found: list[str] = []
    for name in order:
        if len(found) < number and not confusable(name, [*beside, *found]) and drawings_of(kit, name):
            found.append(name)
    if len(found) < number:
        raise ValueError(f"only {len(found)} of {len(order)} names can be told apart; {number} are needed")
    return found


def unseen_concept(shown: Sequence[Shown]) -> bool:
    """Whether one of them is never shown in training."""
    return any(held_out(thing.name) for thing in shown)


def unseen_style(kit: Kit, shown: Sequence[Shown]) -> bool:
    """Whether one of them is drawn by a hand that training never shows."""
    return any(thing.drawing.source not in shown_in_training(kit.gallery.edition) for thing in shown)
