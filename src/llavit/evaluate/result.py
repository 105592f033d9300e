"""Result files: what came out of a run, and everything that it depends on, in one JSON file.

The keys are described in README.md beside this file; `FORMAT` is raised when one of them means something else.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llavit.evaluate.asking import Answer
from llavit.evaluate.bench import FAMILIES, BenchTask
from llavit.evaluate.intervals import estimate, mean_estimate
from llavit.evaluate.judge import Mark, judge, points

logger = logging.getLogger(__name__)

FORMAT = 1

_PATIENCE = 30.0
"""Seconds to wait for another process that is writing the same file."""

Asked = Mapping[str, Sequence[Answer]]
"""Answers by what they were asked with: "model", and each baseline."""


def task_result(task: BenchTask, asked: Asked, **facts: Any) -> dict[str, Any]:
    """Return what a run states about one task.

    Args:
        task: the task.
        asked: answers to its items, of the model and of each baseline.
        **facts: further entries, plain values.

    Raises:
        ValueError: every answer of the model or of a baseline failed; gives the first reason.
    """
    for who, answers in asked.items():
        if all(answer.text is None for answer in answers):
            part = "" if who == "model" else f" of the baseline {who}"
            raise ValueError(
                f"task {task.id}: all {len(answers)} items{part} failed, the first with {answers[0].error}"
            )
    marks = {name: judge(task, [answer.text for answer in given]) for name, given in asked.items()}
    units = {name: points(task, of_one) for name, of_one in marks.items()}
    return {
        "family": task.family,
        "metric": task.metric,
        "group": task.group,
        "chance": task.chance,
        "about": task.about,
        "fingerprint": task.fingerprint,
        "items": len(task.items),
        "units": len(units["model"]),
        **estimate(units["model"], task.id).as_dict(),
        **_counts(marks["model"]),
        "more": _more(task, marks["model"]),
        "baselines": {
            name: {**estimate(values, task.id).as_dict(), **_counts(marks[name])}
            for name, values in units.items()
            if name != "model"
        },
        "unseen": _unseen(task, units["model"]),
        **facts,
        "points": {name: [round(value, 6) for value in values] for name, values in units.items()},
        "predictions": _predictions(task, asked, marks),
    }


def totals(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of each family and the mean of the families, with intervals, of the model and each baseline.

    The mean of a family is that of its tasks, and the overall mean that of the families; tasks of other families
    (anchors) are in neither.

    Args:
        tasks: results of `task_result`, by id.

    Returns:
        `families`, by name, and `mean`; `mean` is None where no task belongs to a family, and otherwise says of which
        families it is.
    """
    inside = {name: task for name, task in tasks.items() if task["family"] in FAMILIES}
    present = [family for family in FAMILIES if any(task["family"] == family for task in inside.values())]
    by_family = {
        family: {name: task for name, task in inside.items() if task["family"] == family}
        for family in present
    }
    families = {
        family: {"tasks": sorted(members), **_mean(members, dict.fromkeys(members, 1.0))}
        for family, members in by_family.items()
    }
    weights = {name: 1 / len(members) for members in by_family.values() for name in members}
    mean = {"families": present, "tasks": len(inside), **_mean(inside, weights)} if inside else None
    return {"families": families, "mean": mean, "unseen": _unseen_totals(inside)}


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no result file, or one of another format.

    Example:
        result = read_result("run.json")
        print(result["mean"]["score"])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such result file: {path}")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no result file: {error}") from error
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        found = result.get("format") if isinstance(result, dict) else type(result).__name__
        raise ValueError(f"{path} is no result file of this version: expected format {FORMAT}, got {found}")
    return result


def write_result(result: Mapping[str, Any], path: str | Path) -> None:
    """Write a result file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


@contextmanager
def one_writer(path: str | Path) -> Iterator[None]:
    """Let processes that bring one result file up to date do so one after the other, from reading it to writing it.

    Where no lock can be had, as on some file systems, this warns and goes on without.

    Args:
        path: of the result file; the lock file beside it is left there.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with one_writer(folder / "run.json"):
        ...     [path.name for path in folder.iterdir()]
        ['.run.json.lock']
    """
    from filelock import FileLock

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=_PATIENCE)
    except (OSError, NotImplementedError) as error:
        logger.warning("%s is written without a lock, which other runs on it could need: %s", path, error)
    try:
        yield
    finally:
        lock.release()


def without_predictions(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result without the answer to each item: small enough to keep beside the code, and tables still read it.

    Example:
        >>> without_predictions({"name": "a", "tasks": {"t": {"score": 0.5, "points": {}, "predictions": []}}})
        {'name': 'a', 'tasks': {'t': {'score': 0.5}}}
    """
    tasks = {
        name: {key: value for key, value in task.items() if key not in ("points", "predictions")}
        for name, task in result["tasks"].items()
    }
    return {**result, "tasks": tasks}


def require_same(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Check that a run that is to go on has the same model and settings.

    Args:
        found: `settings` of the file.
        wanted: those of the run.
        path: of the file, for the message.

    Raises:
        ValueError: names each setting that differs, with both values.
    """
    differs = [
        f"{key} ({found.get(key)!r} there, {wanted.get(key)!r} now)"
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key) != wanted.get(key)
    ]
    if differs:
        raise ValueError(
            f"{path} holds a run with other settings: {'; '.join(differs)}. Choose another --output, or delete it"
        )


def _counts(marks: Sequence[Mark]) -> dict[str, int]:
    counts = Counter(mark.status for mark in marks)
    return {"failed": counts["failed"], "unparsed": counts["unparsed"]}


def _more(task: BenchTask, marks: Sequence[Mark]) -> dict[str, float]:
    """Further scores: single items of a grouped task, yes-rate and F1 of yes, noun recall."""
    more: dict[str, float] = {}
    if task.group is not None:
        more["item_accuracy"] = sum(mark.score for mark in marks) / len(marks)
    if task.metric == "yes_no":
        said = [mark.read == "yes" for mark in marks]
        true = [item.answer.lower() == "yes" for item in task.items]
        both = sum(a and b for a, b in zip(said, true, strict=True))
        more["yes_rate"] = sum(said) / len(said)
        more["f1"] = 2 * both / (sum(said) + sum(true)) if sum(said) + sum(true) else 0.0
    for name in sorted({name for mark in marks for name in mark.more}):
        more[name] = sum(mark.more.get(name, 0.0) for mark in marks) / len(marks)
    return {name: round(value, 6) for name, value in more.items()}


def _unseen(task: BenchTask, values: Sequence[float]) -> dict[str, Any]:
    """The second cut: units that show what training never showed, against the rest; where a task has both."""
    found: dict[str, Any] = {}
    for what in ("concept", "style"):
        parts: dict[str, list[float]] = {"seen": [], "unseen": []}
        for unit, value in zip(task.units(), values, strict=True):
            new = any(what in task.items[position].unseen for position in unit)
            parts["unseen" if new else "seen"].append(value)
        if all(parts.values()):
            found[what] = {
                part: {"units": len(inside), **estimate(inside, f"{task.id} {what} {part}").as_dict()}
                for part, inside in parts.items()
            }
    return found


def _unseen_totals(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of the second cut over the tasks that have both of its parts."""
    found = {}
    for what in ("concept", "style"):
        both = [task["unseen"][what] for task in tasks.values() if what in task["unseen"]]
        if both:
            means = {part: sum(cut[part]["score"] for cut in both) / len(both) for part in ("seen", "unseen")}
            found[what] = {"tasks": len(both), **{part: round(mean, 6) for part, mean in means.items()}}
    return found


def _mean(tasks: Mapping[str, Mapping[str, Any]], weights: Mapping[str, float]) -> dict[str, Any]:
    def of(who: str) -> dict[str, float]:
        return mean_estimate({name: task["points"][who] for name, task in tasks.items()}, weights).as_dict()

    everywhere = [who for who in next(iter(tasks.values()))["points"] if who != "model"]
    baselines = {who: of(who) for who in everywhere if all(who in task["points"] for task in tasks.values())}
    return {**of("model"), "baselines": baselines}


def _predictions(task: BenchTask, asked: Asked, marks: Mapping[str, Sequence[Mark]]) -> list[dict[str, Any]]:
    rows = []
    for number, item in enumerate(task.items):
        row: dict[str, Any] = {"id": item.id, "answer": item.answer}
        for name, answers in asked.items():
            if name == "majority":
                continue
            answer, mark = answers[number], marks[name][number]
            said: dict[str, Any] = {"text": answer.text, "read": mark.read, "score": round(mark.score, 6)}
            if mark.status != "answered":
                said["status"] = mark.status
            if answer.error is not None:
                said["error"] = answer.error
            if answer.likelihoods is not None:
                said["likelihoods"] = [round(value, 4) for value in answer.likelihoods]
            said.update({key: round(value, 6) for key, value in mark.more.items()})
            row.update(said if name == "model" else {name: said})
        rows.append(row)
    return rows
