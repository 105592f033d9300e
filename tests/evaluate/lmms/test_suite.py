"""The suite's table and results, as far as they need no lmms-eval; the rest is in test_end_to_end.py."""

import re
from pathlib import Path

import pytest

from llavit.evaluate.lmms.paper import PAPER
from llavit.evaluate.lmms.suite import choose, folder_fingerprint, scores

PAGE = Path(__file__).parents[3] / "docs" / "benchmarks" / "real.md"


def test_the_paper_suite_has_its_sixteen_tasks_in_four_families():
    assert {task.name for task in PAPER} == {
        *(
            "mmvp",
            "cv_bench",
            "gqa",
            "seedbench",
            "mmbench_en_dev_static",
            "textvqa_val",
            "docvqa_val",
            "chartqa",
        ),
        *("ocrbench", "ai2d", "mmmu_val", "pope", "realworldqa", "scienceqa_img", "mme", "mmstar"),
    }
    assert {task.family for task in PAPER} == {"general", "knowledge", "ocr_chart", "vision_centric"}
    for task in PAPER:
        assert len(task.top) == len(task.metrics) > 0 and re.fullmatch(r"[\w-]+/[\w-]+", task.dataset)


def test_the_page_names_each_task_with_its_data_set_and_metrics():
    page = PAGE.read_text(encoding="utf-8")
    for task in PAPER:
        (row,) = re.findall(rf"^\| `{task.name}` \|.*$", page, re.MULTILINE)
        for named in (task.dataset, *task.metrics):
            assert f"`{named}`" in row, (task.name, named)


def test_tasks_are_chosen_by_name_and_unknown_ones_are_an_error():
    assert choose("paper") == list(PAPER)
    assert [task.name for task in choose("paper", ["mme", "pope"])] == ["mme", "pope"]
    with pytest.raises(ValueError, match=r"unknown tasks \['pop'\]: the suite 'paper' has mme, "):
        choose("paper", "pop")
    with pytest.raises(ValueError, match="unknown suite 'peper': there is paper"):
        choose("peper")
    assert choose("paper", "mine", local=True)[0].dataset == ""


def test_a_metric_that_is_missing_or_ambiguous_is_no_score():
    found = {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "submission,none": None, " ": " "}
    assert scores(found) == {"acc": 0.5}
    for bad, metrics in ((found, ["f1"]), ({**found, "acc,strict": 0.4}, ["acc"]), (found, ["submission"])):
        with pytest.raises(ValueError, match=f"expected one number as {metrics[0]}"):
            scores(bad, metrics)


def test_a_changed_model_has_another_fingerprint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = folder_fingerprint(tmp_path)
    assert before == folder_fingerprint(tmp_path)
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert before != folder_fingerprint(tmp_path)
    assert folder_fingerprint("org/model") is None
