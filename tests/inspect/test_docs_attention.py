"""docs/inspect.md, attention and knock-out: its Python runs, its commands run."""

import json
import shlex
import shutil

import pytest
from typer.testing import CliRunner

from llavit.cli import app
from tests.evaluate.small_bench import save_bench
from tests.inspect.docs_page import blocks, save_models

MINE = ("Attention", "Knock-out")


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """A folder in which the page's paths are: two models, a picture, a corpus's questions, a benchmark."""
    folder = tmp_path_factory.mktemp("docs")
    save_models(tiny, folder)
    data = folder / "runs/demo/data"
    data.mkdir()
    shutil.copy(tiny.data.parent / "0.png", folder / "cat.jpg")
    shutil.copy(tiny.data.parent / "0.png", data / "0.png")
    rows = [
        {"id": f"{n}", "image": "0.png", "question": "What?", "answer": "cat", "task": task}
        for n, task in enumerate(["name", "name", "name", "count", "count"])
    ]
    (data / "test.json").write_text(json.dumps(rows))
    save_bench(folder / "runs/bench")
    return folder


def on_tiny(text: str) -> str:
    """The tiny model has two layers and four patches."""
    return (
        text.replace("0-9,10-19,20-29", "0,1").replace("10-20", "0-1").replace("--patch 2,3", "--patch 1,1")
    )


@pytest.mark.parametrize("number", range(len(blocks("python", *MINE))))
def test_python_runs(number, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    exec(compile(on_tiny(blocks("python", *MINE)[number]), "inspect.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "line",
    [line for block in blocks("bash", *MINE) for line in block.splitlines() if line.startswith("llavit ")],
)
def test_commands_run(line, place, monkeypatch):
    monkeypatch.chdir(place)
    shutil.rmtree(place / "runs/inspect", ignore_errors=True)
    small = ["--limit", "2", "--block", "visual_to_visual,visual_qkv"] if "knockout" in line else []
    if "attention" in line and "--answer" not in line:
        small = ["--answer", "A cat."]  # of its own, an untrained model says no words
    done = CliRunner().invoke(app, [*shlex.split(on_tiny(line))[1:], *small, "--dtype", "float32"])
    assert done.exit_code == 0, done.output
    assert list((place / "runs/inspect").glob("*.html"))
