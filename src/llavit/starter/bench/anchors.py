"""Anchors: the official test questions of easy-VQA, and captions of pictures in a style unseen in training."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from llavit.starter import shapes
from llavit.starter.ask import SIDES
from llavit.starter.bench.compositions import alone, beside, retried
from llavit.starter.bench.stage import Stage
from llavit.starter.bench.task import Task
from llavit.starter.captions import caption
from llavit.starter.kit import SHORT, Ask, Kit, Sample, Split
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
            ask=Ask(f"{question[0].upper()}{question[1:]}\n{SHORT}", answer),
            more=tuple(Ask(f"{q.slots['question']}\n{SHORT}", q.answer) for q in more),
            caption=shapes.caption(scene, studio) if colour and shape else "",
            truth=details,
        )
    ]


@retried
def caption_wild(kit: Kit) -> list[Sample]:
    """Describe one object, or two beside each other; the nouns are the names of what is there."""
    stage = Stage.on(kit, "wild")
    if kit.deal.pick("objects", (1, 2)) == 1:
        scene = alone(stage, "name", stage.rng.choice(stage.concepts), 60, 104)
    else:
        scene = beside(stage, stage.distinct(2), kit.deal.pick("side", SIDES))
    text = caption(scene, stage)
    nouns = [thing.concept.name for thing in scene.things]
    ask = Ask(kit.phrase(DESCRIBE), text, accepted=tuple(nouns), topic="caption")
    sample = stage.sample(scene, ask, text=text)
    sample.truth["nouns"] = [[noun, *stage.accepted(noun)] for noun in nouns]
    return [sample]


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
