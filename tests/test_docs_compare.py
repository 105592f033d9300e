"""docs/compare.md: its grid is valid, its Python runs, its commands, variants and keys are real."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llavit.cli import app
from llavit.compare.cells import cells_of
from llavit.compare.grid import load_grid
from llavit.compare.variants import SHIPPED, cell_recipe, variant_of
from tests.compare.parts import save_grid

TEXT = (Path(__file__).parents[1] / "docs/compare.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_the_grid_is_complete_and_its_cells_have_recipes(tmp_path):
    (grid_block,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(grid_block)
    grid = load_grid(tmp_path / "mine.yaml")
    cells = cells_of(grid)
    assert "smollm2.half.llavit.0" in [cell.name for cell in cells]
    for cell in cells:
        if not variant_of(grid, cell.variant).best_of:
            cell_recipe(grid, cell.variant, cell.llm, cell.size, cell.seed, data=tmp_path, llm_folder=None)


def test_the_variants_of_the_table_are_those_that_come_with_llavit():
    table = TEXT[TEXT.index("| variant | is |") : TEXT.index("A variant of your own")]
    named = set(re.findall(r"`([\w+-]+)`", "".join(line.split(" | ")[0] for line in table.splitlines())))
    assert named == {*SHIPPED, "llava-best-layer", "llava-layer-N"}


def test_the_commands_exist():
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["compare", "--help"]).output
    (commands,) = blocks("bash")
    options = set(re.findall(r"--[a-z-]+", commands)) | {"--keep-weights", "--accept-code", "--results"}
    assert {"--list", "--budget", "--only", "--report"} <= options
    assert all(option in shown for option in options)


def test_the_python_runs_and_a_cells_file_has_the_keys_of_the_table(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    grid = save_grid(tiny, tmp_path / "grid")
    grid.write_text(grid.read_text().replace("seeds: [0, 1]", "seeds: [0]"))
    (code,) = blocks("python")
    exec(compile(code.replace('"tiny")', f'"{grid}")'), "compare.md", "exec"), {})
    assert capsys.readouterr().out.startswith("llavit against llava Difference(mean=")
    (record, _) = [
        json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/compare/tiny/results/cells/*"))
    ]
    table = TEXT[TEXT.index("| key | is |") : TEXT.index("From Python:")]
    named = set(re.findall(r"`(\w+)`", "".join(line.split(" | ")[0] for line in table.splitlines())))
    assert named == record.keys() - {"format"}
    places = TEXT[TEXT.index("| in `runs/compare/NAME`") : TEXT.index("`--results results`")]
    for place in re.findall(r"`(results/[\w.]+|\w+\.(?:png|html))`", places):
        name = place if place.startswith("results/") else f"results/{place}"
        assert (tmp_path / "runs/compare/tiny" / name).exists()


@pytest.mark.slow
def test_the_tiny_grid_runs_from_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["compare", "tiny"])
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "runs/compare/tiny/results/summary.json").read_text())
    assert summary["comparisons"][0]["seeds"] == [0, 1] and not summary["not_run"]
    assert not re.search(r"/(home|tmp|root)/", json.dumps(summary))  # nothing of this machine is in it
