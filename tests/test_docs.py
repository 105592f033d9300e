"""docs/: tables are those of the result files beside them, commands do what is said."""

import re
from dataclasses import replace
from pathlib import Path

from llavit.evaluate.result import read_result
from llavit.evaluate.table import markdown

DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_of_the_starter_benchmark_is_that_of_its_result_file():
    result = read_result(DOCS / "benchmarks/starter.json")
    assert markdown([result]) in (DOCS / "benchmarks/starter.md").read_text(encoding="utf-8")
    tasks = [name for name, task in result["tasks"].items() if task["family"] != "anchor"]
    assert len(tasks) == 16 and result["complete"]


def test_the_llava_beside_the_demo_differs_in_the_three_switches_only(tmp_path):
    from llavit.train import load_recipe

    page = (DOCS / "inspect.md").read_text(encoding="utf-8").replace("\\\n", "")
    (command,) = re.findall(r"^llavit train (runs/demo/recipe\.yaml .*)$", page, re.MULTILINE)
    changes = re.findall(r"--set (\S+)", command)
    (tmp_path / "recipe.yaml").write_text(
        load_recipe("demo").to_yaml(), encoding="utf-8"
    )  # as a run leaves it
    demo, llava = load_recipe("demo"), load_recipe(tmp_path / "recipe.yaml", changes)
    assert llava.stages == demo.stages and llava.seed == demo.seed
    off = {"visual_qkv": False, "bidirectional_visual_attention": False, "vision_feature_layer": -2}
    assert llava.model == replace(demo.model, **off)


def test_the_recipes_and_commands_of_the_way_from_llava_are_what_the_package_takes(tmp_path):
    from llavit.train import load_recipe

    page = (DOCS / "from-llava.md").read_text(encoding="utf-8").replace("\\\n", "")
    lines = re.findall(r"^(?:torchrun .* -m llavit.cli train|llavit estimate) (\S+)(.*)$", page, re.MULTILINE)
    assert len(lines) == 7
    for name, options in lines:
        load_recipe(name, re.findall(r"--set (\S+)", options))
    (recipe,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    own, base = load_recipe(tmp_path / "recipe.yaml"), load_recipe("llava15-llavit-vicuna-7b")
    wanted = replace(base.stages[1], micro_batch_size=own.stages[0].micro_batch_size)
    assert own.stages == (wanted,) and own.model.checkpoint == "llava-1.5-7b"
    assert all(stage.data.path in page and stage.data.image_folder in page for stage in base.stages)
