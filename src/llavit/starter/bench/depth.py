"""Objects that partly hide one another, so that one is plainly in front."""

from __future__ import annotations

import numpy as np

from llavit.starter.bench.compositions import grounded
from llavit.starter.bench.stage import Shown, Stage, Unfit
from llavit.starter.concepts import Concept
from llavit.starter.palette import COLOURS
from llavit.starter.scene import Scene

LEAST_HIDDEN, MOST_HIDDEN = 0.15, 0.5
"""Share of the pixels of the object behind that the one in front covers."""
_LEAST_DISTANCE = 60.0
"""Least mean difference in RGB between both objects where they overlap: else the edge between them is not plain."""


def opaque(stage: Stage, thing: Shown) -> np.ndarray:
    """Where an object covers the picture: (image_size, image_size), boolean."""
    covered = np.zeros((stage.image_size, stage.image_size), dtype=bool)
    left, top, right, bottom = thing.box
    covered[top:bottom, left:right] = np.asarray(stage.pixels(thing).getchannel("A")) > 128
    return covered


def overlapping(stage: Stage, behind: Concept, front: Concept) -> Scene:
    """Two objects of about the same size, the second of which hides 15 to 50 % of the first.

    Raises:
        Unfit: they do not stand out from each other, or from any ground.
    """
    colours = stage.rng.sample(list(COLOURS), 2)
    for _ in range(40):
        sizes = [stage.rng.randint(48, 60) for _ in range(2)]
        middle = (stage.rng.uniform(44, 68), stage.rng.uniform(44, 68))
        dx, dy = stage.rng.uniform(-30, 30), stage.rng.uniform(-30, 30)
        ends = [(middle[0] - dx / 2, middle[1] - dy / 2), (middle[0] + dx / 2, middle[1] + dy / 2)]
        things = [
            stage.thing(concept, stage.source(concept), size, at, colour)
            for concept, size, at, colour in zip((behind, front), sizes, ends, colours, strict=True)
        ]
        if plainly_hides(stage, things[0], things[1]):
            return grounded(stage, "depth", things)
    raise Unfit


def plainly_hides(stage: Stage, behind: Shown, front: Shown) -> bool:
    """Whether one object hides enough of another one, not too much, and looks different where it does."""
    back, cover = opaque(stage, behind), opaque(stage, front)
    both = back & cover
    if not LEAST_HIDDEN * back.sum() <= both.sum() <= MOST_HIDDEN * back.sum():
        return False
    seen = [np.zeros((stage.image_size, stage.image_size, 3)) for _ in range(2)]
    for pixels, thing in zip(seen, (behind, front), strict=True):
        left, top, right, bottom = thing.box
        pixels[top:bottom, left:right] = np.asarray(stage.pixels(thing).convert("RGB"))
    difference = np.linalg.norm(seen[0][both] - seen[1][both], axis=-1)
    return float(difference.mean()) >= _LEAST_DISTANCE
