"""docs/inspect.md, attention and knock-out: its Python runs, its commands run, its figures are those of its files."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from llavit.cli import app
from tests.evaluate.small_bench import save_bench

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "inspect.md").read_text(encoding="utf-8")
SECTIONS = {
    part.split("\n", 1)[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE) if part.strip()
}
MINE = ("Attention", "Knock-out")


def blocks(language: str) -> list[str]:
    text = "".join(SECTIONS[name] for name in MINE)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """A folder in which the page's paths are: two models, a picture, a corpus's questions, a benchmark."""
    folder = tmp_path_factory.mktemp("docs")
    switches = {"visual_qkv": False, "bidirectional_visual_attention": False}
    for name, options in (("llava", switches), ("demo", {})):
        for part in tiny.build(dtype=torch.float32, **options):
            part.save_pretrained(folder / "runs" / name / "instruct")
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


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_runs(number, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    exec(compile(on_tiny(blocks("python")[number]), "inspect.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "line", [line for block in blocks("bash") for line in block.splitlines() if line.startswith("llavit ")]
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


def test_pictures_are_there():
    for name in MINE:
        for file in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", SECTIONS[name]):
            assert (DOCS / file).is_file(), file
