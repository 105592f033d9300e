"""The suite's table and results, as far as they need no lmms-eval; the rest is in test_end_to_end.py."""

import json
import re
from pathlib import Path

import pytest

from llavit.evaluate.lmms.paper import PAPER
from llavit.evaluate.lmms.suite import _finished, _with_task_files, choose, folder_fingerprint, scores

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
    changed = folder_fingerprint(tmp_path)
    assert before != changed
    assert folder_fingerprint("org/model") is None
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_text("other adapters")
    assert folder_fingerprint(tmp_path) != changed


def test_results_beside_a_model_do_not_make_it_another_one(tmp_path):
    """`llavit eval MODEL` writes MODEL/eval.json by default: a suite that was cut off still goes on."""
    (tmp_path / "config.json").write_text("{}")
    before = folder_fingerprint(tmp_path)
    for name in ("eval.json", "eval-likelihood.json", "README.md"):
        (tmp_path / name).write_text("{}")
    assert folder_fingerprint(tmp_path) == before


def test_a_task_of_ones_own_that_was_written_anew_is_not_taken_as_done(tmp_path):
    (tmp_path / "tasks" / "mine").mkdir(parents=True)
    (tmp_path / "tasks" / "mine" / "test.parquet").write_text("items")
    (task,) = choose("paper", "mine", local=True)
    settings = _with_task_files({"limit": None}, task, tmp_path / "tasks")
    (tmp_path / "out" / "tasks").mkdir(parents=True)
    (tmp_path / "out" / "tasks" / "mine.json").write_text(json.dumps({"settings": settings}))
    assert _finished(tmp_path / "out", "mine", settings) is not None
    (tmp_path / "tasks" / "mine" / "test.parquet").write_text("other items")
    with pytest.raises(ValueError, match=r"other settings \(task_files\)"):
        _finished(tmp_path / "out", "mine", _with_task_files({"limit": None}, task, tmp_path / "tasks"))
    (pope,) = choose("paper", "pope", local=True)
    assert _with_task_files({"limit": None}, pope, tmp_path / "tasks") == {"limit": None}
