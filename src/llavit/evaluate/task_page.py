"""A task as a page for people: its items with pictures, answers and flags, and what a model said to them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from llavit.evaluate.bench import BenchTask
from llavit.evaluate.items import Item


def task_page(task: BenchTask, result: Mapping[str, Any] | None = None, count: int = 100) -> str:
    """Return a task as one HTML page that needs no other file.

    Args:
        task: of `load_task`.
        result: a run whose predictions are shown beside the answers.
        count: items shown, from the first; a group is shown whole.

    Raises:
        ValueError: the run has not done this task, had other items, or is a summary.

    Example:
        Path("mini-mme.html").write_text(task_page(load_task("runs/bench/mini-mme")))
    """
    said = _predictions(task, result)
    first = task.first(count)
    cards = [_card(item, said.get(item.id)) for item in first.items]
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2"]))
    return pages.get_template("task_page.html.j2").render(
        task=task,
        facts=_facts(task, result),
        shown=len(first.items),
        units=[[cards[position] for position in unit] for unit in first.units()],
    )


def _card(item: Item, said: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "item": item,
        "data": base64.b64encode(item.image.read_bytes()).decode() if item.image else None,
        "said": said,
        "truth": json.dumps(item.truth, ensure_ascii=False) if item.truth else None,
    }


def _facts(task: BenchTask, result: Mapping[str, Any] | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "family": task.family,
        "metric": task.metric,
        "counts together": {"pair": "both of a pair", "circular": "all turns of the options"}.get(
            task.group or "", "-"
        ),
        "chance": f"{100 * task.chance:.1f} %",
        "longest answer": f"{task.max_new_tokens} tokens",
        "fingerprint": task.fingerprint,
        "sources": ", ".join(map(str, task.made.get("sources", []))) or "-",
    }
    if result is not None:
        found = result["tasks"][task.id]
        baselines = "".join(f", {who} {100 * part['score']:.1f}" for who, part in found["baselines"].items())
        facts[f"score of {result['name']}"] = (
            f"{100 * found['score']:.1f} ({100 * found['low']:.1f}-{100 * found['high']:.1f}){baselines}; "
            f"{found['failed']} failed, {found['unparsed']} unparsed"
        )
    return facts


def _predictions(task: BenchTask, result: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    if result is None:
        return {}
    found = result["tasks"].get(task.id)
    if found is None:
        raise ValueError(f"the run {result['name']} has no task {task.id}, but {sorted(result['tasks'])}")
    if found["fingerprint"] != task.fingerprint:
        raise ValueError(f"the run {result['name']} had other items of {task.id} than these")
    if "predictions" not in found:
        raise ValueError(
            f"the run {result['name']} is a summary without single predictions; give the file of the run itself"
        )
    return {row["id"]: row for row in found["predictions"]}
