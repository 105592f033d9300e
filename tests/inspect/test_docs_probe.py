"""docs/inspect.md, its sections on probes and drift: code and commands run."""

import shlex

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.inspect.docs_page import blocks, save_models

pytest.importorskip("resvg_py", reason="of the extra `starter`, which a core install lacks")
pytest.importorskip("sklearn", reason="of the extra `inspect`, which a core install lacks")

SECTIONS = {"probe": "The LLM as a vision encoder", "drift": "Drift"}


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """A folder in which the paths of the page exist: tiny models, two pictures, a smaller corpus of the same kind."""
    from llavit.starter.corpus import build_corpus

    folder = tmp_path_factory.mktemp("docs")
    save_models(tiny, folder)
    (folder / "runs/llm").symlink_to(tiny.llm)
    for name, colour in (("cat", "red"), ("dog", "blue")):
        Image.new("RGB", (20, 20), colour).save(folder / f"{name}.jpg")

    def smaller(out, *, val, test, **settings):
        return build_corpus(folder / out, val=val // 4, test=test // 16, workers=1, **settings)

    block = blocks("python", SECTIONS["probe"])[0].replace(
        "from llavit.starter.corpus import build_corpus\n", ""
    )
    exec(compile(block, "inspect.md", "exec"), {"build_corpus": smaller})
    return folder


@pytest.mark.parametrize("name", SECTIONS)
def test_the_python_of_a_section_runs(name, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    code = blocks("python", SECTIONS[name])[-1].replace("0, 15, 30", "0, 1, 2")  # the tiny LLM has two layers
    exec(compile(code, "inspect.md", "exec"), {})
    printed = capsys.readouterr().out
    assert (
        "torch.Size([2, 2, 2, 32]) torch.Size([2, 32])" if name == "probe" else "visual to text"
    ) in printed
    page = {"probe": "pca.html", "drift": "drift.html"}[name]
    assert (place / "runs/inspect" / page).exists()


@pytest.mark.parametrize("name", SECTIONS)
def test_the_command_of_a_section_runs(name, place, monkeypatch):
    from llavit.cli import app

    monkeypatch.chdir(place)
    (command,) = blocks("bash", SECTIONS[name])
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    written = {file.name for file in (place / "runs/inspect").iterdir()}
    promised = (
        {"probe.html", "probe.png", "probe-seen.png", "probe.json"} if name == "probe" else {"drift.html"}
    )
    assert promised <= written
