"""Questions for cells, and what is kept of their answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from llavit.compare.grid import Evaluation
from llavit.evaluate import BenchTask, evaluate, load_bench, load_items
from llavit.evaluate.bench import FAMILIES
from llavit.loading import load_model

FAMILY_OF_KIND = {
    "name": "general",
    "category": "general",
    "colour": "general",
    "exist": "general",
    "easyvqa": "general",
    "place": "vision_centric",
    "size": "vision_centric",
    "count": "vision_centric",
    "relation": "vision_centric",
    "word": "ocr_chart",
    "chart": "ocr_chart",
}
"""Families of the starter corpus' kinds of question; a kind of another file counts as general."""


def tasks_of(evaluation: Evaluation, which: Literal["test", "val"]) -> list[BenchTask]:
    """Read what cells are scored on.

    Args:
        evaluation: the grid's.
        which: part of it.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: bad or damaged items.
    """
    source = Path(evaluation.test if which == "test" else evaluation.val)
    if evaluation.tasks != "all" and all(Path(one).is_file() for one in (evaluation.test, evaluation.val)):
        raise ValueError(
            f"evaluation.tasks: chooses among those of a benchmark's folder, got {evaluation.tasks!r} and files only: "
            f"{evaluation.test}, {evaluation.val}; leave it out, or leave the other questions out of the files"
        )
    tasks = _tasks(source, evaluation.tasks, _stamp(source))
    if not any(task.family in FAMILIES for task in tasks):
        raise ValueError(f"{source}: expected at least one task of the families {', '.join(FAMILIES)}")
    return [task if evaluation.limit is None else task.first(evaluation.limit) for task in tasks]


def _stamp(source: Path) -> int:
    return source.stat().st_mtime_ns if source.exists() else 0


@lru_cache(maxsize=8)
def _tasks(source: Path, tasks: str, stamp: int) -> tuple[BenchTask, ...]:
    if source.is_dir():
        return tuple(load_bench(source, tasks))
    if not source.is_file():
        raise FileNotFoundError(f"no such questions: {source}; expected a benchmark's folder or a JSON file")
    return tuple(tasks_of_file(source))


def tasks_of_file(path: str | Path) -> list[BenchTask]:
    """Read a JSON file of questions, like the starter's `test.json`, as tasks: one for each kind of question.

    Answers are compared after normalisation; families are those of `FAMILY_OF_KIND`.

    Raises:
        ValueError: a record lacks a field, or its picture is missing.
    """
    path = Path(path)
    items = load_items(path)
    found = []
    for kind in sorted({item.task for item in items}):
        members = tuple(item for item in items if item.task == kind)
        answers = [" ".join(item.answer.lower().split()) for item in members]
        frequent = max(answers.count(answer) for answer in set(answers)) / len(answers)
        found.append(
            BenchTask(
                id=f"{kind}@{path.stem}",
                name=kind,
                family=FAMILY_OF_KIND.get(kind, "general"),
                metric="exact",
                chance=round(frequent, 6),
                about=f"Questions of kind {kind} in {path.name}; chance is that of the most frequent answer.",
                fingerprint=_fingerprint(members),
                items=members,
            )
        )
    return found


def _fingerprint(items: Sequence[Any]) -> str:
    found = hashlib.sha256()
    for item in items:
        found.update(json.dumps([item.id, item.question, item.answer, item.options]).encode())
        if item.image is not None:
            if not item.image.is_file():
                raise ValueError(f"item {item.id}: its picture is not there: {item.image}")
            found.update(hashlib.sha256(item.image.read_bytes()).digest())
    return found.hexdigest()


def score(
    folder: Path,
    evaluation: Evaluation,
    which: Literal["test", "val"],
    *,
    dtype: str,
    output: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Score a model's folder, going on with what lies at `output`.

    Args:
        folder: model and processor.
        evaluation: the grid's.
        which: val is asked without baselines.
        dtype: to compute in, as in a recipe.
        output: where the answers go.
        progress: of `evaluate`.

    Returns:
        `brief` of the result.
    """
    model, processor = load_model(folder, dtype=dtype)
    result = evaluate(
        model,
        processor,
        [replace(task) for task in tasks_of(evaluation, which)],
        mode=evaluation.mode,
        baselines=evaluation.baselines if which == "test" else (),
        batch_size=evaluation.batch_size,
        output=output,
        name=output.stem,
        progress=progress,
    )
    return brief(result)


def brief(result: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of a result what comparisons need: scores, and the points of each unit; not the texts, but their hash.

    Returns:
        `score` (mean of the families, 0 to 1), `families`, `baselines` and `tasks`; `answers` is the sha256 over all
        answers as they were written.
    """
    tasks = result["tasks"]
    texts = [[row["text"] for row in task["predictions"]] for task in tasks.values()]
    mean = result["mean"]
    return {
        "score": mean["score"] if mean else None,
        "baselines": {who: part["score"] for who, part in mean["baselines"].items()} if mean else {},
        "families": {name: part["score"] for name, part in result["families"].items()},
        "answers": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "seconds": result["seconds"],
        "tasks": {
            key: {
                "family": task["family"],
                "metric": task["metric"],
                "chance": task["chance"],
                "items": task["items"],
                "score": task["score"],
                "failed": task["failed"],
                "unparsed": task["unparsed"],
                "baselines": {who: part["score"] for who, part in task["baselines"].items()},
                "points": task["points"]["model"],
            }
            for key, task in tasks.items()
        },
    }
