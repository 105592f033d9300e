"""docs/from-llava.md: its recipe is valid and starts from a LLaVA, its figures are those of `llavit estimate`."""

import re
from pathlib import Path

import pytest

from llavit.sizing import serving_config, serving_size
from llavit.train import load_recipe
from llavit.train.estimate import estimate

PAGE = (Path(__file__).parents[1] / "docs/from-llava.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.split())


@pytest.fixture
def from_llava(tmp_path) -> Path:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "from-llava.yaml").write_text(block, encoding="utf-8")
    return tmp_path / "from-llava.yaml"


def test_the_recipe_starts_from_a_llava_and_may_stay_one(from_llava):
    recipe, seven = load_recipe(from_llava), load_recipe("llava15-llavit-vicuna-7b")
    assert recipe.model.checkpoint == "llava-1.5-7b" and recipe.model.visual_qkv
    assert recipe.stages[0].learning_rates.projector == 2e-5
    assert recipe.stages[1:] == seven.stages[1:] and recipe.parallel == "fsdp2"
    (changes,) = re.findall(r"`((?:--set \S+ ?)+)--output runs/from-llava-baseline`", WORDS)
    llava = load_recipe(from_llava, re.findall(r"--set (\S+)", changes))
    assert llava.model.switched_off == {"visual_qkv": False, "bidirectional_visual_attention": False}
    assert llava.stages == recipe.stages


def test_a_checkpoint_of_llavas_hub_format_trains_with_the_recipes_template(from_llava):
    lines = from_llava.read_text(encoding="utf-8").splitlines()
    from_llava.write_text("\n".join(line for line in lines if "chat_template" not in line), encoding="utf-8")
    template = load_recipe(from_llava, ["model.checkpoint=llava-hf/llava-1.5-7b-hf"]).model.chat_template
    assert template is not None and "eos_token" in template


def test_figures_are_those_of_the_estimate():
    pretrain, instruct = stages = estimate(load_recipe("llava15-llavit-vicuna-7b"), gpus=8)
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


def test_what_serving_takes_is_as_counted():
    size = serving_size(serving_config("llava15-llavit-vicuna-7b"))
    said = r"rows of `--max-length` \(([\d,]+)\) tokens, for Vicuna's (\d+) KiB a token ([\d.]+) GB at (\d+) rows"
    ((tokens, token, rows_take, rows),) = re.findall(said, WORDS)
    assert int(token) * 1024 == size.token
    assert rows_take == f"{int(rows) * int(tokens.replace(',', '')) * size.token / 1e9:.1f}"
    assert f"beside {size.weights / 1e9:.1f} GB of weights" in WORDS
    assert f"--max-batch {rows}" in PAGE
