"""Tasks of the general family: perception in pairs, naming, open questions about scenes, and what is not there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from llavit.starter.ask import OPPOSITE, SIDE_WORDS, SIDES, pair_topic, refer
from llavit.starter.bench.asking import by_turns, short, yes_no
from llavit.starter.bench.compositions import alone, beside, counted, grounded, retried, scattered, wording
from llavit.starter.bench.stage import Stage, topic_of
from llavit.starter.bench.task import Task
from llavit.starter.bench.wording import WORDING
from llavit.starter.captions import NUMBERS
from llavit.starter.concepts import Concept, article, confusable
from llavit.starter.kit import Kit, Sample
from llavit.starter.palette import COLOURS
from llavit.starter.scene import Scene

MME_KINDS = ("existence", "colour", "count", "position")
GQA_KINDS = ("colour", "colour there", "what there", "which side")
POPE_KINDS = ("random", "popular", "adversarial")
POPULAR = 1 / 8
"""Share of the concepts that are popular: two objects of every scene of mini-pope are among them."""


@retried
def mme(kit: Kit) -> list[Sample]:
    """Two questions about one picture in the same words but one; one of them is answered by yes, one by no."""
    kind, kit = by_turns(kit, "kind", MME_KINDS)
    stage = Stage.on(kit, "mono" if kind == "colour" else "fluent")
    make = {"existence": _existence, "colour": _colour, "count": _count, "position": _position}[kind]
    scene, key, yes, no = make(stage)
    form = wording(kit, key, *yes)
    image = stage.draw(scene)
    order = [("yes", yes), ("no", no)]
    if kit.deal.pick("first", (True, False)):
        order.reverse()
    topic = _topic(kind, scene)
    asks = [yes_no(form.format(**slots), answer == "yes", topic) for answer, slots in order]
    return [stage.sample(scene, ask, image) for ask in asks]


Slots = Mapping[str, str]
Pair = tuple[Scene, str, Slots, Slots]
"""A scene, the key of a question, and what fills its slots where the answer is yes, and where it is no."""


def _topic(kind: str, scene: Scene) -> str:
    if kind == "colour":
        return f"colour {scene.things[0].box}"
    return pair_topic(*scene.things[:2]) if kind == "position" else kind


def _existence(stage: Stage) -> Pair:
    there = stage.rng.choice(stage.concepts)
    missing = stage.absent([there])[0]
    if stage.rng.random() < 0.5:  # either is as often there as missing
        there, missing = missing, there
    others = stage.absent([there, missing], stage.rng.randint(0, 3)) if stage.rng.random() < 0.8 else []
    scene = scattered(stage, "exist", [there, *others])
    return scene, "exist", {"a_thing": article(there.name)}, {"a_thing": article(missing.name)}


def _colour(stage: Stage) -> Pair:
    right = stage.deal.pick("colour", list(COLOURS))
    wrong = stage.rng.choice([colour for colour in COLOURS if colour != right])
    concept = stage.rng.choice(stage.concepts)
    scene = alone(stage, "colour", concept, 44, 92, right)
    thing = {"thing": concept.name}
    return scene, "colour", {**thing, "colour": right}, {**thing, "colour": wrong}


def _count(stage: Stage) -> Pair:
    right, wrong = stage.deal.pick("count", [(a, b) for a in range(2, 7) for b in range(2, 7) if a != b])
    asked, other = stage.distinct(2, [c for c in stage.concepts if c.countable])
    others = stage.rng.randint(0, min(3, 9 - right))
    scene = counted(stage, [(asked, right), (other, others)])
    things = {"things": asked.plural}
    return scene, "count", {**things, "number": NUMBERS[right]}, {**things, "number": NUMBERS[wrong]}


def _position(stage: Stage) -> Pair:
    side = stage.deal.pick("side", SIDES)
    scene = beside(stage, stage.distinct(stage.rng.choice((2, 2, 3))), side)
    one, other = scene.things[:2]
    ends = {"thing": refer(one, scene, stage), "other": refer(other, scene, stage)}
    yes, no = SIDE_WORDS[side], SIDE_WORDS[OPPOSITE[side]]
    return scene, "position", {**ends, "side": yes}, {**ends, "side": no}


@retried
def mmb(kit: Kit) -> list[Sample]:
    """What is shown? One of four names of one category."""
    stage = Stage.on(kit, "whole")
    concept = stage.rng.choice(stage.rich)
    others = [c.name for c in stage.alike(concept, 3)]
    scene = alone(stage, "name", concept, 60, 104)
    ask = kit.choice(kit.phrase(WORDING["name"]), concept.name, others, "identity")
    return [stage.sample(scene, ask)]


@retried
def gqa(kit: Kit) -> list[Sample]:
    """An open question about a scene of two or three objects, which asks to find one by its name or its place."""
    kind, kit = by_turns(kit, "kind", GQA_KINDS)
    stage = Stage.on(kit, "mono" if kind.startswith("colour") else "wild")
    side = kit.deal.pick("side", SIDES)
    concepts = stage.distinct(stage.rng.choice((2, 3)))
    colour = kit.deal.pick("colour", list(COLOURS)) if stage.style == "mono" else None
    scene = beside(stage, concepts, side, alone=True)
    if colour is not None:
        scene = recoloured(stage, scene, colour)
    one, other = scene.things[:2]
    slots = {"thing": one.concept.name, "other": other.concept.name, "side": SIDE_WORDS[side]}
    key, answer, topic = "what colour", colour or "", f"colour {one.box}"
    accepted: tuple[str, ...] = ()
    if kind == "colour there":
        key = "colour there"
    elif kind == "what there":
        key, answer, topic = "what there", one.concept.name, pair_topic(one, other)
        accepted = stage.accepted(one.concept.name)
    elif kind == "which side":
        ends = [side, OPPOSITE[side]]
        stage.rng.shuffle(ends)
        slots.update(one_side=SIDE_WORDS[ends[0]], other_side=SIDE_WORDS[ends[1]])
        key, answer, topic = "which side", side, pair_topic(one, other)
        accepted = (SIDE_WORDS[side],) if side in ("left", "right") else ()
    return [stage.sample(scene, short(kit.phrase(WORDING[key], **slots), answer, accepted, topic))]


def recoloured(stage: Stage, scene: Scene, colour: str) -> Scene:
    """The scene with its first object in a colour, the others in other ones, on a ground that suits all."""
    others = stage.rng.sample([c for c in COLOURS if c != colour], len(scene.things) - 1)
    things = [replace(t, colour=c) for t, c in zip(scene.things, [colour, *others], strict=True)]
    return grounded(stage, scene.kind, things)


@retried
def pope(kit: Kit) -> list[Sample]:
    """Is a thing there? One that is missing is any, a popular one, or one of the category of a thing that is there.

    What is asked about is drawn before it is decided whether it is there, so that its name tells nothing.
    """
    (kind, answer), kit = by_turns(kit, "kind", [(k, a) for k in POPE_KINDS for a in ("yes", "no")])
    stage = Stage.on(kit, "openmoji")
    popular = _popular(stage)
    asked = stage.rng.choice(
        popular if kind == "popular" else stage.rich if kind == "adversarial" else stage.concepts
    )
    present = [asked] if answer == "yes" else []
    if kind == "adversarial":
        present.append(stage.alike(asked, 1)[0])
    while len(present) < 3 + (kit.deal.ordinal % 2):
        among = popular if len(present) < 3 else stage.concepts
        concept = stage.rng.choice(among)
        if not confusable(concept.name, [asked.name, *(c.name for c in present)]):
            present.append(concept)
    stage.rng.shuffle(present)
    scene = scattered(stage, "exist", present)
    text = kit.phrase(WORDING["exist"], a_thing=article(asked.name))
    topic = topic_of("exist", a_thing=article(asked.name))
    return [stage.sample(scene, yes_no(text, answer == "yes", topic))]


def _popular(stage: Stage) -> list[Concept]:
    """The popular concepts of a stage, by a hash of their names."""
    order = sorted(stage.concepts, key=lambda c: hashlib.sha256(f"popular {c.name}".encode()).digest())
    return order[: max(12, round(POPULAR * len(order)))]


GENERAL: tuple[Task, ...] = (
    Task(
        "mini-mme",
        "general",
        "yes_no",
        mme,
        "Existence, colour, count and position: two questions about a picture, one right with yes, one with no.",
        group="pair",
        chance=0.25,
    ),
    Task(
        "mini-mmb",
        "general",
        "choice",
        mmb,
        "Which of four names of one category; right only if all rotations of the options are.",
        group="circular",
        chance=0.25**4,
    ),
    Task(
        "mini-gqa",
        "general",
        "exact",
        gqa,
        "Open questions about scenes: a colour, what lies where, the colour of what lies there, and at which side.",
        # a colour is one of eight, a side one of two that the question names, a name one of hundreds
        chance=(1 / 8 + 1 / 8 + 0 + 1 / 2) / 4,
    ),
    Task(
        "mini-pope",
        "general",
        "yes_no",
        pope,
        "Is a thing in the scene? Missing ones are random, popular or of the category of one that is there.",
        chance=0.5,
    ),
)
