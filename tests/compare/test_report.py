"""Reports: what they say about made-up results with known answers."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llavit.compare.grid import Against
from llavit.compare.identity import code_fingerprint
from llavit.compare.paired import over_seeds
from llavit.compare.pictures import _whiskers, pictures
from llavit.compare.report import gain_rows, html, markdown, tables, write_reports
from llavit.compare.run import run_grid
from llavit.compare.summary import as_json, summarise

from .parts import experiment, save_grid

MORE = """
  - {variants: [visual-qkv], seeds: [0]}
  - {variants: [llava-layer-1], seeds: [0], test: false}
"""
RIGHT = {"llava": (4, 5, 6), "llavit": (6, 7, 8), "visual-qkv": (8, 8, 8)}
"""Questions right of ten of each task, for seeds 0, 1 and 2."""


def record(there, cell):
    families = {"a@test": "general", "b@test": "general", "c@test": "vision_centric"}
    right = RIGHT.get(cell.variant, (5, 5, 5))[cell.seed]
    tasks = {
        name: {
            "family": family,
            "metric": "exact",
            "chance": 0.1,
            "items": 10,
            "score": right / 10,
            "failed": 0,
            "unparsed": 0,
            "baselines": {"majority": 0.2},
            "points": [1.0] * right + [0.0] * (10 - right),
        }
        for name, family in families.items()
    }
    score = {
        "score": right / 10,
        "baselines": {"majority": 0.2},
        "families": {"general": right / 10, "vision_centric": right / 10},
        "tasks": tasks,
    }
    curve = [
        {"stage": stage, "step": 1, "samples": samples, "score": right / 20 * share}
        for stage, samples, share in (("pretrain", 8, 1), ("instruct", 16, 2))
    ]
    return {
        "grid": "small",
        "chosen": cell.variant,
        "cell": {"variant": cell.variant, "llm": cell.llm, "size": cell.size, "seed": cell.seed},
        "identity": there.identity(cell),
        "code": "made up",
        "environment": {"git revision": "abc", "torch": "2", "transformers": "5", "cores": "2"},
        "computed_in": "float32",
        "data": {"pretrain": {"samples": 8}, "instruct": {"samples": 8}},
        "curve": curve,
        "val": score,
        "test": score if cell.test else None,
        "parameters": {
            "pretrain": {"total": 2_000_000, "trained": {"projector": 100_000}},
            "instruct": {"total": 2_000_000, "trained": {"projector": 100_000, "llm": 900_000}},
        },
        "seconds": {"training": 60.0, "wall": 90.0},
        "peak_memory_gib": 1.5,
    }


@pytest.fixture(scope="module")
def there(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    grid = save_grid(tiny, folder, MORE.lstrip("\n"))
    grid.write_text(grid.read_text().replace("seeds: [0, 1]", "seeds: [0, 1, 2]"))
    opened = experiment(grid, folder / "out", accept_code=True)
    for cell in opened.cells():
        if cell.name != "tiny.full.llavit.2":  # is not run yet
            opened.results.write(cell, record(opened, cell))
    return opened


@pytest.fixture(scope="module")
def summary(there):
    return summarise(there)


def test_gains_are_over_the_seeds_that_both_have(summary):
    gains = {gain.line.variant: gain for gain in summary.gains}
    assert gains.keys() == {"llavit", "visual-qkv"}
    assert gains["llavit"].seeds == (0, 1)
    assert gains["llavit"].baseline_mean == pytest.approx(0.45) and gains["llavit"].mean == pytest.approx(
        0.65
    )
    assert gains["llavit"].gain.mean == pytest.approx(0.2)
    assert gains["llavit"].gain.low < 0.2 < gains["llavit"].gain.high
    assert gains["visual-qkv"].seeds == (0,) and gains["visual-qkv"].gain.mean == pytest.approx(0.4)


def test_the_summary_file_has_a_comparison_for_each_and_what_was_not_run(summary, there):
    plain = json.loads(json.dumps(as_json(summary, there)))
    first = plain["comparisons"][0]
    assert {
        "llm",
        "variant",
        "baseline",
        "seeds",
        "mean",
        "baseline_mean",
        "gain",
        "ci95",
        "per_family",
    } <= first.keys()
    assert (first["llm"], first["variant"], first["baseline"], first["seeds"]) == (
        "tiny",
        "llavit",
        "llava",
        [0, 1],
    )
    assert first["gain"] == pytest.approx(0.2) and first["ci95"][0] < 0.2 < first["ci95"][1]
    assert first["ci95_over"] == "seeds and questions"
    assert plain["comparisons"][1]["ci95_over"] == "questions"
    assert first["per_family"]["general"]["gain"] == pytest.approx(0.2)
    assert [(one["seed"], one["ci95_over"]) for one in first["per_seed"]] == [
        (0, "questions"),
        (1, "questions"),
    ]
    assert sum(one["gain"] for one in first["per_seed"]) / 2 == pytest.approx(first["gain"])
    for one in first["per_seed"]:
        assert one["mean"] - one["baseline_mean"] == pytest.approx(one["gain"])
        assert one["ci95"][0] < one["gain"] < one["ci95"][1]
    assert plain["not_run"] == [{"cell": "tiny.full.llavit.2", "why": "not run"}]
    llava = plain["variants"][0]
    assert llava["variant"] == "llava" and llava["mean"] == pytest.approx(0.5)
    assert llava["ci95_over_seeds"] == pytest.approx([0.5 - 4.3027 * 0.1 / math.sqrt(3), 0.7484], abs=1e-3)
    assert llava["parameters"] == 2_000_000 and llava["trained_parameters"] == 1_000_000


def test_a_cell_that_was_not_tested_has_no_part_in_results(summary):
    assert "llava-layer-1" not in {line.variant for line in summary.lines}


def test_what_was_tried_on_val_only_is_shown_with_its_score(summary, there):
    assert summary.val_only == [("tiny.full.llava-layer-1.0", 0.5)]
    assert as_json(summary, there)["val_only"] == [{"cell": "tiny.full.llava-layer-1.0", "val": 0.5}]
    assert "| tiny.full.llava-layer-1.0 | 50.0 |" in markdown(summary, there, {})
    assert '<td>tiny.full.llava-layer-1.0</td><td class="n">50.0</td>' in html(summary, there, {})


def test_one_code_at_two_revisions_is_not_mixed(there, tmp_path):
    other = type(there)(there.grid, there.output, type(there.results)(tmp_path), accept_code=True)
    for cell, revision in zip(other.cells()[:2], ("abc", "abc-dirty"), strict=True):
        made = record(other, cell)
        made["environment"]["git revision"] = revision
        other.results.write(cell, made)
    assert [note for note in summarise(other).notes if "code" in note] == [
        "code: made up (revision abc, abc-dirty)."
    ]


def test_answers_that_failed_are_named(there, tmp_path):
    other = type(there)(there.grid, there.output, type(there.results)(tmp_path), accept_code=True)
    cell = other.cells()[0]
    made = record(other, cell)
    made["test"]["tasks"]["a@test"] |= {"failed": 3}
    made["val"] = None
    other.results.write(cell, made)
    notes = [note for note in summarise(other).notes if note.startswith("FAILED ANSWERS")]
    assert notes == [f"FAILED ANSWERS: 3 questions to {cell.name} ended in an error and count as wrong."]


def test_a_gain_of_one_seed_says_that_its_interval_knows_no_others(summary):
    assert [row[3] for row in gain_rows(summary)] == ["2", "1 (interval of questions only)"]


def test_tables_show_mean_families_and_tasks_with_intervals_over_seeds(summary):
    (table,) = tables(summary)
    rows = {label: texts for label, _, texts in table.rows}
    assert table.heads == ("llava", "llavit", "visual-qkv")
    assert rows["seeds"] == ("0, 1, 2", "0, 1", "0")
    assert rows["mean of the families"][0] == "50.0 ± 24.8" and rows["mean of the families"][2] == "80.0"
    assert rows["c@test"][0] == "50.0 ± 24.8" and rows["majority (of the first seed)"][0] == "20.0"
    assert rows["of these trained in pretraining"][0] == "0.1 M"


def test_the_page_and_the_markdown_say_what_was_run_and_what_was_not(summary, there):
    text, page = markdown(summary, there, {"scores": "Scores"}), html(summary, there, {"scores": "Scores"})
    assert "| llavit | llava | tiny, full | 2 | 65.0 | 45.0 | +20.0 (" in text
    assert "- tiny.full.llavit.2: not run" in text and "![Scores](scores.png)" in text
    assert "<li>tiny.full.llavit.2: not run</li>" in page and page.count("<svg") == 1
    for said in (text, page):
        assert "all three changes" in said and "revision abc" in said
        assert said.count("Gains seed by seed") == 1
    rows = [line for line in text.splitlines() if line.startswith("| llavit | llava | tiny, full |")]
    assert len(rows) == 3 and [row.split(" | ")[3] for row in rows] == ["2", "0", "1"]  # seeds, seed, seed


def test_whiskers_end_where_scores_do():
    """The interval of two seeds that differ much reaches beyond."""
    assert _whiskers(over_seeds([0.1, 0.4])) == [[pytest.approx(25)], [pytest.approx(75)]]
    below, above = _whiskers(over_seeds([0.4, 0.5, 0.6]))
    assert below == pytest.approx(above) and below[0] == pytest.approx(24.8, abs=0.1)
    assert _whiskers(over_seeds([0.4])) is None


def test_files_are_written_and_pictures_are_pictures(there):
    folder = write_reports(there)
    for name in ("scores", "samples", "parameters"):
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((folder / "summary.json").read_text())["comparisons"]
    assert {path.name for path in folder.iterdir()} == {
        "cells",
        "results.html",
        "results.md",
        "summary.json",
        "scores.png",
        "samples.png",
        "parameters.png",
    }


def test_without_matplotlib_the_extra_is_named_before_anything_is_trained(
    summary, there, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"need matplotlib: pip install 'llavit\[compare\]'"):
        pictures(summary, there)
    with pytest.raises(ImportError, match=r"need matplotlib: pip install 'llavit\[compare\]'"):
        run_grid(type(there).at(there.grid, tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_results_that_are_left_out_are_said_at_the_top_and_beside_each_picture(there, tmp_path):
    other = type(there)(there.grid, there.output, type(there.results)(tmp_path), accept_code=True)
    cells = other.cells()
    for cell in cells[:3]:
        other.results.write(
            cell, record(other, cell) | {"code": code_fingerprint() if cell is cells[0] else "old"}
        )
    write_reports(other)
    assert (tmp_path / "scores.png").is_file()
    other.accept_code = False
    text = (write_reports(other) / "results.md").read_text()
    assert "- LEFT OUT: 2 cells have a result that is in no table and no picture" in text.split("##")[0]
    assert text.count("; without 2 cells whose results other code or other settings made](") == 3
    other.results.write(cells[0], record(other, cells[0]))
    text = (write_reports(other) / "results.md").read_text()
    assert "- LEFT OUT: 3 cells" in text and "![" not in text
    assert not list(tmp_path.glob("*.png"))  # those of the report before show what this one does not


def test_a_comparison_that_no_seed_allows_is_said(there, tmp_path):
    other = type(there)(there.grid, there.output, type(there.results)(tmp_path), accept_code=True)
    for cell in other.cells():
        if cell.name in ("tiny.full.llava.1", "tiny.full.visual-qkv.0"):
            other.results.write(cell, record(other, cell))
    found = summarise(other)
    assert not found.gains
    assert (
        "NOT COMPARED with llava on tiny, full, for want of a seed that both have: visual-qkv." in found.notes
    )


def test_a_legend_says_how_many_seeds_are_behind_a_mean(summary, there):
    for figure, _ in pictures(summary, there).values():
        labels = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
        assert {label.rpartition("llava")[2] for label in labels if "llava" in label} == {", 3 seeds"}
        assert any(label.endswith("visual-qkv, 1 seed") for label in labels)


def test_questions_about_one_picture_are_said_to_be_no_independent_ones(there, summary, tmp_path):
    (note,) = [note for note in summary.notes if note.startswith("SHARED PICTURES")]
    assert note.startswith(
        "SHARED PICTURES: 12 of 12 test questions"
    )  # of three kinds about each of four pictures
    test = Path(there.grid.evaluation.test)
    rows = [row for row in json.loads(test.read_text()) if row["task"] == "colour"]
    alone = tmp_path / "test.json"
    alone.write_text(json.dumps([{**row, "image": str(test.parent / row["image"])} for row in rows]))
    grid = replace(there.grid, evaluation=replace(there.grid.evaluation, test=str(alone)))
    notes = summarise(type(there)(grid, there.output, there.results, accept_code=True)).notes
    assert not [note for note in notes if note.startswith("SHARED PICTURES")]


def test_a_tenth_of_a_point_does_not_fill_a_picture(summary, there):
    alike = replace(summary, lines=[line for line in summary.lines if line.variant == "llava"])
    for name in ("samples", "parameters"):
        figure, _ = pictures(alike, there)[name]
        low, high = figure.axes[0].get_ylim()
        assert high - low >= 10


def test_variants_are_compared_across_llms_where_asked_for(there):
    grid = replace(there.grid, against=(Against("llavit", "tiny", "visual-qkv", "tiny"),))
    other = type(there)(grid, there.output, there.results, accept_code=True)
    gain = summarise(other).gains[-1]
    assert (gain.line.variant, gain.baseline.variant) == ("llavit", "visual-qkv")
    assert gain.gain.mean == pytest.approx(-0.2)
    assert gain_rows(summarise(other))[-1][:2] == ("llavit", "visual-qkv")


def test_settings_that_cannot_be_compared_are_said_to_be_unchecked(there, summary):
    assert not [note for note in summary.notes if note.startswith("UNCHECKED")]
    test = Path(there.grid.evaluation.test)
    moved = test.rename(test.with_suffix(".moved"))
    try:
        (note,) = [note for note in summarise(there).notes if note.startswith("UNCHECKED")]
    finally:
        moved.rename(test)
    assert "the settings of 7 cells" in note  # all that have a result


@pytest.fixture
def two_llms(tiny, tmp_path):
    """The same models under two names, of which the second trains on more samples."""
    grid = save_grid(tiny, tmp_path)
    text = grid.read_text()
    start = text.index("  tiny: {set:")
    line = text[start : text.index("\n", start) + 1]
    other = line.replace("tiny:", "other:", 1).replace("{set: [", "{set: [stages.pretrain.steps=5, ")
    assert other != line.replace("tiny:", "other:", 1)
    text = text.replace(line, line + other)
    grid.write_text(text.replace("seeds: [0, 1]}", "llms: [tiny, other]}"))
    opened = experiment(grid, tmp_path / "out", accept_code=True)
    for cell in opened.cells():
        samples = {"pretrain": {"samples": 20 if cell.llm == "other" else 8}, "instruct": {"samples": 8}}
        opened.results.write(cell, {**record(opened, cell), "data": samples})
    return opened


def test_llms_that_nobody_compares_may_train_on_other_samples(two_llms):
    summary = summarise(two_llms)
    assert [(gain.line.llm, gain.line.variant) for gain in summary.gains] == [
        ("tiny", "llavit"),
        ("other", "llavit"),
    ]


def test_a_comparison_across_llms_that_saw_other_samples_is_refused(two_llms):
    grid = replace(two_llms.grid, against=(Against("llavit", "tiny", "llava", "other"),))
    with pytest.raises(
        ValueError, match=r"other\.full\.llava\.0 and tiny\.full\.llavit\.0 do not see the same"
    ):
        summarise(type(two_llms)(grid, two_llms.output, two_llms.results, accept_code=True))


def test_results_of_another_decoder_from_scratch_are_not_taken_where_the_new_one_is_not_trained_yet(
    tiny, tmp_path
):
    def opened(steps):
        grid = save_grid(tiny, tmp_path, "corpus: {pretrain: 1, instruct: 1, val: 1, test: 1}\n")
        text = grid.read_text()
        start, end = text.index("llms:"), text.index("sizes:")
        llms = f"llms:\n  tiny: {{scratch: {{width: 32, steps: {steps}}}}}\n"
        grid.write_text(text[:start] + llms + text[end:])
        return experiment(grid, tmp_path / "out", accept_code=True)

    there = opened(3)
    there.material.data.mkdir(parents=True)
    for name, text in (("manifest", '{"complete": true}'), ("pretrain", "[]"), ("instruct", "[]")):
        (there.material.data / f"{name}.json").write_text(text)
    cell = there.cells()[0]
    there.results.write(cell, record(there, cell))
    assert there.find(cell).state == "done" and there.find(cell).checked
    found = opened(4).find(cell)
    assert found.state == "other settings" and "scratch " in " ".join(found.why)
