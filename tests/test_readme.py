"""README: its Python runs, its recipe is valid, its commands and files exist, its figures come from the report."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", [0, 1], ids=["the engine", "transformers' pipeline"])
def test_asking_takes_a_few_lines_that_run(number, tiny, tmp_path, capsys):
    code = blocks("python")[number]
    model, processor = tiny.build(dtype=torch.float32)
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert len([line for line in code.splitlines() if line]) <= (3, 5)[number]
    code = code.replace("runs/demo/instruct", str(tmp_path))
    code = code.replace("cat.jpg", str(tiny.data.parent / "0.png"))
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out.endswith("\n")
    if "engine" in names:
        names["engine"].close()


def test_building_a_model_runs_on_the_starter(capsys):
    exec(compile(blocks("python")[2], "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_llava_block_runs_on_a_llava_checkpoint(tmp_path):
    from tests.model.test_conformance import LLAVA, llava_twin, tiny

    llava_twin(tiny("llama", **LLAVA, vision_feature_layer=-2)).save_pretrained(tmp_path)
    code = blocks("python")[3].replace("llava-hf/llava-1.5-7b-hf", str(tmp_path))
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["llavit"].config.visual_qkv and not names["llava"].config.visual_qkv


def test_the_recipe_is_valid(tmp_path):
    from llavit.train import load_recipe

    (tmp_path / "mine.yaml").write_text(blocks("yaml")[0])
    recipe = load_recipe(tmp_path / "mine.yaml", ["stages.0.steps=100"])
    assert [stage.name for stage in recipe.stages] == ["pretrain", "instruct"]


def test_the_recipe_fits_on_the_machine_that_the_estimate_asks_about(tmp_path):
    from llavit.train import load_recipe
    from llavit.train.estimate import estimate

    gpus, memory = re.findall(
        r"^llavit estimate mine.yaml --gpus (\d+) --memory (\d+)", README, re.MULTILINE
    )[0]
    (tmp_path / "mine.yaml").write_text(blocks("yaml")[0])
    for stage in estimate(load_recipe(tmp_path / "mine.yaml"), gpus=int(gpus)):
        assert stage.peak < int(memory) * 1e9, stage


def test_the_commands_exist():
    from typer.main import get_command

    from llavit.cli import app

    known = set(get_command(app).commands)
    named = {
        line.split()[1]
        for block in blocks("bash")
        for line in block.splitlines()
        if line.startswith("llavit ")
    }
    assert named and named <= known
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", "\n".join(blocks("bash")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_extras_exist():
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    installed = re.findall(
        r"^pip install -e '\.\[([\w,]+)\]' # extras; more: ([\w, ]+)$", README, re.MULTILINE
    )
    assert installed
    named = {*re.findall(r"extra `(\w+)`", README), *re.findall(r"\w+", " ".join(installed[0]))}
    assert named <= known, named - known


def test_every_linked_or_named_file_exists():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    named = re.findall(r"`((?:tests|src|docs)/[^`]+)`", README)
    for path in [*links, *named]:
        assert (ROOT / path).exists(), path


def test_the_demos_figures_are_those_of_its_report():
    report = json.loads((ROOT / "docs" / "demo" / "report.json").read_text())
    words = " ".join(README.split())
    for key in ("accuracy", "blind_accuracy", "majority_accuracy", "grey_accuracy"):
        assert f"{100 * report[key]:.0f} %" in words, (key, report[key])
    names = {"chart": "bars", "word": "words"}  # as README calls them
    for task, found in report["per_task"].items():
        assert f"{names.get(task, task)} {100 * found['accuracy']:.0f} %" in words, task
    took = f"took {report['seconds'] / 60:.0f} minutes and {report['peak_memory_gib']:.1f} GiB of memory"
    assert f"{took} on {report['made']['cores']} CPU cores" in words


def test_the_share_of_visual_qkv_is_as_counted():
    from llavit.sizing import serving_config, serving_size

    assert "a tenth of Llama-3.1-8B, a quarter of Vicuna-13B" in README
    for name, share in (("llama-3.1-8b", 0.10), ("vicuna-13b", 0.25)):
        parts = serving_size(serving_config(f"llava15-llavit-{name}")).parameters
        assert parts["visual_qkv"] / parts["llm"] == pytest.approx(share, abs=0.01), name


def test_importing_llavit_registers_the_auto_classes():
    code = (
        "import llavit, transformers as t;"
        "config = t.AutoConfig.for_model('llavit');"
        "assert type(config) is llavit.LlavitConfig"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
