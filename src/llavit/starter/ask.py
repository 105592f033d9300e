"""Questions about drawings, with the one right answer read off the scene; none is asked that a person could dispute."""

from __future__ import annotations

from llavit.starter.concepts import Concept, article, categories, close_categories
from llavit.starter.palette import COLOURS
from llavit.starter.phrases import listed
from llavit.starter.scene import Question, Scene, Thing, side_of
from llavit.starter.studio import Studio

SIDES = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
SIDE_WORDS = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
}


def _with_options(
    task: str, key: str, answer: str, others: list[str], studio: Studio, topic: str
) -> Question:
    """A choice of four; the right one stands equally often at each position."""
    options = list(others)
    studio.rng.shuffle(options)
    options.insert(studio.deal.pick(f"{task}/position", range(len(others) + 1)), answer)
    return Question(task, key, answer, {"options": listed(options)}, tuple(options), topic)


def name_options(thing: Thing, studio: Studio) -> Question:
    """Which of four names; the wrong ones are as seen or unseen in training as the right one."""
    others = [c.name for c in studio.absent([thing.concept], 3)]
    return _with_options("name", "name.options", thing.concept.name, others, studio, "identity")


def category_options(thing: Thing, studio: Studio) -> Question:
    """Which of four kinds of thing; no two of them could both be right."""
    answer = thing.concept.category
    assert answer is not None
    far = [c for c in categories() if not close_categories(answer, c)]
    others = studio.rng.sample(far, 3)
    return _with_options("category", "category.shown", answer, others, studio, "category")


def colour(thing: Thing) -> Question:
    """The colour of a tinted icon."""
    assert thing.colour is not None
    return Question(
        "colour", "colour.thing", thing.colour, {"thing": thing.concept.name}, topic=f"colour {thing.box}"
    )


def frame(scene: Scene) -> Question:
    """The colour of the frame."""
    assert scene.frame is not None
    return Question("colour", "colour.frame", scene.frame, topic="frame")


def background(scene: Scene) -> Question:
    """The colour of the background."""
    assert scene.background is not None
    return Question("colour", "colour.background", scene.background, topic="background")


def place(thing: Thing) -> Question:
    """Which ninth of the picture an object lies in."""
    assert thing.place is not None
    return Question("place", "place", thing.place, {"thing": thing.concept.name}, topic=f"place {thing.box}")


def size(thing: Thing) -> Question:
    """Small or large."""
    assert thing.size is not None
    return Question("size", "size", thing.size, {"thing": thing.concept.name}, topic="size")


def count(scene: Scene, concept: Concept) -> Question:
    """How many of one concept."""
    number = sum(t.concept == concept for t in scene.things)
    return Question("count", "count", str(number), {"things": concept.plural})


def exist(scene: Scene, studio: Studio, answer: str, about: Concept | None = None) -> Question:
    """Whether a concept is there: `about` (or any of the scene) if yes, one that resembles nothing there if no."""
    present = list({t.concept: None for t in scene.things})
    concept = about or studio.rng.choice(present)
    if answer == "no":
        concept = studio.absent(present)[0]
    topic = "identity" if len(present) == 1 else ""
    return Question("exist", "exist", answer, {"a_thing": article(concept.name)}, topic=topic)


def exist_tinted(thing: Thing, answer: str, studio: Studio) -> Question:
    """Whether a thing of a certain colour is there; if not, the thing is there in another colour."""
    wrong = [c for c in COLOURS if c != thing.colour]
    tint = thing.colour if answer == "yes" else studio.rng.choice(wrong)
    return Question(
        "exist",
        "exist",
        answer,
        {"a_thing": article(f"{tint} {thing.concept.name}")},
        topic=f"colour {thing.box}",
    )


def refer(thing: Thing, scene: Scene, studio: Studio) -> str:
    """Words that point at one object only: with its colour where another has the same name."""
    same = sum(t.concept == thing.concept for t in scene.things) > 1
    return thing.noun(with_colour=same or studio.rng.random() < 0.5)


def pair_topic(one: Thing, other: Thing) -> str:
    """Topic of every question about how two objects lie to each other."""
    return f"pair {sorted((one.box, other.box))}"


def relation_check(
    one: Thing, other: Thing, side: str, answer: str, scene: Scene, studio: Studio
) -> Question:
    """Whether one object lies at a side of the other; where it does not, it lies at the opposite side."""
    slots = {
        "thing": refer(one, scene, studio),
        "other": refer(other, scene, studio),
        "side": SIDE_WORDS[side],
    }
    return Question("relation", "relation.check", answer, slots, topic=pair_topic(one, other))


def relation_side(one: Thing, other: Thing, scene: Scene, studio: Studio) -> Question:
    """At which of four sides one object lies."""
    side = side_of(one, other, scene.image_size)
    assert side is not None
    slots = {"thing": refer(one, scene, studio), "other": refer(other, scene, studio)}
    return Question("relation", "relation.side", side, slots, SIDES, pair_topic(one, other))


def opposite_half(third: Thing, other: Thing, side: str) -> bool:
    """Whether an object lies in the half, seen from `other`, that is opposite to `side`."""
    axis = 0 if side in ("left", "right") else 1
    difference = third.centre[axis] - other.centre[axis]
    return difference > 0 if side in ("left", "above") else difference < 0


def relation_what(one: Thing, other: Thing, side: str, scene: Scene, studio: Studio) -> Question:
    """Which object lies at a side of the other; only asked if it is the single one in that half."""
    slots = {"other": refer(other, scene, studio), "side": SIDE_WORDS[side]}
    return Question("relation", "relation.what", one.concept.name, slots, topic=pair_topic(one, other))


def about_single(scene: Scene, studio: Studio) -> list[Question]:
    """Further questions about a picture of one object."""
    (thing,) = scene.things
    found = [
        Question("name", "name", thing.concept.name, topic="identity"),
        exist(scene, studio, _coin(studio)),
    ]
    if thing.concept.category:
        found.append(category_options(thing, studio))
    if thing.colour:
        found.append(colour(thing))
        found.append(exist_tinted(thing, _coin(studio), studio))
    if thing.place:
        found.append(place(thing))
    if thing.size:
        found.append(size(thing))
    found.append(frame(scene) if scene.frame else background(scene))
    if len({question.topic for question in found}) < 3:
        found.append(Question("count", "count", "1", {"things": "objects"}, topic="count"))
    return found


def about_many(scene: Scene, studio: Studio) -> list[Question]:
    """Further questions about a picture of several objects."""
    found = [background(scene), exist(scene, studio, "yes"), exist(scene, studio, "no")]
    by_concept: dict[Concept, list[Thing]] = {}
    for thing in scene.things:
        by_concept.setdefault(thing.concept, []).append(thing)
    found += [count(scene, concept) for concept in by_concept if concept.countable and scene.kind == "count"]
    if scene.kind != "count":
        found.append(Question("count", "count", str(len(scene.things)), {"things": "objects"}))
    for things in by_concept.values():
        if len(things) == 1 and things[0].colour:
            found.append(colour(things[0]))
        if len(things) == 1 and things[0].place:
            found.append(place(things[0]))
    if len(by_concept) == len(scene.things):
        found += _relations(scene, studio)
    return found


def _relations(scene: Scene, studio: Studio) -> list[Question]:
    found = []
    pairs = [(a, b) for a in scene.things for b in scene.things if a is not b]
    studio.rng.shuffle(pairs)
    for one, other in pairs[:3]:
        side = side_of(one, other, scene.image_size)
        if side is None:
            continue
        asked, answer = studio.rng.choice(((side, "yes"), (OPPOSITE[side], "no")))
        found.append(relation_check(one, other, asked, answer, scene, studio))
        found.append(relation_side(one, other, scene, studio))
        rest = [t for t in scene.things if t is not one and t is not other]
        if all(opposite_half(t, other, side) for t in rest):
            found.append(relation_what(one, other, side, scene, studio))
    return found


def _coin(studio: Studio) -> str:
    return studio.rng.choice(("yes", "no"))
