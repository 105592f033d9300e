"""Where scenes are put together: choosing concepts, art styles and colours, and placing boxes without overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from llavit.starter.concepts import Concept, confusable, few, pool
from llavit.starter.palette import BACKGROUNDS, COLOURS, backgrounds_for
from llavit.starter.plan import Deal
from llavit.starter.scene import Box, Thing, place_of
from llavit.starter.sprites import backgrounds_behind, fitted

UNIT = 112
"""Side of the square in which scenes are laid out; pixels are these units times image_size / 112."""
MIN_OBJECT = 28
GAP = 3
SMALL, LARGE = 34, 86
"""Longest side, in units, up to which an object is called small, and from which it is called large."""
FRAME = 9


@dataclass(frozen=True)
class Studio:
    """Everything one picture is made with; all randomness comes from `rng` and `deal`."""

    split: str
    rng: Random
    deal: Deal
    image_size: int = UNIT
    vocabulary: int | None = None
    """How many of the concepts and words of training may appear; None for all."""
    brief: bool = False
    """Only what can be asked without options: what must be named or read is known from training."""

    @cached_property
    def unseen(self) -> bool:
        """Whether this picture shows held-out concepts only (test: 3 of 10), or seen ones only."""
        return (
            self.split == "test"
            and not (self.brief and self.deal.key.endswith(("/name", "/word")))
            and self.deal.pick("unseen", (True, False, False) * 3 + (False,))
        )

    @cached_property
    def emoji(self) -> str:
        """Art family of the emoji: half of a test is drawn in the held-out one."""
        if self.split == "test" and self.deal.pick("style", (True, False)):
            return "openmoji"
        return "twemoji"

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The concepts that may appear."""
        return few(self.vocabulary) if self.vocabulary and not self.unseen else pool(self.unseen)

    @property
    def scale(self) -> float:
        """Pixels per layout unit."""
        return self.image_size / UNIT

    def source(self, concept: Concept) -> str:
        """Emoji or icon, where the concept has both."""
        if concept.emoji is None or (concept.icon is not None and self.rng.random() < 0.35):
            return "icon"
        return self.emoji

    def distinct(self, number: int, among: Sequence[Concept] | None = None) -> list[Concept]:
        """Concepts that nobody would mistake for one another."""
        chosen: list[Concept] = []
        among = among or self.concepts
        while len(chosen) < number:
            concept = self.rng.choice(among)
            if not confusable(concept.name, [c.name for c in chosen]):
                chosen.append(concept)
        return chosen

    def absent(self, present: Sequence[Concept], number: int = 1) -> list[Concept]:
        """Concepts that are not there and look like nothing that is: half of them of the category of one that is.

        Those without a category count as one more category, so that absent concepts are as often of each
        category as present ones, and a category alone never gives an answer away.
        """
        found: list[Concept] = []
        category = self.rng.choice(present).category
        near = [c for c in self.concepts if c.category == category]
        while len(found) < number:
            among = near if self.rng.random() < 0.5 else self.concepts
            concept = self.rng.choice(among)
            if not confusable(concept.name, [c.name for c in (*present, *found)]):
                found.append(concept)
        return found

    def thing(
        self,
        concept: Concept,
        source: str,
        size: float,
        centre: tuple[float, float] | None = None,
        colour: str | None = None,
        margin: int = GAP,
    ) -> Thing:
        """An object of `size` units at `centre` (anywhere if None), moved inside the margins."""
        if source == "icon" and colour is None:
            colour = self.rng.choice(list(COLOURS))
        file = concept.icon if source == "icon" else concept.emoji
        assert file is not None
        width, height = fitted(source, file, size * self.scale)
        box = self.box(width, height, centre, margin)
        return Thing(
            concept=concept,
            source=source,
            box=box,
            colour=colour if source == "icon" else None,
            size=size_word(size),
            place=self.place_word(box, size),
        )

    def box(self, width: int, height: int, centre: tuple[float, float] | None, margin: int = GAP) -> Box:
        """Where something of so many pixels lies: at `centre` in units (anywhere if None), inside the margins."""
        corner = []
        for axis, length in ((0, width), (1, height)):
            low = round(margin * self.scale)
            high = self.image_size - low - length
            if centre is None:
                corner.append(self.rng.randint(low, max(low, high)))
            else:
                corner.append(min(max(low, round(centre[axis] * self.scale - length / 2)), max(low, high)))
        return corner[0], corner[1], corner[0] + width, corner[1] + height

    def place_word(self, box: Box, size: float) -> str | None:
        """Which ninth of the picture an object lies in; None if it is not plain."""
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        return place_of(middle, self.image_size) if size <= 56 else None

    def background(self, things: Sequence[Thing]) -> str:
        """A ground on which every object stands out."""
        fits = [self.grounds(thing) for thing in things]
        votes = {name: sum(name in fit for fit in fits) for name in BACKGROUNDS}
        best = max(votes.values())
        return self.rng.choice([name for name in BACKGROUNDS if votes[name] == best])

    def grounds(self, thing: Thing) -> tuple[str, ...]:
        """Backgrounds on which one object stands out."""
        if thing.source == "icon":
            return backgrounds_for(thing.colour)
        return backgrounds_behind(thing.source, thing.file)


def size_word(size: float) -> str | None:
    """Small or large, for an object of `size` units; None if it is not plain.

    Examples:
        >>> size_word(30), size_word(60), size_word(90)
        ('small', None, 'large')
    """
    return "small" if size <= SMALL else "large" if size >= LARGE else None


def apart(one: Box, other: Box, gap: float) -> bool:
    """Whether two boxes leave at least `gap` pixels between them.

    Examples:
        >>> apart((0, 0, 10, 10), (14, 0, 20, 10), 3), apart((0, 0, 10, 10), (12, 0, 20, 10), 3)
        (True, False)
    """
    return (
        one[2] + gap <= other[0]
        or other[2] + gap <= one[0]
        or one[3] + gap <= other[1]
        or other[3] + gap <= one[1]
    )


def free_of(box: Box, things: Sequence[Thing], gap: float) -> bool:
    """Whether a box keeps its distance from every object."""
    return all(apart(box, thing.box, gap) for thing in things)
