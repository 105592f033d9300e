"""The truth behind a picture: what lies where, in which colour. Answers and captions come from this alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llavit.starter.concepts import Concept

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are outside."""

PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)


@dataclass(frozen=True)
class Thing:
    """One object in a picture."""

    concept: Concept
    source: str
    box: Box
    colour: str | None = None
    size: str | None = None
    place: str | None = None

    @property
    def file(self) -> str:
        """Name of its drawing in the source."""
        file = self.concept.icon if self.source == "icon" else self.concept.emoji
        assert file is not None
        return file

    def noun(self, with_colour: bool = True) -> str:
        """Its name, with the colour in front if it was tinted."""
        return f"{self.colour} {self.concept.name}" if with_colour and self.colour else self.concept.name

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Scene:
    """One picture: its kind, its ground and its objects; `details` holds what is not an object (word, bars, shape)."""

    kind: str
    image_size: int
    background: str | None = None
    frame: str | None = None
    things: tuple[Thing, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def unseen_concept(self) -> bool:
        """Whether it shows something that training neither shows nor asks about: a concept, or a word as a picture."""
        return any(t.concept.held_out for t in self.things) or bool(self.details.get("unseen_word"))

    @property
    def unseen_style(self) -> bool:
        """Whether it is drawn in a style (art family, font, table) that training never shows."""
        return any(t.source == "openmoji" for t in self.things) or bool(self.details.get("unseen_style"))

    def to_json(self) -> dict[str, Any]:
        """Plain values for a test item's "scene"."""
        things = [
            {
                "name": t.concept.name,
                "category": t.concept.category,
                "source": t.source,
                "colour": t.colour,
                "size": t.size,
                "place": t.place,
                "box": list(t.box),
            }
            for t in self.things
        ]
        return {
            "kind": self.kind,
            "background": self.background,
            "frame": self.frame,
            "objects": things,
            **self.details,
        }


@dataclass(frozen=True)
class Question:
    """One question about a scene; `key` and `slots` let it be asked in other words."""

    task: str
    key: str
    answer: str
    slots: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] | None = None
    topic: str = ""
    """Two questions of one topic tell each other's answer: a conversation holds one of them."""


def place_of(centre: tuple[float, float], image_size: int) -> str | None:
    """Name of the ninth of the picture that a point lies in; None near a border between two of them.

    Examples:
        >>> place_of((20, 20), 112), place_of((56, 90), 112), place_of((40, 20), 112)
        ('top left', 'bottom', None)
    """
    cells = []
    for value in centre:
        share = value / image_size
        if share < 0.30:
            cells.append(0)
        elif 0.42 < share < 0.58:
            cells.append(1)
        elif share > 0.70:
            cells.append(2)
        else:
            return None
    return PLACES[cells[1]][cells[0]]


def side_of(one: Thing, other: Thing, image_size: int) -> str | None:
    """Where `one` is, seen from `other`: "left", "right", "above" or "below"; None if it is not plain."""
    dx = one.centre[0] - other.centre[0]
    dy = one.centre[1] - other.centre[1]
    least = 0.2 * image_size
    if abs(dx) >= least and abs(dx) >= 2 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= least and abs(dy) >= 2 * abs(dx):
        return "above" if dy < 0 else "below"
    return None
