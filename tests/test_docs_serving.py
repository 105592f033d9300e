"""docs/serving-*.md: figures are those of the result files, and pages that are linked to exist."""

import json
import re
from pathlib import Path

from benchmarks.speed import report

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = report.RESULTS / "epyc-2-cores"
PAGE = DOCS / "serving-at-scale.md"


def test_the_table_of_the_servers_is_that_of_its_results():
    assert report.between_marks(PAGE) == report.table(RESULTS) == (RESULTS / "latest.md").read_text("utf-8")
    entries, details = report.read(RESULTS)
    assert {"serve16", "serve16_first", "serve16_next", "vllm_over_llava"} == set(entries)
    made = details["groups"]["serving"]["made"]
    facts = details["rows"]["serve16"]
    words = " ".join(PAGE.read_text("utf-8").split())
    for told in (
        made["processor"],
        f"{made['settings']['threads']} thread",
        f"{facts['tokens']} tokens",
        facts["dtype"],
        f"vLLM {facts['vllm']['vllm']}",
    ):
        assert told in words, told
    assert ("nothing compiled" in words) == facts["eager"]


def test_the_score_through_vllm_is_that_of_its_result():
    found = json.loads((DOCS / "serving/vllm-score.json").read_text("utf-8"))
    assert found["alike"] == found["questions"] and not found["differences"]
    words = " ".join(PAGE.read_text("utf-8").split())
    assert f"{found['alike']} of {found['questions']} answers alike" in words
    assert f"{found['different_texts']} different texts" in words
    here, there = ([task[side] for task in found["tasks"].values()] for side in ("here", "there"))
    assert here == there


def test_linked_pages_exist():
    for page in (PAGE, DOCS / "serving.md", DOCS / "serving-sizes.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
            assert (DOCS / link).exists(), f"{page.name}: {link}"
