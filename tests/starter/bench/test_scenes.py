"""Answers of the composed tasks, read off the boxes and names of the truth anew."""

from itertools import combinations

import numpy as np
import pytest

pytest.importorskip("resvg_py", reason="of the extra `starter`, which a core install lacks")

from llavit.starter.bench.registry import TASKS
from llavit.starter.bench.stage import stock
from llavit.starter.captions import NUMBERS
from llavit.starter.concepts import article, confusable, plural
from llavit.starter.kit import Ask, Sample
from llavit.starter.palette import COLOURS
from tests.starter.bench.samples import COMPOSED, gallery, groups, question, samples

CALLS = 300
SIDE_OF = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}


def answer_of(ask: Ask) -> str:
    return ask.options["ABCD".index(ask.answer)] if ask.options else ask.answer


def centre(thing: dict) -> np.ndarray:
    left, top, right, bottom = thing["box"]
    return np.array([(left + right) / 2, (top + bottom) / 2])


def area(thing: dict) -> float:
    left, top, right, bottom = thing["box"]
    return (right - left) * (bottom - top)


def lies(one: dict, other: dict, side: str) -> bool:
    axis, sign = SIDE_OF[side]
    return sign * (centre(one) - centre(other))[axis] > 0.15 * 112


def named(sample: Sample, name: str) -> dict:
    (found,) = [thing for thing in sample.truth["objects"] if thing["name"] == name]
    return found


def mentioned(sample: Sample) -> list[dict]:
    """The objects that the question names, in the order in which it does."""
    text = question(sample.ask.text)
    found = [(text.find(thing["name"]), thing) for thing in sample.truth["objects"] if thing["name"] in text]
    return [thing for _, thing in sorted(found, key=lambda pair: pair[0])]


@pytest.mark.parametrize("name", [*COMPOSED, "caption-wild"])
def test_objects_are_large_enough_and_lie_inside_the_picture(name: str):
    for sample in samples(name, CALLS):
        for thing in sample.truth["objects"]:
            left, top, right, bottom = thing["box"]
            assert max(right - left, bottom - top) >= 28
            assert 0 <= left < right <= 112 and 0 <= top < bottom <= 112


@pytest.mark.parametrize("name", [*COMPOSED, "caption-wild"])
def test_objects_overlap_only_where_depth_is_asked_for(name: str):
    for sample in samples(name, CALLS):
        pairs = combinations([thing["box"] for thing in sample.truth["objects"]], 2)
        overlap = any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a, b in pairs)
        assert overlap == (sample.truth["kind"] == "depth"), (name, sample.ask)


@pytest.mark.parametrize("name", [*COMPOSED, "caption-wild"])
def test_different_objects_of_a_picture_are_never_look_alikes(name: str):
    for sample in samples(name, CALLS):
        assert not any(confusable(a, [b]) for a, b in combinations(sample.names, 2))


@pytest.mark.parametrize("name", ["mini-mme", "mini-pope"])
def test_existence_is_as_the_scene_says_and_nothing_there_could_be_taken_for_what_is_missing(name: str):
    seen = 0
    concepts = stock(gallery(), "test", "any").drawings
    for sample in samples(name, CALLS):
        if not sample.ask.topic.startswith("exist"):
            continue
        seen += 1
        text = question(sample.ask.text)
        asked = max((c for c in concepts if article(c) in text), key=len)
        assert (sample.ask.answer == "yes") == (asked in sample.names)
        assert sample.ask.answer == "yes" or not confusable(asked, sample.names)
    assert seen >= CALLS / 4


def test_colours_counts_and_positions_of_mini_mme_are_as_the_scene_says():
    kinds = {"colour": 0, "count": 0, "pair": 0}
    for sample in samples("mini-mme", CALLS):
        text, yes = question(sample.ask.text), sample.ask.answer == "yes"
        kind = sample.ask.topic.split()[0]
        things = sample.truth["objects"]
        if kind == "colour":
            (asked,) = [c for c in COLOURS if f" {c}?" in text or text.endswith(f"is {c}?")]
            assert yes == (things[0]["colour"] == asked)
        elif kind == "count":
            number = next(n for n in NUMBERS if f" {n} " in f" {text} ".lower().replace("?", " "))
            there = [t for t in things if plural(t["name"]) in text]
            assert yes == (len(there) == NUMBERS.index(number)) and there
        elif kind == "pair":
            one, other = things[0], things[1]
            (side,) = [s for s in SIDE_OF if f" {s} " in f" {text.split(one['name'])[1]}"]
            assert yes == lies(one, other, side)
            assert yes or lies(other, one, side)
        if kind in kinds:
            kinds[kind] += 1
    assert min(kinds.values()) >= CALLS / 4


def test_names_of_mini_mmb_are_of_one_category_and_no_look_alikes():
    categories = {
        c.name: c.category for u in (0, 1) for c in stock(gallery(), "test", "any").concepts[bool(u)]
    }
    for sample in samples("mini-mmb", CALLS):
        assert answer_of(sample.ask) == sample.names[0]
        assert len({categories[option] for option in sample.ask.options}) == 1
        assert not any(confusable(a, [b]) for a, b in combinations(sample.ask.options, 2))


def test_open_questions_of_mini_gqa_have_one_answer():
    kinds = dict.fromkeys(("colour", "colour there", "what there", "which side"), 0)
    for sample in samples("mini-gqa", CALLS):
        one, other = sample.truth["objects"][:2]
        rest = sample.truth["objects"][2:]
        text = question(sample.ask.text)
        sides = [side for side in SIDE_OF if f" {side} " in f" {text.replace('?', ' ')} "]
        if len(sides) == 2:
            kinds["which side"] += 1
            assert sample.ask.answer in sides and lies(one, other, sample.ask.answer)
        elif len(sides) == 1:
            (side,) = sides
            axis, sign = SIDE_OF[side]
            assert lies(one, other, side)
            assert not any(sign * (centre(third) - centre(other))[axis] > 0 for third in rest)
            what = "colour there" if sample.ask.answer in COLOURS else "what there"
            kinds[what] += 1
            assert sample.ask.answer == (one["colour"] if what == "colour there" else one["name"])
        else:
            kinds["colour"] += 1
            assert sample.ask.answer == named(sample, one["name"])["colour"]
    assert set(kinds.values()) == {CALLS // 4}


def differing(one: Sample, other: Sample) -> np.ndarray:
    """Box of the pixels that differ: left, top, right, bottom."""
    changed = (np.asarray(one.image) != np.asarray(other.image)).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def test_pictures_of_a_pair_differ_in_what_is_asked_for_and_in_nothing_else():
    kinds: dict[str, int] = {}
    for one, other in groups("mini-mmvp", CALLS):
        things, others = one.truth["objects"], other.truth["objects"]
        assert one.truth["background"] == other.truth["background"]
        if len(things) != len(others):  # one more, or one that is missing
            fewer, more = sorted((things, others), key=len)
            (gone,) = [thing for thing in more if thing not in fewer]
            assert len(more) == len(fewer) + 1
            box = differing(one, other)
            assert (box[:2] >= gone["box"][:2]).all() and (box[2:] <= gone["box"][2:]).all()
            kind = "count" if any(thing["name"] == gone["name"] for thing in fewer) else "missing"
        else:
            changed = [(a, b) for a, b in zip(things, others, strict=True) if a != b]
            keys = {key for a, b in changed for key in a if a[key] != b[key]}
            if keys == {"colour"}:
                kind = "colour"
                ((a, b),) = changed
                assert {a["colour"], b["colour"]} == set(one.ask.options)
            elif not keys:
                kind = "upright"
                assert one.truth["kind"] == "upright"
                left, top, right, bottom = things[0]["box"]
                crops = [np.asarray(s.image)[top:bottom, left:right] for s in (one, other)]
                assert (crops[0] == crops[1][::-1, ::-1]).mean() > 0.99
            else:
                assert keys <= {"box", "place", "size"}
                kind = "bigger" if one.truth["kind"] == "bigger" else "side"
        kinds[kind] = kinds.get(kind, 0) + 1
    assert kinds == dict.fromkeys(("colour", "count", "side", "upright", "bigger", "missing"), CALLS // 6)


def test_each_half_of_a_pair_has_the_answer_of_its_own_picture():
    for group in groups("mini-mmvp", CALLS):
        for sample in group:
            things, answer = sample.truth["objects"], answer_of(sample.ask)
            options = set(sample.ask.options)
            if sample.truth["kind"] == "bigger":
                assert area(named(sample, answer)) >= 1.6 * min(area(thing) for thing in things)
            elif options <= set(COLOURS):
                assert things[0]["colour"] == answer
            elif options <= set(NUMBERS):
                counted = [t for t in things if plural(t["name"]) in question(sample.ask.text)]
                assert NUMBERS[len(counted)] == answer
            elif options <= set(SIDE_OF):
                assert lies(things[0], things[1], answer)
            elif options == {"yes", "no"}:
                asked = any(article(t["name"]) in question(sample.ask.text) for t in things)
                assert asked == (answer == "yes")
            else:
                assert options == {"upright", "upside down"}


@pytest.mark.parametrize("name", ["mini-realworld", "mini-cv2d"])
def test_sides_are_plain_and_the_one_that_is_asked_for(name: str):
    asked = [s for s in samples(name, CALLS) if any(o.endswith(" it") for o in s.ask.options)]
    assert len(asked) >= CALLS / 3
    for sample in asked:
        one, other = sample.truth["objects"][:2]
        assert mentioned(sample)[0] in (one, other)
        (side,) = [side for side in SIDE_OF if f" {side} " in f" {answer_of(sample.ask)} "]
        assert lies(one, other, side)


def test_outermost_objects_are_plainly_nearer_to_the_edge():
    seen = 0
    for sample in samples("mini-realworld", CALLS):
        words = {"left?": "left", "right?": "right", "up?": "above", "down?": "below"}
        side = words.get(question(sample.ask.text).split()[-1])
        if side is None or len(sample.ask.options) != 4 or answer_of(sample.ask) not in sample.names:
            continue
        seen += 1
        right = named(sample, answer_of(sample.ask))
        assert all(lies(right, other, side) for other in sample.truth["objects"] if other is not right)
    assert seen == CALLS // 3


@pytest.mark.parametrize("name", ["mini-realworld", "mini-cv3d"])
def test_the_object_in_front_is_drawn_last_and_hides_a_part_of_the_other(name: str):
    seen = [s for s in samples(name, CALLS) if s.truth["kind"] == "depth"]
    assert len(seen) >= CALLS // 6
    front = 0
    for sample in seen:
        last = sample.truth["objects"][-1]["name"] == answer_of(sample.ask)
        words = question(sample.ask.text)
        assert last == ("nearer" in words or "hides" in words)
        front += last
    assert front / len(seen) == pytest.approx(0.5, abs=0.02)


def test_silhouettes_are_counted_right_and_each_number_is_asked_alike():
    numbers = []
    for sample in samples("mini-cv2d", CALLS):
        if all(option.isdigit() for option in sample.ask.options):
            asked = [t for t in sample.truth["objects"] if plural(t["name"]) in question(sample.ask.text)]
            assert len(asked) == int(answer_of(sample.ask))
            numbers.append(len(asked))
        assert all(thing["colour"] for thing in sample.truth["objects"])
    assert [numbers.count(n) for n in range(1, 7)] == [CALLS // 12] * 6


def test_sizes_distances_and_odd_ones_of_mini_cv3d_are_plain():
    seen = {"size": 0, "closest": 0, "odd": 0}
    for sample in samples("mini-cv3d", CALLS):
        things, answer = sample.truth["objects"], answer_of(sample.ask)
        text = question(sample.ask.text)
        if sample.truth["kind"] == "grid":
            seen["odd"] += 1
            row, column = (sorted({centre(t)[axis] // 37 for t in things}) for axis in (1, 0))
            assert len(row) == len(column) == 3
            looks = [(t["name"], t["colour"]) for t in things]
            odd = [i for i, look in enumerate(looks) if looks.count(look) == 1]
            cells = [
                "top left",
                "top",
                "top right",
                "left",
                "center",
                "right",
                "bottom left",
                "bottom",
                "bottom right",
            ]
            if odd:
                assert [cells[i] for i in odd] == [answer]
            else:
                assert answer in cells and "upside down" in sample.caption
        elif len(sample.ask.options) == 3:
            seen["closest"] += 1
            first = things[0]
            far = {t["name"]: np.linalg.norm(centre(t) - centre(first)) for t in things[1:]}
            assert first["name"] in text
            assert all(far[o] >= 1.4 * far[answer] for o in sample.ask.options if o != answer)
        elif len(sample.ask.options) == 4:
            seen["size"] += 1
            own = area(named(sample, answer))
            rest = [area(t) for t in things if t["name"] != answer]
            large = "largest" in text
            assert own >= 1.6 * max(rest) if large else 1.6 * own <= min(rest)
    assert seen == {"size": CALLS // 6, "closest": CALLS // 6, "odd": CALLS // 2}


def test_captions_of_the_wild_name_what_is_there():
    for sample in samples("caption-wild", CALLS):
        nouns = [names.split("|")[0] for names in sample.ask.accepted]
        assert nouns == [thing["name"] for thing in sample.truth["objects"]]
        assert all(noun in sample.ask.answer for noun in nouns)


def test_easy_vqa_asks_the_official_questions_each_once():
    from llavit.starter.sources import easyvqa_questions

    official = [
        (image, q.lower(), answer) for image, rows in easyvqa_questions("test").items() for q, answer in rows
    ]
    assert TASKS["easy-vqa-full"].items == len(official) == 9673
    asked = [
        (s.truth["easyvqa_image"], question(s.ask.text).lower(), s.ask.answer)
        for s in samples("easy-vqa", CALLS)
    ]
    assert set(asked) <= set(official)
    from llavit.starter.bench.anchors import _questions

    assert sorted((i, q.lower(), a) for i, q, a in _questions("test")) == sorted(official)
    train, val = ({i for i, _, _ in _questions(split)} for split in ("train", "val"))
    assert train and val and not train & val
