"""docs/: tables are those of the result files beside them."""

from pathlib import Path

from llavit.evaluate.result import read_result
from llavit.evaluate.table import markdown

DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_of_the_starter_benchmark_is_that_of_its_result_file():
    result = read_result(DOCS / "benchmarks/starter.json")
    assert markdown([result]) in (DOCS / "benchmarks/starter.md").read_text(encoding="utf-8")
    tasks = [name for name, task in result["tasks"].items() if task["family"] != "anchor"]
    assert len(tasks) == 16 and result["complete"]
