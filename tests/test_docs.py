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
