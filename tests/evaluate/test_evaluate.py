"""Asking and scoring."""

import json

import pytest
from PIL import Image

from llavit.evaluate import (
    BenchTask,
    Item,
    accuracy,
    answer_items,
    evaluate,
    load_items,
    majority_answers,
    normalise,
    scores_by_task,
)
from llavit.evaluate.report import render_report, score_report
from llavit.evaluate.sheet import first_of_each_task, save_sheet


def items(folder) -> list[Item]:
    made = []
    for number, (task, answer) in enumerate(
        [("colour", "red"), ("colour", "blue"), ("colour", "red"), ("count", "3")]
    ):
        path = folder / f"{number}.png"
        Image.new("RGB", (20, 20), answer if task == "colour" else "white").save(path)
        made.append(Item(str(number), path, f"Question {'x' * number}?", answer, task))
    return made


def test_answers_are_compared_without_case_articles_punctuation_and_number_words():
    assert normalise(" The  RED umbrella! ") == "red umbrella"
    assert normalise("Three.") == normalise("3")
    assert normalise("not red") != normalise("red")
    assert len({normalise(answer) for answer in ("", "A", "the")}) == 3  # nothing is not the option "A"


def test_scores_are_by_task_and_overall(tmp_path):
    four = items(tmp_path)
    answers = ["Red.", "red", "green", "three"]
    by_task = scores_by_task(four, answers)
    assert by_task["colour"].accuracy == pytest.approx(1 / 3) and by_task["colour"].items == 3
    assert by_task["count"].accuracy == 1
    assert accuracy(four, answers) == pytest.approx(1 / 2)
    with pytest.raises(ValueError, match="4 items, got 1"):
        scores_by_task(four, ["red"])


def test_no_constant_answer_beats_the_majority_baseline_where_each_item_has_one_right_answer(tmp_path):
    four = items(tmp_path)
    best = accuracy(four, majority_answers(four))
    for word in ("red", "blue", "3"):
        assert accuracy(four, [word] * 4) <= best
    assert best == pytest.approx(3 / 4)


def test_batched_answers_equal_those_one_at_a_time_with_and_without_image(tiny, tmp_path):
    model, processor = tiny.build()
    four = items(tmp_path)
    for picture in ("own", "blank", "none"):
        together = answer_items(model, processor, four, picture=picture, batch_size=4, max_new_tokens=5)
        alone = answer_items(model, processor, four, picture=picture, batch_size=1, max_new_tokens=5)
        assert together == alone


def test_a_tower_that_is_not_trained_stays_in_evaluation_when_the_rest_is_asked_in_training(tiny, tmp_path):
    model, processor = tiny.build()
    model.train()
    model.model.vision_tower.eval()
    modes = [module.training for module in model.modules()]
    answer_items(model, processor, items(tmp_path), max_new_tokens=1)
    assert [module.training for module in model.modules()] == modes
    (item,) = items(tmp_path)[:1]
    evaluate(model, processor, [BenchTask("t@x-1", "t", "general", "exact", items=(item,))], baselines=())
    assert [module.training for module in model.modules()] == modes


def test_items_are_read_with_what_training_never_showed(tmp_path):
    record = {
        "id": "a",
        "image": "a.png",
        "question": "?",
        "answer": 3,
        "task": "count",
        "unseen_concept": True,
    }
    (tmp_path / "test.json").write_text(json.dumps([record]))
    (item,) = load_items(tmp_path / "test.json")
    assert item.answer == "3" and item.image == tmp_path / "a.png" and item.unseen == {"concept"}
    (tmp_path / "test.json").write_text(json.dumps([{**record, "image": None}]))
    assert load_items(tmp_path / "test.json")[0].image is None
    (tmp_path / "test.json").write_text(json.dumps([{"id": "a"}]))
    with pytest.raises(
        ValueError, match=r"record 0: expected the fields \['answer', 'image', 'question', 'task'\]"
    ):
        load_items(tmp_path / "test.json")


def test_the_report_holds_every_number_and_is_one_file(tmp_path):
    four = items(tmp_path)
    answers, blind = ["red", "blue", "green", "<b>"], ["red"] * 4
    report = score_report(four, answers, blind, {"pretrain": [2.0, 1.0], "instruct": [1.0, 0.5]})
    assert (
        report["accuracy"] == 0.5 and report["blind_accuracy"] == 0.5 and report["majority_accuracy"] == 0.75
    )
    assert report["per_task"]["count"] == {
        "items": 1,
        "accuracy": 0,
        "blind_accuracy": 0,
        "majority_accuracy": 1,
    }
    page = render_report("Title", "Summary", report, four, answers, blind, {"seed": 0})
    assert "<svg" in page and page.count("data:image/png;base64") == 4
    assert '<td class="n">4</td>' in page and "built-in" not in page
    assert "&lt;b&gt;" in page and "<b>" + "</b>" not in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


def test_the_sheet_shows_the_first_items_of_each_task_whatever_their_result(tmp_path):
    four = items(tmp_path)
    assert first_of_each_task(four, 2) == [0, 1, 3]
    save_sheet(four, ["red", "wrong", "red", ""], tmp_path / "sheet.png", columns=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 100
