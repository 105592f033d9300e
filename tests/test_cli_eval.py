"""`llavit eval`, `llavit table` and `llavit bench show`."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from llavit.cli import app
from llavit.evaluate import load_task
from llavit.starter.bench.registry import TASKS
from tests.evaluate.small_bench import save_bench

runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return save_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def model_folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small-model"
    model, processor = tiny.build(dtype=torch.float32)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_eval_writes_the_result_and_prints_where_and_table_reads_it(model_folder, bench, tmp_path):
    output = tmp_path / "run.json"
    shown = run(
        "eval", model_folder, "--bench", bench, "--tasks", "short,pairs", "-o", output, "--dtype", "float32"
    )
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == f"{output}\n"
    assert "short@small-1" in shown.stderr and "vision-centric, mean" in shown.stderr
    result = json.loads(output.read_text())
    assert result["name"] == "small-model" and set(result["tasks"]) == {"short@small-1", "pairs@small-1"}
    again = run(
        "eval", model_folder, "--bench", bench, "--tasks", "short,forms", "-o", output, "--dtype", "float32"
    )
    assert again.exit_code == 0 and set(json.loads(output.read_text())["tasks"]) == {
        *result["tasks"],
        "forms@small-1",
    }

    table = run("table", output, "--html", tmp_path / "t.html", "--png", tmp_path / "t.png", "--markdown")
    assert table.exit_code == 0 and "| short@small-1 | exact | 8 |" in table.stdout
    assert (tmp_path / "t.html").is_file() and (tmp_path / "t.png").is_file()
    assert run("table", output).stdout in table.stdout

    page = run(
        "bench", "show", "short", "--bench", bench, "--html", tmp_path / "s.html", "--run", output, "-n", "3"
    )
    assert page.exit_code == 0 and "score of small-model" in (tmp_path / "s.html").read_text()


def test_the_result_lies_beside_the_model_if_nothing_is_said(model_folder, bench):
    shown = run(
        "eval", model_folder, "--bench", bench, "--tasks", "short", "--limit", "2", "--mode", "likelihood"
    )
    assert shown.stdout == f"{model_folder / 'eval-likelihood-first-2.json'}\n"
    settings = json.loads((model_folder / "eval-likelihood-first-2.json").read_text())["settings"]
    assert settings["limit"] == 2 and settings["mode"] == "likelihood"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "absent", "--bench", "BENCH"], "absent"),
        (["eval", "MODEL", "--bench", "BENCH", "--tasks", "mini-nothing"], "unknown tasks ['mini-nothing']"),
        (
            ["eval", "MODEL", "--bench", "BENCH", "--tasks", "short", "--baselines", "deaf"],
            "unknown baselines",
        ),
        (["eval", "MODEL", "--suite", "papers"], "papers"),
        (["eval", "MODEL", "--suite", "paper", "--mode", "likelihood"], "runs as lmms-eval does"),
        (["eval", "org/name", "--bench", "BENCH"], "say where the results go: --output"),
        (["table", "absent.json"], "no such result file: absent.json"),
        (["bench", "show", "absent", "--bench", "BENCH"], "no task in"),
    ],
)
def test_what_a_user_got_wrong_is_one_line_and_exit_code_2(
    model_folder, bench, arguments, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": model_folder, "BENCH": bench}
    shown = run(*(places.get(argument, argument) for argument in arguments))
    assert shown.exit_code == 2
    (line,) = (line for line in shown.stderr.splitlines() if line.startswith("error: "))
    assert message in line


def test_a_benchmark_that_is_not_there_is_built(model_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "easy-vqa", replace(TASKS["easy-vqa"], items=4))
    new, output = tmp_path / "new", tmp_path / "r.json"
    shown = run("eval", model_folder, "--bench", new, "--tasks", "easy-vqa", "-o", output)
    assert shown.exit_code == 0, shown.output
    assert f"building easy-vqa in {new}" in shown.stderr
    (task,) = json.loads(output.read_text())["tasks"].values()
    whole = run("eval", model_folder, "--bench", new, "--limit", "2", "-o", tmp_path / "all.json")
    assert f"{new} lacks mini-mme, " in whole.stderr and "easy-vqa," not in whole.stderr
    assert task["items"] == 4 and task["fingerprint"] == load_task(new / "easy-vqa").fingerprint
