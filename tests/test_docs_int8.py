"""docs/int8.md: its tables are those of docs/benchmarks/int8.json."""

import json
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def memory_rows(found):
    """Rows of the table of bytes."""
    names = {"file": "file", "resident": "memory of the process, after an answer", "llm": "of that, the LLM"}
    for key, name in names.items():
        before, after = (found["bytes"][kind][key] for kind in ("bfloat16", "int8"))
        yield f"| {name} | {before / 1e6:.0f} MB | {after / 1e6:.0f} MB | {after / before:.2f} |"


def decoding_rows(found):
    """Rows of the table of times."""
    times = found["milliseconds_per_token"]
    for name in times["eager"]:
        yield f"| {name} | {times['eager'][name]:.1f} | {times['compiled'][name]:.1f} |"


def score_rows(found):
    """Rows of the table of scores."""
    for name, task in found["scores"]["tasks"].items():
        yield f"| {name} | {100 * task['bfloat16']:.1f} | {100 * task['int8']:.1f} |"
    mean = found["scores"]["mean"]
    yield f"| mean | {100 * mean['bfloat16']:.2f} | {100 * mean['int8']:.2f} |"


def answers_line(found):
    """What is said below the scores."""
    scores = found["scores"]
    return (
        f"{scores['tasks_of_the_benchmark']} tasks of the benchmark: {scores['points_lost']:.2f} points lost in the "
        f"mean. Of {scores['answers']:,} answers {scores['same']:,} are the same to the letter, {scores['better']} "
        f"score more, {scores['worse']} less."
    )


def test_the_tables_are_those_of_the_file_and_the_bounds_hold():
    found = json.loads((DOCS / "benchmarks/int8.json").read_text())
    text = (DOCS / "int8.md").read_text()
    for row in [*memory_rows(found), *decoding_rows(found), *score_rows(found), answers_line(found)]:
        assert row in text, row
    assert found["bytes"]["int8"]["llm"] < 0.51 * found["bytes"]["bfloat16"]["llm"]
    assert found["scores"]["points_lost"] <= 1
    for mode in ("eager", "compiled"):
        times = found["milliseconds_per_token"][mode]
        assert times["int8, kernel"] < 0.75 * times["bfloat16"]
