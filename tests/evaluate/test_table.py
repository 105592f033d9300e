"""Results side by side, in every form, and the page of a task."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from llavit.evaluate import evaluate, load_bench, load_task
from llavit.evaluate.chart import html_page, save_chart
from llavit.evaluate.result import read_result, totals, without_predictions, write_result
from llavit.evaluate.table import markdown, rows, titles
from llavit.evaluate.task_page import task_page
from tests.evaluate.small_bench import save_bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return save_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def results(tiny, bench):
    """A run over everything, and one over two tasks without baselines, of another model."""
    found = []
    for seed, tasks, baselines in ((3, "all", ["majority", "blind", "shuffled"]), (4, "short,turned", [])):
        torch.manual_seed(seed)
        model, processor = tiny.build(dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data += 0.15 * torch.randn_like(parameter)
        found.append(
            evaluate(model, processor, load_bench(bench, tasks), baselines=baselines, name=f"m{seed}")
        )
    return found


def test_rows_are_tasks_then_their_family_then_the_mean_then_anchors(results):
    assert [(row.kind, row.name.split("@")[0]) for row in rows(results)] == [
        ("task", "short"),
        ("task", "turned"),
        ("family", "general"),
        ("task", "numbers"),
        ("family", "knowledge"),
        ("task", "forms"),
        ("family", "ocr_chart"),
        ("task", "pairs"),
        ("family", "vision_centric"),
        ("mean", "mean"),
        ("task", "captions"),
    ]


def test_a_cell_is_the_score_of_its_run_and_missing_where_the_run_has_none(results):
    first, second = results
    by_name = {row.name: row for row in rows(results)}
    cell = by_name["short@small-1"].cells[1, "model"]
    assert cell.score == second["tasks"]["short@small-1"]["score"]
    blind = by_name["pairs@small-1"].cells[0, "blind"]
    assert blind.score == first["tasks"]["pairs@small-1"]["baselines"]["blind"]["score"]
    assert (1, "model") not in by_name["pairs@small-1"].cells
    assert list(titles(results).values()) == ["m3", "m3: majority", "m3: blind", "m3: shuffled", "m4"]


def test_markdown_has_a_line_for_each_row_with_the_interval_and_the_lost_items(results):
    text = markdown(results)
    lines = text.splitlines()
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert len(widths) == 1 and len([line for line in lines if line.startswith("|")]) == 2 + len(
        rows(results)
    )
    task = results[0]["tasks"]["turned@small-1"]
    (line,) = (line for line in lines if line.startswith("| turned@small-1"))
    assert f"{100 * task['score']:.1f} ({100 * task['low']:.1f}-{100 * task['high']:.1f}, " in line
    assert f"{task['unparsed']} unparsed" in line and task["unparsed"] > 0
    assert "| - |" in next(line for line in lines if line.startswith("| pairs@small-1"))
    assert "2,000" not in text and "95 % bootstrap intervals" in text and "Majority: always" in text


def test_other_items_under_one_name_do_not_stand_in_one_row(results):
    other = copy.deepcopy(results[1])
    other["tasks"]["short@small-1"]["fingerprint"] = "other"
    with pytest.raises(ValueError, match="short@small-1 has other items in m4"):
        rows([results[0], other])


def test_another_metric_under_one_name_does_not_stand_in_one_row(results):
    other = copy.deepcopy(results[1])
    other["tasks"]["short@small-1"]["metric"] = "anls"
    with pytest.raises(
        ValueError, match=r"short@small-1 has other scoring in m4.*: anls there, exact before"
    ):
        rows([results[0], other])


def test_items_that_failed_in_a_baseline_stand_beside_its_score(results):
    lossy = copy.deepcopy(results[0])
    lossy["tasks"]["short@small-1"]["baselines"]["blind"]["failed"] = 7
    assert "(7 failed)" not in markdown(results) and markdown([lossy]).count("(7 failed)") == 1
    assert "7 failed" not in html_page(results) and html_page([lossy]).count("7 failed</small>") == 1


def test_a_cut_run_says_so(results):
    cut = {**results[0], "complete": False, "settings": {**results[0]["settings"], "limit": 3}}
    text = markdown([cut])
    assert "The run is not finished." in text and "the first 3 items of each task only" in text
    assert "The run is not finished." not in markdown(results)


def test_a_mean_over_some_families_only_says_so(results):
    assert "m4: the mean is over general only." in markdown(results[1:])
    assert "m3: the mean is over" not in markdown(results[:1])


def test_means_over_other_tasks_do_not_stand_beside_each_other(results):
    first, second = results
    by_name = {row.name: row for row in rows(results)}
    assert (
        by_name["general"].cells[1, "model"].score == second["families"]["general"]["score"]
    )  # it has all of them
    assert (1, "model") not in by_name["mean"].cells
    assert by_name["mean"].cells[0, "model"].score == first["mean"]["score"]
    lack = (
        "m4 lacks forms@small-1, numbers@small-1, pairs@small-1: its means that these belong to are left out"
    )
    assert lack in markdown(results) and "m4: the mean is over" not in markdown(results)
    assert "m3 lacks" not in markdown(results) and "lacks" not in markdown([second, second])


def test_two_runs_that_each_lack_a_task_of_a_family_have_no_mean_of_it(results):
    def only(*names):
        tasks = {key: task for key, task in results[0]["tasks"].items() if key.split("@")[0] in names}
        return {**results[0], "name": names[0], "tasks": tasks, **totals(tasks)}

    apart = [only("short", "pairs"), only("turned", "pairs")]
    by_name = {row.name: row for row in rows(apart)}
    assert not by_name["general"].cells and not by_name["mean"].cells
    assert len(by_name["vision_centric"].cells) == 2 * 4  # the model and its baselines
    assert "short lacks turned@small-1:" in markdown(apart) and "turned lacks short@small-1:" in markdown(
        apart
    )
    assert html_page(apart).count("lacks") == 2  # with bars left out of the picture


def test_the_page_is_one_file_with_table_and_picture(results):
    page = html_page(results)
    assert "<svg" in page and page.count("<tr") == 1 + len(rows(results))
    assert not re.search(r"""(?:src|href)=["']https?:""", page)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_drawn(results, tmp_path, suffix):
    path = save_chart(results, tmp_path / "new" / f"scores.{suffix}")
    if suffix == "png":
        with Image.open(path) as picture:
            assert min(picture.size) > 300
    else:
        assert "<svg" in path.read_text()


def test_the_page_of_a_task_shows_items_answers_and_what_was_said(results, bench):
    task = load_task(bench / "turned")
    page = task_page(task, results[0], count=4)
    assert page.count("data:image/png;base64,") == 4 and "4 of 12 items" in page
    assert page.count('class="unit wide"') == 1
    assert "score of m3" in page and "(unparsed)" in page and "blind: " in page
    plain = task_page(load_task(bench / "short"))
    assert plain.count("data:image/png;base64,") == 8 and "unseen style" in plain and "or red dot" in plain
    assert "score of" not in plain
    textual = task_page(load_task(bench / "numbers"))
    assert textual.count("data:image/png;base64,") == 4 and "1+1?" in textual


def test_the_page_of_a_task_refuses_a_run_without_it_or_of_other_items(results, bench):
    task = load_task(bench / "pairs")
    with pytest.raises(ValueError, match="m4 has no task pairs@small-1"):
        task_page(task, results[1])
    with pytest.raises(ValueError, match="had other items"):
        task_page(replace(task, fingerprint="x"), results[0])
    with pytest.raises(ValueError, match="m3 is a summary without single predictions"):
        task_page(task, without_predictions(results[0]))


def test_a_run_without_its_predictions_gives_the_same_table_and_is_small(results, tmp_path):
    from typer.testing import CliRunner

    from llavit.cli import app

    write_result(results[0], tmp_path / "run.json")
    arguments = ["table", str(tmp_path / "run.json"), "--summary", str(tmp_path / "summary.json")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    summary = read_result(tmp_path / "summary.json")
    assert markdown([summary]) == markdown([results[0]])
    assert not any("predictions" in task or "points" in task for task in summary["tasks"].values())
    two = CliRunner().invoke(app, [*arguments, str(tmp_path / "run.json")])
    assert two.exit_code == 2 and "expected one run, got 2" in two.output
