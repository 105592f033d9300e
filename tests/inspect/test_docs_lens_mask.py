"""docs/inspect.md, vocabulary lens and mask: its Python runs, its commands run."""

import json
import re
import shlex
import shutil

import pytest
from typer.testing import CliRunner

from llavit.cli import app
from tests.inspect.docs_page import SECTIONS, blocks, save_models

MINE = ("Vocabulary lens", "Mask")


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """A folder in which the page's paths are: two models, a picture, messages, a data set with its truth."""
    folder = tmp_path_factory.mktemp("docs")
    save_models(tiny, folder)
    data = folder / "runs/starter-data"
    data.mkdir()
    rows = []
    for number in (0, 1, 3):
        shutil.copy(tiny.data.parent / f"{number}.png", data)
        scene = {"objects": [{"name": "cat", "box": [0, 0, 12, 18]}]}
        rows.append(
            {"image": f"{number}.png", "scene": scene, "unseen_style": False, "unseen_concept": False}
        )
    (data / "test.json").write_text(json.dumps(rows))
    (data / "manifest.json").write_text("{}")
    shutil.copy(tiny.data.parent / "0.png", folder / "cat.jpg")
    content = [{"type": "image", "image": "cat.jpg"}, {"type": "text", "text": "What?"}]
    (folder / "messages.json").write_text(json.dumps([{"role": "user", "content": content}]))
    return folder


def in_tiny_words(code: str) -> str:
    """The tiny vocabulary has bytes and no words of letters."""
    return (
        re.sub(r"(vocabulary_lens|naming_shares)\((?=model)", r"\1(whole_words=False, model=", code)
        .replace("model=model, processor, ", "model=model, processor=processor, messages=")
        .replace("messages=read_truth", "shown=read_truth")
    )


@pytest.mark.parametrize("number", range(len(blocks("python", *MINE))))
def test_python_runs(number, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    code = in_tiny_words(blocks("python", *MINE)[number])
    exec(compile(code, "inspect.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("number", range(len(blocks("bash", *MINE))))
def test_commands_run(number, place, monkeypatch):
    monkeypatch.chdir(place)
    for line in blocks("bash", *MINE)[number].splitlines():
        if line.startswith("llavit ") and "docs/inspect" not in line:
            words = shlex.split(line)[1:]
            done = CliRunner().invoke(app, [*words, *(["--all-tokens"] if "lens" in words else [])])
            assert done.exit_code == 0, done.output
            assert list((place / "runs/inspect").glob("*.html"))


def test_the_drawing_is_that_of_a_prompt_with_two_images():
    from tests.inspect.test_attention import prompt_of
    from tests.inspect.test_mask import looked
    from tests.model.families import tiny

    (shown,) = blocks("text", *MINE)
    drawn = looked(tiny("llama"), prompt_of("llama")).drawing(width=0)
    assert [line.rstrip() for line in shown.splitlines()] == drawn.splitlines()


def test_the_sentences_on_a_sliding_window_are_those_that_are_said():
    from tests.inspect.test_attention import prompt_of
    from tests.inspect.test_mask import looked
    from tests.model.families import tiny

    said = " ".join(looked(tiny("gemma3"), prompt_of("gemma3")).sentences())
    quoted = re.search(r"one by one: \"(.*?)\"", " ".join(SECTIONS["Mask"].split()))
    assert quoted
    for piece in quoted[1].split(" [...] "):
        assert piece in said
