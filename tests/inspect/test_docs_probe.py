"""docs/inspect.md, its sections on probes and drift: code and commands run, figures are those of the file."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("resvg_py", reason="of the extra `starter`, which a core install lacks")
pytest.importorskip("sklearn", reason="of the extra `inspect`, which a core install lacks")

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "inspect.md").read_text(encoding="utf-8")
SECTIONS = {"probe": "The LLM as a vision encoder", "drift": "Drift"}


def section(name: str) -> str:
    return PAGE.split(f"\n## {SECTIONS[name]}\n")[1].split("\n## ")[0]


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", section(name), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """A folder in which the paths of the page exist: tiny models, two pictures, a smaller corpus of the same kind."""
    from llavit.starter.corpus import build_corpus

    folder = tmp_path_factory.mktemp("docs")
    off = {"visual_qkv": False, "bidirectional_visual_attention": False}
    for path, switches in (("runs/demo/instruct", {}), ("runs/llava/instruct", off)):
        model, processor = tiny.build(dtype=torch.float32, **switches)
        model.save_pretrained(folder / path)
        processor.save_pretrained(folder / path)
    (folder / "runs/llm").symlink_to(tiny.llm)
    for name, colour in (("cat", "red"), ("dog", "blue")):
        Image.new("RGB", (20, 20), colour).save(folder / f"{name}.jpg")

    def smaller(out, *, val, test, **settings):
        return build_corpus(folder / out, val=val // 4, test=test // 16, workers=1, **settings)

    block = blocks("probe", "python")[0].replace("from llavit.starter.corpus import build_corpus\n", "")
    exec(compile(block, "inspect.md", "exec"), {"build_corpus": smaller})
    return folder


@pytest.mark.parametrize("name", SECTIONS)
def test_the_python_of_a_section_runs(name, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    code = blocks(name, "python")[-1].replace("0, 15, 30", "0, 1, 2")  # the tiny LLM has two layers
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
    (command,) = blocks(name, "bash")
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    written = {file.name for file in (place / "runs/inspect").iterdir()}
    promised = (
        {"probe.html", "probe.png", "probe-seen.png", "probe.json"} if name == "probe" else {"drift.html"}
    )
    assert promised <= written


def test_figures_of_the_probe_are_those_of_its_file():
    text, models = section("probe"), json.loads((DOCS / "inspect/probe.json").read_text())["models"]
    for result in models:
        (row,) = [line for line in text.splitlines() if f"`{result['model']}`" in line]
        linear = {place: s["linear"]["unseen style"][0] for place, s in result["scores"].items()}
        best = {}
        for part in ("tower", "LLM"):
            best[part] = max((p for p in linear if p.startswith(part)), key=linear.get)
        cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
        assert cells == [
            f"{100 * linear[best['tower']]:.1f} % ({best['tower']})",
            f"{100 * linear['LLM 0']:.1f} %",
            f"{100 * linear['LLM 30']:.1f} %",
            f"{100 * linear[best['LLM']]:.1f} % ({best['LLM']})",
        ]
        dense = [result["scores"][p]["dense"]["seen style"][0] for p in ("LLM 0", "LLM 30")]
        assert all(f"{100 * score:.1f} %" in text for score in dense)
    counts = models[0]["counts"]
    assert f"{counts['pictures to learn from']} pictures to learn from" in text
    assert f"{counts['pictures asked']['unseen style']} in an unseen style" in text
    assert f"({counts['pictures asked']['seen style']} in seen styles)" in text


def test_what_the_page_says_of_the_probe_is_so():
    llava, llavit = json.loads((DOCS / "inspect/probe.json").read_text())["models"]
    for measure in ("knn", "linear", "dense"):
        for group in ("seen style", "unseen style"):
            low = llavit["scores"]["LLM 30"][measure][group][1]
            high = llava["scores"]["LLM 30"][measure][group][2]
            assert low >= high if (measure, group) == ("linear", "seen style") else low > high
        tower = max(s[measure]["seen style"][0] for p, s in llavit["scores"].items() if p.startswith("tower"))
        for result in (llava, llavit):
            assert all(
                s[measure]["seen style"][0] < tower
                for p, s in result["scores"].items()
                if p.startswith("LLM")
            )
        best = [
            max(
                (s[measure]["unseen style"] for p, s in llavit["scores"].items() if p.startswith(part)),
                key=lambda score: score[0],
            )
            for part in ("tower", "LLM")
        ]
        assert best[0][1] < best[1][2] and best[1][1] < best[0][2]  # intervals overlap
