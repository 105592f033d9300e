"""`llavit compare`."""

import json

import pytest
from typer.testing import CliRunner

from llavit.cli import app
from tests.compare.parts import save_grid


def run(*arguments):
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, ["compare", *map(str, arguments)])


def test_it_lists_runs_reports_and_goes_on(tiny, tmp_path):
    grid, output = save_grid(tiny, tmp_path), tmp_path / "out"
    listed = run(grid, "-o", output, "--list")
    assert listed.exit_code == 0 and listed.stdout.count("not run") == 4 and "4 unknown" in listed.stdout

    done = run(grid, "-o", output, "--only", "*.0", "--results", tmp_path / "results")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path / 'results'}\n"
    assert json.loads((tmp_path / "results/summary.json").read_text())["comparisons"][0]["seeds"] == [0]

    listed = run(grid, "-o", output, "--list", "--results", tmp_path / "results").stdout
    assert listed.count("not run") == 2 and "2 done" in listed and "unknown" not in listed
    (tmp_path / "results/results.md").unlink()
    assert run(grid, "-o", output, "--report", "--results", tmp_path / "results").exit_code == 0
    assert (tmp_path / "results/results.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tinny"], "did you mean `tiny`"),
        (["GRID", "--only", "big"], "--only big: no such cell; there are tiny.full.llava.0"),
        (
            ["GRID", "--report", "--only", "llavit"],
            "--report writes of all cells and runs nothing: leave out --only",
        ),
        (["GRID", "--list", "--budget", "3"], "--list runs nothing: leave out --budget"),
        (["GRID", "--list", "--report"], "say one of them"),
    ],
)
def test_what_a_user_got_wrong_is_one_line_and_exit_code_2(tiny, tmp_path, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"GRID": save_grid(tiny, tmp_path)}
    done = run(*(places.get(one, one) for one in arguments))
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.output
