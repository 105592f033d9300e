"""Where things lie: mini-realworld, mini-cv2d and mini-cv3d, choices about place, number, size, depth and distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llavit.starter.ask import SIDE_WORDS, SIDES, pair_topic
from llavit.starter.bench.asking import by_turns
from llavit.starter.bench.compositions import beside, counted, grounded, retried
from llavit.starter.bench.depth import overlapping
from llavit.starter.bench.stage import Shown, Stage, Unfit, topic_of
from llavit.starter.bench.vision_mmvp import looks_alike_turned
from llavit.starter.bench.wording import WORDING
from llavit.starter.concepts import Concept, article
from llavit.starter.kit import Ask, Kit, Sample
from llavit.starter.palette import COLOURS
from llavit.starter.scene import PLACES, Scene, Thing
from llavit.starter.studio import UNIT, free_of

REALWORLD_KINDS = ("side", "extreme", "depth")
CV2D_KINDS = ("count", "side")
CV3D_KINDS = ("size", "depth", "closest", "odd kind", "odd colour", "odd turned")
MOST = {
    "left": "farthest to the left",
    "right": "farthest to the right",
    "above": "highest up",
    "below": "lowest down",
}
_CELLS = [name for row in PLACES for name in row]


def side(stage: Stage, concepts: Sequence[Concept]) -> tuple[Scene, Ask]:
    """At which of four sides of another object does one lie?"""
    wanted = stage.deal.pick("side", SIDES)
    scene = beside(stage, concepts, wanted)
    one, other = scene.things[:2]
    question = stage.kit.phrase(WORDING["where"], thing=one.concept.name, other=other.concept.name)
    others = [SIDE_WORDS[s] for s in SIDES if s != wanted]
    options = [f"{SIDE_WORDS[wanted]} it", *(f"{other} it" for other in others)]
    return scene, stage.kit.choice(question, options[0], options[1:], pair_topic(one, other))


def extreme(stage: Stage) -> tuple[Scene, Ask]:
    """Which of four objects lies farthest to one side? It is plainly nearer to the edge than the others."""
    wanted = stage.deal.pick("extreme", SIDES)
    axis, sign = (0 if wanted in ("left", "right") else 1), (-1 if wanted in ("left", "above") else 1)
    scene = _four(stage, stage.distinct(4), 28, 34)
    things = sorted(scene.things, key=lambda t: -sign * t.centre[axis])
    if abs(things[0].centre[axis] - things[1].centre[axis]) < 0.15 * stage.image_size:
        raise Unfit
    question = stage.kit.phrase(WORDING["extreme"], most=MOST[wanted])
    names = [t.concept.name for t in things]
    return scene, stage.kit.choice(question, names[0], names[1:], "extreme")


def _four(stage: Stage, concepts: Sequence[Concept], least: int, most: int) -> Scene:
    things: list[Shown] = []
    for _ in range(60):
        concept = concepts[len(things)]
        thing = stage.thing(concept, stage.source(concept), stage.rng.randint(least, most))
        if free_of(thing.box, things, 3 * stage.scale):
            things.append(thing)
        if len(things) == len(concepts):
            return grounded(stage, "exist", things)
    raise Unfit


def depth(stage: Stage) -> tuple[Scene, Ask, str]:
    """Which of two overlapping objects is in front, or behind?"""
    key = stage.deal.pick("depth", ("front", "behind"))
    behind, front = stage.distinct(2)
    scene = overlapping(stage, behind, front)
    answer, other = (front, behind) if key == "front" else (behind, front)
    ask = stage.kit.choice(
        stage.kit.phrase(WORDING[key]), answer.name, [other.name], "depth", "letter of two"
    )
    nouns = [article(t.noun()) for t in scene.things]
    text = f"{nouns[1]} in front of {nouns[0]} on {article(str(scene.background))} background."
    return scene, ask, text[0].upper() + text[1:]


@retried
def realworld(kit: Kit) -> list[Sample]:
    """Spatial questions about cut-outs: the side, the outermost one, the one in front."""
    kind, kit = by_turns(kit, "kind", REALWORLD_KINDS)
    stage = Stage.on(kit, "wild")
    if kind == "depth":
        scene, ask, text = depth(stage)
        return [stage.sample(scene, ask, text=text)]
    scene, ask = (
        extreme(stage) if kind == "extreme" else side(stage, stage.distinct(stage.rng.choice((2, 3))))
    )
    return [stage.sample(scene, ask)]


@retried
def cv2d(kit: Kit) -> list[Sample]:
    """Counting and sides with silhouettes in one colour each."""
    kind, kit = by_turns(kit, "kind", CV2D_KINDS)
    stage = Stage.on(kit, "mono")
    if kind == "side":
        scene, ask = side(stage, stage.distinct(stage.rng.choice((2, 3))))
        return [stage.sample(scene, ask)]
    number = kit.deal.pick("count", (1, 2, 3, 4, 5, 6))
    asked, other = stage.distinct(2, [c for c in stage.concepts if c.countable])
    scene = counted(stage, [(asked, number), (other, stage.rng.randint(0, min(3, 9 - number)))])
    wrong = stage.rng.sample([str(n) for n in range(1, 7) if n != number], 3)
    question = kit.phrase(WORDING["how many"], things=asked.plural)
    ask = kit.choice(question, str(number), wrong, topic_of("count", things=asked.plural))
    return [stage.sample(scene, ask)]


@retried
def cv3d(kit: Kit) -> list[Sample]:
    """Size, depth, distance, and the odd one out of nine."""
    kind, kit = by_turns(kit, "kind", CV3D_KINDS)
    stage = Stage.on(kit, "mono" if kind == "odd colour" else "coloured")
    if kind == "depth":
        scene, ask, text = depth(stage)
        return [stage.sample(scene, ask, text=text)]
    if kind.startswith("odd"):
        return [_odd_one(stage, kind)]
    scene, ask = _size(stage) if kind == "size" else _closest(stage)
    return [stage.sample(scene, ask)]


def _area(thing: Thing) -> int:
    return (thing.box[2] - thing.box[0]) * (thing.box[3] - thing.box[1])


def _size(stage: Stage) -> tuple[Scene, Ask]:
    """Which of four objects is the largest, or the smallest, by 1.6 times the area of the next one?"""
    most = stage.deal.pick("most", ("largest", "smallest"))
    sizes = (stage.rng.randint(52, 58), 34, 33, 32) if most == "largest" else (28, 44, 42, 41)
    concepts = stage.distinct(4)
    things: list[Shown] = []
    for concept, size in zip(concepts, sizes, strict=True):
        for _ in range(40):
            thing = stage.thing(concept, stage.source(concept), size)
            if free_of(thing.box, things, 3 * stage.scale):
                things.append(thing)
                break
        else:
            raise Unfit
    areas = [_area(t) for t in things]
    plain = areas[0] >= 1.6 * max(areas[1:]) if most == "largest" else 1.6 * areas[0] <= min(areas[1:])
    longest = [max(t.box[2] - t.box[0], t.box[3] - t.box[1]) for t in things]
    if not plain or min(min(t.box[2] - t.box[0], t.box[3] - t.box[1]) for t in things) < max(longest) / 6:
        raise Unfit
    names = [c.name for c in concepts]
    question = stage.kit.phrase(WORDING["size most"], most=most)
    return grounded(stage, "exist", things), stage.kit.choice(question, names[0], names[1:], "size")


def _closest(stage: Stage) -> tuple[Scene, Ask]:
    """Which of three objects is closest to a fourth one? The next one is 1.4 times as far, between edges as well."""
    scene = _four(stage, stage.distinct(4), 28, 32)
    first, *others = scene.things
    others.sort(key=lambda t: _distance(first.centre, t.centre))
    centres = [_distance(first.centre, t.centre) for t in others]
    gaps = [_gap(first, t) for t in others]
    if centres[1] < 1.4 * centres[0] or min(gaps[1:]) < max(1.4 * gaps[0], gaps[0] + 8):
        raise Unfit
    question = stage.kit.phrase(WORDING["closest"], thing=first.concept.name)
    names = [t.concept.name for t in others]
    return scene, stage.kit.choice(question, names[0], names[1:], "closest", "letter of three")


def _distance(one: tuple[float, float], other: tuple[float, float]) -> float:
    return ((one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2) ** 0.5


def _gap(one: Thing, other: Thing) -> float:
    """Distance between the edges of two boxes."""
    dx = max(one.box[0] - other.box[2], other.box[0] - one.box[2], 0)
    dy = max(one.box[1] - other.box[3], other.box[1] - one.box[3], 0)
    return (dx * dx + dy * dy) ** 0.5


def _odd_one(stage: Stage, kind: str) -> Sample:
    """Where in a grid of nine is the object of another kind, in another colour, or on its head?"""
    cell = stage.deal.pick("cell", range(9))
    common, odd = stage.distinct(2)
    colours = stage.rng.sample(list(COLOURS), 2)
    sources = {concept.name: stage.source(concept) for concept in (common, odd)}
    things: list[Shown] = []
    for place in range(9):
        row, column = divmod(place, 3)
        concept = odd if kind == "odd kind" and place == cell else common
        tint = colours[1] if kind == "odd colour" and place == cell else colours[0]
        centre = (UNIT / 6 * (2 * column + 1), UNIT / 6 * (2 * row + 1))
        things.append(stage.thing(concept, sources[concept.name], 31, centre, tint, margin=1))
    if kind == "odd turned":
        if looks_alike_turned(stage, things[cell]) or min(_sides(things[cell])) < 20:
            raise Unfit
        things[cell] = replace(things[cell], turned=True)
    if len({t.source for t in things}) > 1:
        raise Unfit
    scene = grounded(stage, "grid", things)
    names = {"odd kind": odd.name, "odd colour": f"{colours[1]} {common.name}"}
    what = names.get(kind, f"{common.name} that is upside down")
    many = f"{colours[0]} {common.plural}" if kind == "odd colour" else common.plural
    text = f"Eight {many} and {article(what)} on {article(str(scene.background))} background."
    wrong = stage.rng.sample([name for name in _CELLS if name != _CELLS[cell]], 3)
    question = stage.kit.phrase(WORDING["odd one"])
    ask = stage.kit.choice(question, _CELLS[cell], wrong, "odd one")
    return stage.sample(scene, ask, text=text)


def _sides(thing: Shown) -> tuple[int, int]:
    return thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]
