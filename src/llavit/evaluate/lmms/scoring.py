"""What the YAML of an exported task calls: lmms-eval generates, our judge scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from llavit.evaluate.bench import BenchTask
from llavit.evaluate.items import Item
from llavit.evaluate.judge import judge, points

Record = dict[str, Any]
_FIELDS = ("id", "question", "answer", "accepted", "options", "group", "bench")


def doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
    """Return the picture of an item as it is stored, or none: the processor makes it RGB, as in our own runner."""
    return [] if doc["image"] is None else [doc["image"]]


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Record]:
    """Keep an item with its answer; groups and captions can be judged only with all of them (see `score`)."""
    record = {**{key: doc[key] for key in _FIELDS}, "text": results[0]}
    return {"score": record, "unparsed": record}


def score(records: Sequence[Record]) -> float:
    """Return the score of a task, the mean over its units, as `llavit eval` gives it.

    Example:
        >>> bench = json.dumps({"id": "t@mine-1", "name": "t", "family": "general", "metric": "yes_no"})
        >>> item = {"question": "Is it?", "answer": "yes", "accepted": [], "options": [], "group": None}
        >>> said = enumerate(("Yes.", "no", "?", "yes"))
        >>> score([{**item, "bench": bench, "id": str(number), "text": text} for number, text in said])
        0.5
    """
    task, texts = _task(records)
    return fmean(points(task, judge(task, texts)))


def unparsed(records: Sequence[Record]) -> float:
    """Return the share of answers out of which none could be read."""
    task, texts = _task(records)
    return fmean(mark.status == "unparsed" for mark in judge(task, texts))


def _task(records: Sequence[Record]) -> tuple[BenchTask, list[str]]:
    about = json.loads(records[0]["bench"])
    items = tuple(
        Item(
            id=record["id"],
            image=None,
            question=record["question"],
            answer=record["answer"],
            task=about["name"],
            options=tuple(record["options"] or ()) or None,
            accepted=tuple(record["accepted"] or ()),
            group=record["group"],
        )
        for record in records
    )
    stated = {key: about[key] for key in ("id", "name", "family", "metric", "group") if key in about}
    return BenchTask(**stated, items=items), [record["text"] for record in records]
