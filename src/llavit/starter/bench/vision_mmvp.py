"""mini-mmvp: two pictures that differ in one thing, one question with two options; right only if both answers are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from llavit.starter.ask import OPPOSITE, SIDE_WORDS, SIDES, pair_topic
from llavit.starter.bench.asking import by_turns
from llavit.starter.bench.compositions import alone, beside, counted, grounded, retried, scattered
from llavit.starter.bench.stage import Shown, Stage, Unfit, topic_of
from llavit.starter.bench.wording import WORDING
from llavit.starter.captions import NUMBERS
from llavit.starter.concepts import article
from llavit.starter.kit import Kit, Sample, lettered
from llavit.starter.palette import COLOURS
from llavit.starter.scene import Scene, side_of

KINDS = ("colour", "count", "side", "upright", "bigger", "missing")
_STAND = ("animal", "vehicle", "building", "furniture")
"""Categories whose members have a plain top and bottom, but for those that are drawn from above or in flight."""
_LIES = frozenset(
    {
        *("airplane", "ant", "bat", "bed", "bee", "beetle", "bug", "butterfly", "caterpillar", "centipede"),
        *(
            "cockroach",
            "crab",
            "cricket",
            "crocodile",
            "dragon",
            "dragonfly",
            "fly",
            "grasshopper",
            "helicopter",
        ),
        *("ladybug", "lizard", "lobster", "moth", "mosquito", "rocket", "satellite", "scorpion", "seashell"),
        *("shrimp", "snake", "spider", "squid", "starfish", "stingray", "turtle", "whale", "worm"),
    }
)
_SAME_TURNED = 0.80
"""From this overlap of its outline with that of itself turned on, a drawing looks alike on its head."""

Made = tuple[Scene, Scene, str, tuple[str, str], str]
"""Both scenes, the question, the answer to each, and the topic."""


@retried
def mmvp(kit: Kit) -> list[Sample]:
    """The same question about two pictures that are equal but for what it asks for."""
    kind, kit = by_turns(kit, "kind", KINDS)
    style = {"colour": "mono", "count": "any", "side": "any", "upright": "fluent"}.get(kind, "coloured")
    stage = Stage.on(kit, style)
    make = {
        "colour": _colour,
        "count": _count,
        "side": _side,
        "upright": _upright,
        "bigger": _bigger,
        "missing": _missing,
    }[kind]
    one, other, question, answers, topic = make(stage)
    scenes = [(one, answers[0]), (other, answers[1])]
    if kit.deal.pick("first", (True, False)):
        scenes.reverse()
    options = list(answers)
    if kit.deal.pick("letter", (True, False)):
        options.reverse()
    return [
        stage.sample(scene, lettered(question, options, answer, topic), text=_caption(scene))
        for scene, answer in scenes
    ]


def _caption(scene: Scene) -> str:
    """What the captions of the corpus know no words for; "" leaves the caption to them."""
    nouns = [article(thing.noun()) for thing in scene.things]
    ground = f"on {article(str(scene.background))} background"
    if scene.kind == "upright":
        stands = "upside down" if _shown(scene)[0].turned else "upright"
        text = f"{nouns[0]} that is {stands} {ground}."
    elif scene.kind == "bigger":
        sizes = [max(t.box[2] - t.box[0], t.box[3] - t.box[1]) for t in scene.things]
        words = ["big", "small"] if sizes[0] > sizes[1] else ["small", "big"]
        both = [article(f"{w} {t.noun()}") for w, t in zip(words, scene.things, strict=True)]
        text = f"{both[0]} to the left of {both[1]} {ground}."
    else:
        return ""
    return text[0].upper() + text[1:]


def _changed(stage: Stage, scene: Scene, things: list[Shown]) -> Scene:
    """The scene with other objects on the same ground."""
    assert scene.background is not None
    if any(scene.background not in stage.grounds(thing) for thing in things):
        raise Unfit
    return replace(scene, things=tuple(things))


def _shown(scene: Scene) -> list[Shown]:
    return [thing for thing in scene.things if isinstance(thing, Shown)]


def _colour(stage: Stage) -> Made:
    pairs = [(a, b) for a in COLOURS for b in COLOURS if a < b]
    one, other = stage.rng.sample(stage.deal.pick("colours", pairs), 2)
    concepts = stage.distinct(stage.rng.choice((1, 2, 3)))
    scene = alone(stage, "colour", concepts[0], 48, 88, one)
    if len(concepts) > 1:
        rest = stage.rng.sample([c for c in COLOURS if c not in (one, other)], len(concepts) - 1)
        things = _shown(scattered(stage, "exist", concepts))
        things = [replace(t, colour=c) for t, c in zip(things, [one, *rest], strict=True)]
        scene = grounded(stage, "exist", things)
    first, *others = _shown(scene)
    question = stage.kit.phrase(WORDING["pair colour"], thing=first.concept.name, one=one, other=other)
    changed = _changed(stage, scene, [replace(first, colour=other), *others])
    return scene, changed, question, (one, other), f"colour {first.box}"


def _count(stage: Stage) -> Made:
    fewer = stage.deal.pick("fewer", (2, 3, 4, 5))
    asked, other = stage.distinct(2, [c for c in stage.concepts if c.countable])
    scene = counted(stage, [(asked, fewer + 1), (other, stage.rng.randint(0, min(2, 8 - fewer)))])
    things = _shown(scene)
    gone = stage.rng.randrange(fewer + 1)
    changed = _changed(stage, scene, things[:gone] + things[gone + 1 :])
    answers = (NUMBERS[fewer + 1], NUMBERS[fewer])
    one, two = stage.rng.sample(answers, 2)
    question = stage.kit.phrase(WORDING["pair count"], things=asked.plural, one=one, other=two)
    return scene, changed, question, answers, topic_of("count", things=asked.plural)


def _side(stage: Stage) -> Made:
    side = stage.deal.pick("side", SIDES)
    scene = beside(stage, stage.distinct(2), side)
    one, other = _shown(scene)
    swapped = [_moved(stage, one, other.centre), _moved(stage, other, one.centre)]
    changed = _changed(stage, scene, swapped)
    if side_of(changed.things[0], changed.things[1], stage.image_size) != OPPOSITE[side]:
        raise Unfit  # an object at the margin has been pushed inside
    ends = stage.rng.sample((side, OPPOSITE[side]), 2)
    question = stage.kit.phrase(
        WORDING["which side"],
        thing=one.concept.name,
        other=other.concept.name,
        one_side=SIDE_WORDS[ends[0]],
        other_side=SIDE_WORDS[ends[1]],
    )
    return scene, changed, question, (side, OPPOSITE[side]), pair_topic(one, other)


def _moved(stage: Stage, thing: Shown, centre: tuple[float, float]) -> Shown:
    width, height = thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]
    box = stage.box(width, height, (centre[0] / stage.scale, centre[1] / stage.scale))
    return replace(thing, box=box, place=None)


def _upright(stage: Stage) -> Made:
    concept = stage.rng.choice(
        [c for c in stage.concepts if c.category in _STAND and c.name.split()[-1] not in _LIES]
    )
    scene = alone(stage, "upright", concept, 64, 100)
    (thing,) = _shown(scene)
    if looks_alike_turned(stage, thing):
        raise Unfit
    question = stage.kit.phrase(WORDING["pair upright"], thing=concept.name)
    changed = _changed(stage, scene, [replace(thing, turned=True)])
    return scene, changed, question, ("upright", "upside down"), "upright"


def looks_alike_turned(stage: Stage, thing: Shown) -> bool:
    """Whether the outline of an object turned by half covers most of itself."""
    alpha = np.asarray(stage.pixels(thing).getchannel("A").resize((48, 48))) > 128
    turned = alpha[::-1, ::-1]
    return float((alpha & turned).sum() / (alpha | turned).sum()) >= _SAME_TURNED


def _bigger(stage: Stage) -> Made:
    first, second = stage.distinct(2)
    big, small = stage.rng.randint(54, 62), stage.rng.randint(28, 33)
    left, right = stage.rng.uniform(30, 34), stage.rng.uniform(78, 82)
    level = stage.rng.uniform(38, 74)
    source = {concept: stage.source(concept) for concept in (first, second)}

    def pair(sizes: tuple[int, int]) -> list[Shown]:
        ends = ((first, sizes[0], left), (second, sizes[1], right))
        return [stage.thing(c, source[c], size, (x, level)) for c, size, x in ends]

    scene = grounded(stage, "bigger", pair((big, small)))
    changed = _changed(stage, scene, pair((small, big)))
    for either, large in ((scene, 0), (changed, 1)):
        things = either.things
        area = [(t.box[2] - t.box[0]) * (t.box[3] - t.box[1]) for t in things]
        if area[large] < 1.6 * area[1 - large] or things[0].box[2] + 3 > things[1].box[0]:
            raise Unfit
    one, other = stage.rng.sample((first.name, second.name), 2)
    question = stage.kit.phrase(WORDING["pair bigger"], one=one, other=other)
    return scene, changed, question, (first.name, second.name), "bigger"


def _missing(stage: Stage) -> Made:
    concepts = stage.distinct(stage.rng.choice((2, 3, 4)))
    scene = scattered(stage, "exist", concepts)
    first, *others = _shown(scene)
    question = stage.kit.phrase(WORDING["pair missing"], a_thing=article(first.concept.name))
    return (
        scene,
        _changed(stage, scene, others),
        question,
        ("yes", "no"),
        topic_of("exist", a_thing=article(first.concept.name)),
    )
