"""Anchors: the official test questions of easy-VQA, and captions of pictures in a style unseen in training."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from llavit.starter import shapes
from llavit.starter.ask import SIDES
from llavit.starter.bench.asking import short
from llavit.starter.bench.compositions import alone, beside, retried
from llavit.starter.bench.stage import Shown, Stage
from llavit.starter.bench.task import Task
from llavit.starter.captions import caption
from llavit.starter.concepts import article
from llavit.starter.kit import Ask, Kit, Sample, Split
from llavit.starter.phrases import DESCRIBE
from llavit.starter.scene import Scene
from llavit.starter.sources import easyvqa_questions
from llavit.starter.studio import Studio

OFFICIAL = 9_673
"""Test questions of easy-VQA 1.0."""


@lru_cache(maxsize=3)
def _questions(split: Split) -> tuple[tuple[int, str, str], ...]:
    """Questions of a split as (image, question, answer), in an order that is random and always the same."""
    official = easyvqa_questions("test" if split == "test" else "train")
    rows = [
        (image, question, answer)
        for image, asked in sorted(official.items())
        if split == "test" or shapes.in_validation(image) == (split == "val")
        for question, answer in asked
    ]
    Random(f"easy-vqa/{split}").shuffle(rows)
    return tuple(rows)


def easy_vqa(kit: Kit) -> list[Sample]:
    """Question number n of easy-VQA in a fixed random order: the first 300 are a fixed sample, all are all."""
    rows = _questions(kit.split)
    image, question, answer = rows[kit.deal.ordinal % len(rows)]
    official = "test" if kit.split == "test" else "train"
    colour, shape = shapes.truth_of(official, image)
    details = {"easyvqa_split": official, "easyvqa_image": image, "colour": colour, "shape": shape}
    scene = Scene("easyvqa", kit.image_size, details=details)
    studio = Studio(kit.split, kit.rng, kit.deal, kit.image_size)
    more = [q for q in shapes.more(scene, studio) if q.slots["question"].lower() != question.lower()]
    return [
        Sample(
            image=shapes.render(scene),
            ask=short(f"{question[0].upper()}{question[1:]}", answer),
            more=tuple(short(q.slots["question"], q.answer) for q in more),
            caption=shapes.caption(scene, studio) if colour and shape else "",
            truth=details,
        )
    ]


@retried
def caption_wild(kit: Kit) -> list[Sample]:
    """Describe one object, two beside each other, or a picture with a ground of its own.

    The answer is the reference; what is accepted are the nouns, each with its other names after a "|".
    """
    form = kit.deal.pick("form", ("object", "pair", "whole"))
    stage = Stage.on(kit, "whole" if form == "whole" else "wild")
    if form == "pair":
        scene = beside(stage, stage.distinct(2), kit.deal.pick("side", SIDES))
    else:
        scene = alone(stage, "name", stage.rng.choice(stage.concepts), 60, 104)
    text = reference(stage, scene)
    nouns = ["|".join([t.concept.name, *stage.accepted(t.concept.name)]) for t in scene.things]
    ask = Ask(kit.phrase(DESCRIBE), text, accepted=tuple(nouns), topic="caption")
    return [stage.sample(scene, ask, text=text)]


def reference(stage: Stage, scene: Scene) -> str:
    """The sentence that came with a photograph, a plain one for a picture with a ground of its own, or a caption."""
    drawing = scene.things[0].drawing if isinstance(scene.things[0], Shown) else None
    if len(scene.things) > 1 or drawing is None or not (drawing.whole or drawing.photo):
        return caption(scene, stage)
    if len(drawing.text.split()) > 2 and drawing.text.endswith("."):
        return drawing.text
    name = drawing.name if drawing.name.endswith("s") or drawing.name[0].isupper() else article(drawing.name)
    return f"A {'photo' if drawing.photo else 'drawing'} of {name}."


def _chance() -> float:
    """Expected score of guessing: yes or no for 74 % of the questions, one of 3 shapes or 8 colours else."""
    return 0.74 / 2 + 0.13 / 3 + 0.13 / 8


ANCHORS: tuple[Task, ...] = (
    Task(
        "easy-vqa",
        "anchor",
        "exact",
        easy_vqa,
        "A fixed random sample of the official test questions of easy-VQA.",
        chance=_chance(),
    ),
    Task(
        "easy-vqa-full",
        "anchor",
        "exact",
        easy_vqa,
        "All official test questions of easy-VQA.",
        chance=_chance(),
        items=OFFICIAL,
        optional=True,
    ),
    Task(
        "caption-wild",
        "anchor",
        "caption",
        caption_wild,
        "One sentence about one or two objects: nouns found, and likeness to the reference.",
        max_new_tokens=32,
    ),
)
