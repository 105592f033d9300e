"""docs/from-llava.md: recipes are valid and fit, figures are those of `llavit estimate`, paths those of the recipes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlavaConfig

from llavit.sizing import serving_config, serving_size
from llavit.train import load_recipe
from llavit.train.estimate import estimate
from llavit.train.model_config import model_config

PAGE = (Path(__file__).parents[1] / "docs/from-llava.md").read_text(encoding="utf-8").replace("\\\n", "")
WORDS = " ".join(PAGE.split())
BASE = "llava15-llavit-vicuna-7b"


@pytest.fixture
def from_llava(tmp_path, monkeypatch) -> str:
    """The page's recipe, and beside it the configuration of the checkpoint that it names."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("from-llava.yaml").write_text(block, encoding="utf-8")
    seven = model_config(load_recipe("llava15-llava-vicuna-7b").model)
    LlavaConfig(
        vision_config=seven.tower,
        text_config=seven.llm,
        image_token_index=seven.image_token_index,
        image_seq_length=seven.image_seq_length,
        vision_feature_layer=-2,
    ).save_pretrained("llava-1.5-7b")
    return "from-llava.yaml"


def test_the_recipe_from_a_checkpoint_has_the_second_stage_of_the_recipe_from_an_llm(from_llava):
    own, base = load_recipe(from_llava), load_recipe(BASE)
    wanted = replace(base.stages[1], micro_batch_size=own.stages[0].micro_batch_size)
    assert own.stages == (wanted,) and own.parallel == base.parallel == "fsdp2"
    assert own.model.checkpoint == "llava-1.5-7b" and not own.model.switched_off
    assert all(stage.data.image_folder in PAGE and stage.data.path in PAGE for stage in base.stages)


def test_every_recipe_of_a_command_is_valid_and_the_baseline_is_a_llava(from_llava):
    lines = re.findall(r"^torchrun .* -m llavit.cli train (\S+)(.*)$", PAGE, re.MULTILINE)
    assert len(lines) == 5
    recipes = [load_recipe(name, re.findall(r"--set (\S+)", options)) for name, options in lines]
    assert recipes[-1].model.switched_off == {"visual_qkv": False, "bidirectional_visual_attention": False}
    assert recipes[-1].stages == load_recipe(from_llava).stages


def test_what_is_estimated_fits(from_llava):
    said = r"^llavit estimate (\S+) --gpus (\d+) --memory (\d+)(.*)$"
    lines = re.findall(said, PAGE, re.MULTILINE)
    assert len(lines) == 5
    for name, gpus, memory, options in lines:
        recipe = load_recipe(name, re.findall(r"--set (\S+)", options))
        for stage in estimate(recipe, gpus=int(gpus)):
            assert stage.peak < int(memory) * 1e9, (name, options, stage.name, stage.peak)


def test_the_template_that_it_names_ends_answers():
    template = load_recipe(BASE).model.chat_template
    assert template is not None and "eos_token" in template and f"`{BASE}` as `model.chat_template`" in WORDS


def test_figures_are_those_of_the_estimate():
    recipe = load_recipe(BASE)
    pretrain, instruct = stages = estimate(recipe, gpus=8)
    total = sum(pretrain.memory.parameters.values())
    trains = [sum(stage.memory.trained.values()) for stage in stages]
    assert f"of {total / 1e6:,.1f} M | {trains[0] / 1e6:,.1f} M | {trains[1] / 1e6:,.1f} M |" in PAGE
    assert f"GB | {pretrain.peak / 1e9:.1f} | {instruct.peak / 1e9:.1f} |" in PAGE
    hours = [stage.hours(8, 312, 0.4) for stage in stages]
    assert f"| {hours[0]:.1f} | {hours[1]:.1f} |" in PAGE
    assert f"{4 * total / 1e9:.1f} GB, 8 times" in WORDS
    saved = 4 * total + 8 * trains[1]
    assert f"checkpoint of the second stage {saved / 1e9:.0f} GB" in WORDS
    assert f"first process gathers {saved / 1e9:.0f} GB" in WORDS
    assert 4 * total + 2 * saved < float(re.findall(r"have (\d+) GB free", WORDS)[0]) * 1e9
    for stage, found in zip(recipe.stages, stages, strict=True):
        assert f"each {stage.save_every} of {-(-found.samples // stage.batch_size):,}" in WORDS.replace(
            " steps", ""
        )


def test_what_serving_takes_is_as_counted():
    size = serving_size(serving_config(BASE))
    said = r"rows of `--max-length` \(([\d,]+)\) tokens: at Vicuna's (\d+) KiB a token ([\d.]+) GB for (\d+) rows"
    ((tokens, token, take, rows),) = re.findall(said, WORDS)
    assert int(token) * 1024 == size.token
    assert take == f"{int(rows) * int(tokens.replace(',', '')) * size.token / 1e9:.1f}"
    assert f"beside {size.weights / 1e9:.1f} GB of weights" in WORDS and f"--max-batch {rows}" in PAGE
