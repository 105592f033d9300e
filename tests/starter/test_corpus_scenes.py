"""Scenes and questions of the starter corpus: nothing held out is trained on, and every answer is the true one."""

import doctest
import importlib
import importlib.util
from collections import Counter
from itertools import combinations, pairwise

import pytest

pytest.importorskip("resvg_py", reason="of the extra `starter`, which a core install lacks")

from llavit.starter import charts, concepts, palette, phrases, sources, words
from llavit.starter.items import Factory, Item
from llavit.starter.plan import KINDS, Plan
from llavit.starter.studio import apart

EQUAL = tuple((kind, 1 / len(KINDS)) for kind in KINDS)
MODULES = ("concepts", "palette", "phrases", "plan", "scene", "studio", "corpus")


def items(split: str, number: int = 660, image_size: int = 112) -> list[Item]:
    factory = Factory(split, EQUAL, image_size, seed=0)
    return [factory.item(index) for index in range(number)]


@pytest.fixture(scope="module")
def exam_items() -> list[Item]:
    return items("test", 1100)


@pytest.fixture(scope="module")
def train_items() -> list[Item]:
    return items("pretrain") + items("instruct") + items("val")


def test_training_shows_no_held_out_concept_and_no_held_out_style(train_items: list[Item]):
    for item in train_items:
        for thing in item.scene.things:
            assert not thing.concept.held_out and thing.source in ("twemoji", "icon"), item.id


def test_held_out_concepts_are_the_same_for_every_source():
    assert not {c.name for c in concepts.pool(True)} & {c.name for c in concepts.pool(False)}
    share = len(concepts.pool(True)) / len(concepts.all_concepts())
    assert 0.12 < share < 0.18
    for category in concepts.categories():
        assert sum(c.category == category for c in concepts.pool(True)) >= 2, category


def test_training_words_fonts_and_tables_are_not_those_held_out(train_items: list[Item]):
    for item in train_items:
        details = item.scene.details
        if item.scene.kind == "word":
            assert details["font_family"] not in words.HELD_OUT_FONTS
            assert details["word"] in words.words(False) and not concepts.held_out(details["word"])
        if item.scene.kind == "chart":
            assert details["table"] not in charts.HELD_OUT_TABLES


def test_test_words_use_held_out_fonts_and_test_charts_held_out_tables(exam_items: list[Item]):
    for item in exam_items:
        details = item.scene.details
        if item.scene.kind == "word":
            assert details["font_family"] in words.HELD_OUT_FONTS and item.scene.unseen_style
            assert item.scene.unseen_concept == (details["word"] in words.words(True))
        if item.scene.kind == "chart":
            assert details["table"] in charts.HELD_OUT_TABLES


def test_fonts_files_and_tables_are_split_without_overlap():
    train = {file for files in words.FONTS.values() for file in files}
    test = {file for files in words.HELD_OUT_FONTS.values() for file in files}
    assert not train & test and not set(charts.TABLES) & set(charts.HELD_OUT_TABLES)
    assert not set(words.words(True)) & set(words.words(False))


def test_easyvqa_pictures_of_train_val_and_test_are_apart(train_items: list[Item], exam_items: list[Item]):
    shown: dict[str, set[tuple[str, int]]] = {"train": set(), "val": set(), "test": set()}
    for item in (*train_items, *exam_items):
        if item.scene.kind == "easyvqa":
            split = item.split if item.split in ("val", "test") else "train"
            details = item.scene.details
            shown[split].add((details["easyvqa_split"], details["easyvqa_image"]))
    assert not any(shown[a] & shown[b] for a, b in combinations(shown, 2))
    assert {official for official, _ in shown["test"]} == {"test"}


def test_every_concept_is_drawn_in_every_style_it_claims():
    for concept in concepts.all_concepts():
        assert concept.emoji or concept.icon, concept
        for source in ("twemoji", "openmoji"):
            assert concept.emoji is None or sources.drawing_path(source, concept.emoji).exists(), concept
        assert concept.icon is None or sources.drawing_path("icon", concept.icon).exists(), concept


def test_names_are_unique_and_look_alikes_are_names():
    names = [c.name for c in concepts.all_concepts()]
    assert len(names) == len(set(names))
    assert concepts._look_alikes().keys() <= set(names)
    drawings = [c.emoji for c in concepts.all_concepts() if c.emoji]
    assert len(drawings) == len(set(drawings))


@pytest.mark.parametrize("image_size", [112, 224])
def test_objects_lie_inside_the_picture_apart_and_large_enough(image_size: int):
    scale = image_size / 112
    for item in items("test", 400, image_size):
        for thing in item.scene.things:
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= image_size and 0 <= top < bottom <= image_size, item.id
            assert max(right - left, bottom - top) >= 28 * scale - 1, item.id
        for one, other in combinations(item.scene.things, 2):
            assert apart(one.box, other.box, 3 * scale - 1), item.id


def test_things_of_one_scene_are_never_mistaken_for_one_another(exam_items: list[Item]):
    for item in exam_items:
        for one, other in combinations({t.concept for t in item.scene.things}, 2):
            assert not concepts.confusable(one.name, [other.name]), item.id


def test_answers_are_those_of_the_scene(exam_items: list[Item]):
    for item in exam_items:
        scene, question = item.scene, item.question
        things = scene.to_json()["objects"]
        if question.key == "count":
            asked = [t for t in scene.things if t.concept.plural == question.slots["things"]]
            assert int(question.answer) == len(asked), item.id
        elif question.key == "name.options":
            assert question.answer == things[0]["name"]
            assert question.options is not None
            others = [o for o in question.options if o != question.answer]
            assert not concepts.confusable(question.answer, others)
        elif question.key == "category.shown":
            assert question.answer == things[0]["category"]
        elif question.key == "size":
            left, top, right, bottom = things[0]["box"]
            longest = max(right - left, bottom - top)
            assert longest <= 36 if question.answer == "small" else longest >= 84
        elif question.key == "exist":
            named = {form for t in scene.things for form in (t.noun(), t.concept.name)}
            asked_name = question.slots["a_thing"].split(" ", 1)[1]
            assert (asked_name in named) == (question.answer == "yes"), item.id
        elif question.key in ("chart.colour", "chart.letter"):
            best = (max if question.slots["which"] == "tallest" else min)(
                scene.details["bars"], key=lambda bar: bar["value"]
            )
            assert question.answer == best["name"], item.id
        elif question.key == "colour.thing":
            assert question.answer == things[0]["colour"]


def test_a_place_is_plain(exam_items: list[Item]):
    for item in exam_items:
        if item.question.key != "place":
            continue
        x, y = item.scene.things[0].centre
        rows = {"top": y < 34, "bottom": y > 78, "center": 45 < y < 67}
        assert rows.get(item.question.answer.split()[0], 45 < y < 67), item.id
        columns = {"left": x < 34, "right": x > 78}
        assert columns.get(item.question.answer.split()[-1], 45 < x < 67), item.id


def test_relations_hold_with_a_margin(exam_items: list[Item]):
    for item in exam_items:
        if item.question.key != "relation.check":
            continue
        one, other = item.scene.things[:2]
        dx, dy = one.centre[0] - other.centre[0], one.centre[1] - other.centre[1]
        side = item.question.slots["side"]
        along, across = (dx, dy) if "the" in side.split() else (dy, dx)
        assert abs(along) >= 0.2 * 112 and abs(along) >= 2 * abs(across), item.id
        there = along < 0 if side in ("to the left of", "above") else along > 0
        assert there == (item.question.answer == "yes"), item.id


def test_what_lies_at_a_side_is_the_only_thing_there(exam_items: list[Item]):
    asked = [item for item in exam_items if item.question.key == "relation.what"]
    assert asked
    for item in asked:
        one, other, *rest = item.scene.things
        axis = 0 if "the" in item.question.slots["side"].split() else 1
        towards = one.centre[axis] - other.centre[axis]
        for third in rest:
            assert (third.centre[axis] - other.centre[axis]) * towards < 0, item.id


def test_bars_differ_plainly(exam_items: list[Item]):
    for item in exam_items:
        if item.scene.kind == "chart":
            heights = sorted(bar["height"] for bar in item.scene.details["bars"])
            assert all(b - a >= charts.MIN_GAP - 1e-3 for a, b in pairwise(heights))
            assert heights[-1] == 1 and heights[0] > 0.05


def test_colours_and_grounds_are_far_apart():
    for one, other in combinations(palette.COLOURS.values(), 2):
        assert palette.distance(one, other) >= palette.MIN_DISTANCE
    for ground in palette.BACKGROUNDS:
        assert len(palette.colours_on(ground)) >= 6, ground


def test_the_right_option_stands_equally_often_at_each_position(exam_items: list[Item]):
    for task in ("name", "category"):
        asked = [i.question for i in exam_items if i.question.task == task]
        places = Counter(q.options.index(q.answer) for q in asked if q.options)
        assert max(places.values()) - min(places.values()) <= 1, (task, places)


def test_a_category_alone_does_not_tell_whether_a_thing_is_there():
    category = {c.name: c.category for c in concepts.all_concepts()}
    factory = Factory("val", (("exist", 1.0),), 112, seed=0)
    asked: dict[str, Counter] = {"yes": Counter(), "no": Counter()}
    for index in range(1200):
        question = factory.item(index).question
        name = question.slots["a_thing"].split(" ", 1)[1]
        if name in category:  # not one with a colour in front
            asked[question.answer][category[name]] += 1
    best = sum(max(asked["yes"][c], asked["no"][c]) for c in {*asked["yes"], *asked["no"]})
    # what a guess from the category alone would score; 0.5 is chance, and noise of 900 questions adds some
    assert best / sum(sum(counts.values()) for counts in asked.values()) < 0.56


def test_wrong_options_are_as_new_as_the_right_one(exam_items: list[Item]):
    for item in exam_items:
        if item.question.key == "name.options" and item.question.options:
            assert len({concepts.held_out(name) for name in item.question.options}) == 1, item.id


def test_each_question_type_keeps_two_phrasings_from_training(train_items: list[Item]):
    for key, every in phrases.PHRASES.items():
        assert len(every) == len(set(every)) and (key == "easyvqa" or len(every) >= 4)
    for item in items("instruct", 200):
        for turn in item.record()["conversations"][::2]:
            asked = turn["value"].replace("<image>\n", "").split("\n")[0]
            kept = [p for every in phrases.PHRASES.values() if len(every) > 2 for p in every[-2:]]
            assert asked not in kept, item.id


def test_the_order_of_kinds_keeps_the_shares():
    plan = Plan({"name": 0.7, "count": 0.25, "chart": 0.05}, seed=3, split="pretrain")
    kinds = Counter(plan.slot(i)[0] for i in range(400))
    assert kinds == {"name": 280, "count": 100, "chart": 20}


def test_a_deal_gives_each_answer_once_per_round():
    plan = Plan({"count": 1.0}, seed=0, split="test")
    dealt = [plan.slot(i)[1].pick("answer", "abcdef") for i in range(600)]
    for start in range(0, 600, 6):
        assert sorted(dealt[start : start + 6]) == list("abcdef")


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"no_such_package.*llavit\[starter\]"):
        sources.package_dir("no_such_package")


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_hold(module: str):
    result = doctest.testmod(importlib.import_module(f"llavit.starter.{module}"))
    assert result.failed == 0
