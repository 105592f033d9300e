"""What a task checks and writes: groups, rotations, rows, the registry."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from llavit.starter.bench.registry import TASKS, chosen
from llavit.starter.bench.task import Task, rotations
from llavit.starter.kit import Ask, Sample, lettered
from tests.starter.bench.samples import gallery

IMAGE = Image.new("RGB", (8, 8))


def made(*asks: Ask, **options) -> Task:
    return Task("t", "general", maker=lambda kit: [Sample(IMAGE, a) for a in asks], about="", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "accuracy"}, "'accuracy' is none of"),
        ({"metric": "yes_no", "group": "triple"}, "'triple' is none of"),
        ({"metric": "yes_no", "group": "circular"}, "only a choice has options"),
        ({"metric": "yes_no", "group": "pair", "items": 3}, "items=3 is odd"),
    ],
)
def test_a_task_says_what_is_wrong_with_it(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="'ocr' is none of"):
        replace(TASKS["mini-mme"], family="ocr")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (made(Ask("?", "yes"), metric="yes_no", group="pair"), "expected 2 samples, got 1"),
        (made(Ask("?", "maybe"), metric="yes_no"), "neither yes nor no"),
        (made(Ask("?", "C", options=("a", "b")), metric="choice"), "no letter of the options"),
        (made(lettered("?", ["a", "b"], "a"), metric="choice", group="circular"), "takes 4 options"),
    ],
)
def test_a_maker_that_breaks_its_task_is_an_error_with_the_number(task: Task, message: str):
    with pytest.raises(ValueError, match=f"maker of t, number 7: .*{message}"):
        task.samples(gallery(), 7)


def test_a_circular_choice_becomes_four_rows_with_one_picture_and_each_letter_once():
    task = made(lettered("What?", ["a", "b", "c", "d"], "c"), metric="choice", group="circular")
    rows = [row for row, _ in task.rows(task.samples(gallery(), 3), 3)]
    assert [row["id"] for row in rows] == [f"t-00003-{turn}" for turn in range(4)]
    assert {row["group"] for row in rows} == {"t-00003"}
    assert {row["image"] for row in rows} == {"images/00003.png"}
    assert sorted(row["answer"] for row in rows) == ["A", "B", "C", "D"]
    assert all(row["options"]["ABCD".index(row["answer"])] == "c" for row in rows)
    assert all(f"{row['answer']}. c\n" in row["question"] for row in rows)


def test_a_pair_about_one_picture_has_one_file_and_a_pair_of_pictures_has_two():
    asks = (Ask("?", "yes"), Ask("?", "no"))
    one = made(*asks, metric="yes_no", group="pair")
    rows = [row for row, _ in one.rows(one.samples(gallery(), 0), 0)]
    assert [row["id"] for row in rows] == ["t-00000-a", "t-00000-b"]
    assert len({row["image"] for row in rows}) == 1
    two = [Sample(IMAGE, asks[0]), Sample(IMAGE.copy(), asks[1])]
    assert len({row["image"] for row, _ in one.rows(two, 0)}) == 2


def test_a_row_holds_what_the_contract_names_and_is_plain_json():
    task = TASKS["mini-gqa"]
    ((row, _),) = task.rows(task.samples(gallery(), 0), 0)
    assert list(row) == [
        *("id", "image", "question", "answer", "accepted", "options", "group"),
        *("unseen_concept", "unseen_style", "truth"),
    ]
    assert json.loads(json.dumps(row)) == row


def test_rotations_keep_the_question_and_its_topic():
    ask = lettered("One\nor two?", ["a", "b", "c", "d"], "b", "topic")
    assert all(turned.text.startswith("One\nor two?\nA. ") for turned in rotations(ask))
    assert {turned.topic for turned in rotations(ask)} == {"topic"}


def test_the_edition_and_the_version_are_part_of_the_identity():
    task = TASKS["mini-pope"]
    assert task.identity("full") == f"mini-pope@full-{task.version}"
    assert replace(task, version=task.version + 1).identity("starter") != task.identity("starter")


def test_tasks_are_chosen_by_name_and_family_in_the_order_of_the_registry():
    names = [task.name for task in chosen("vision_centric,mini-mme")]
    assert names == ["mini-mme", "mini-mmvp", "mini-realworld", "mini-cv2d", "mini-cv3d"]
    assert chosen(["all"]) == chosen("all")


def test_an_optional_task_is_chosen_by_name_only():
    assert TASKS["easy-vqa-full"].optional
    assert TASKS["easy-vqa-full"] not in [*chosen("all"), *chosen("anchor")]
    assert chosen("easy-vqa-full") == [TASKS["easy-vqa-full"]]


def test_an_unknown_task_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown tasks \['mini-mne'\].*mini-mme"):
        chosen("mini-mne")
