"""One exact sentence about a scene, for the pre-training stage.

It says all that is plain in the picture (size, colour, name, place, ground), and always in the same order: what is
left to learn is then in the picture and not in the caption's mood.
"""

from __future__ import annotations

from llavit.starter import charts, shapes, words
from llavit.starter.ask import SIDE_WORDS
from llavit.starter.concepts import article
from llavit.starter.phrases import listed
from llavit.starter.scene import Scene, Thing, side_of
from llavit.starter.studio import Studio

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")

_PLACE_WORDS = {
    "top left": "in the top left corner",
    "top": "at the top",
    "top right": "in the top right corner",
    "left": "on the left",
    "center": "in the center",
    "right": "on the right",
    "bottom left": "in the bottom left corner",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right corner",
}


def caption(scene: Scene, studio: Studio) -> str:
    """Return a short, factual sentence; everything in it is true of the scene.

    The studio gives the random choice of words, where a kind has one.
    """
    if scene.kind == "word":
        return words.caption(scene, studio)
    if scene.kind == "chart":
        return charts.caption(scene, studio)
    if scene.kind == "easyvqa":
        return shapes.caption(scene, studio)
    if scene.kind == "count":
        text = _counted(scene)
    elif len(scene.things) == 1:
        text = _single(scene)
    elif scene.kind == "relation":
        text = _related(scene)
    else:
        text = listed([article(t.noun()) for t in scene.things], "and")
    if scene.frame:
        text += f" in {article(scene.frame)} frame"
    else:
        text += f" on {article(str(scene.background))} background"
    return text[0].upper() + text[1:] + "."


def _single(scene: Scene) -> str:
    (thing,) = scene.things
    noun = thing.noun()
    if thing.size:
        noun = f"{thing.size} {noun}"
    text = article(noun)
    if scene.kind == "category" and thing.concept.category:
        text += f", {_kind(thing.concept.category)},"
    if thing.place:
        text += f" {_PLACE_WORDS[thing.place]}"
    return text


def _kind(category: str) -> str:
    """What a member of the category is, as an apposition."""
    if category in ("food", "drink", "clothing", "furniture"):
        return f"a kind of {category}"
    return article(category)


def _counted(scene: Scene) -> str:
    parts = []
    for concept in dict.fromkeys(t.concept for t in scene.things):
        copies = [t for t in scene.things if t.concept == concept]
        tint = f"{copies[0].colour} " if copies[0].colour else ""
        if len(copies) == 1:
            parts.append(article(tint + concept.name))
        else:
            parts.append(f"{NUMBERS[len(copies)]} {tint}{concept.plural}")
    return listed(parts, "and")


def _related(scene: Scene) -> str:
    one, other = scene.things[:2]
    side = side_of(one, other, scene.image_size)
    assert side is not None
    text = f"{article(one.noun())} {SIDE_WORDS[side]} {article(other.noun())}"
    third: list[Thing] = list(scene.things[2:])
    return f"{text}, and {article(third[0].noun())}" if third else text
