"""Draws items in one process or several; the workers are plain subprocesses, so a script needs no main guard."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llavit.starter.items import Factory, Item, render
from llavit.starter.processes import lines_of_processes
from llavit.starter.truth import truth_row

QUALITY = 95
_CHUNK = 100
_MIN_FOR_PROCESSES = 6_000  # below, a second process spends its time on drawings that the first one knows

_BOOT = "from llavit.starter.workshop import work; work()"

Records = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Job:
    """The first `count` items of one split."""

    factory: Factory
    count: int


def draw_all(
    root: Path, jobs: list[Job], workers: int | None, progress: Callable[[int, int], None] | None
) -> tuple[Records, Records, int]:
    """Draw what is missing and make all records, in order.

    Returns:
        The records of each split, the truth behind its pictures, and the number of pictures drawn.
    """
    total = sum(job.count for job in jobs)
    if workers is None:
        workers = 1 if total < _MIN_FOR_PROCESSES else min(os.cpu_count() or 1, 8)
    if workers < 1:
        raise ValueError(f"workers={workers}: at least one process is needed")
    for job in jobs:
        (root / "images" / job.factory.split).mkdir(parents=True, exist_ok=True)
    chunks = [
        (number, start, min(start + _CHUNK, job.count))
        for number, job in enumerate(jobs)
        for start in range(0, job.count, _CHUNK)
    ]
    factories = [job.factory for job in jobs]
    if workers == 1 or len(chunks) < 2:
        results = _here(root, factories, chunks)
    else:
        results = _in_processes(root, factories, chunks, min(workers, len(chunks)))
    parts: dict[tuple[int, int], tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    done = drawn = 0
    for number, start, records, truth, new in results:
        parts[number, start] = records, truth
        done, drawn = done + len(records), drawn + new
        if progress:
            progress(done, total)
    merged: Records = {job.factory.split: [] for job in jobs}
    truths: Records = {job.factory.split: [] for job in jobs}
    for number, start, _ in chunks:
        records, truth = parts[number, start]
        merged[jobs[number].factory.split] += records
        truths[jobs[number].factory.split] += truth
    return merged, truths, drawn


Chunk = tuple[int, int, int]
Result = tuple[int, int, list[dict[str, Any]], list[dict[str, Any]], int]


def _here(root: Path, factories: list[Factory], chunks: list[Chunk]) -> Iterator[Result]:
    for number, start, stop in chunks:
        items = [factories[number].item(index) for index in range(start, stop)]
        records = [item.record() for item in items]
        truth = [truth_row(item) for item in items]
        yield number, start, records, truth, sum(_draw(root, item) for item in items)


def _draw(root: Path, item: Item) -> bool:
    """Save the picture of an item if it is not there, whole or not at all."""
    path = root / item.image
    if path.exists():
        return False
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # subsampling=0 keeps thin coloured lines their colour
    render(item.scene).save(temporary, format="JPEG", quality=QUALITY, subsampling=0)
    os.replace(temporary, path)
    return True


def _in_processes(
    root: Path, factories: list[Factory], chunks: list[Chunk], workers: int
) -> Iterator[Result]:
    orders = [
        {
            "root": str(root),
            "factories": [asdict(factory) for factory in factories],
            "chunks": chunks[worker::workers],
        }
        for worker in range(workers)
    ]
    for line in lines_of_processes(_BOOT, orders, "the corpus build"):
        number, start, records, truth, new = json.loads(line)
        yield number, start, records, truth, new


def work() -> None:
    """Body of a worker: an order on stdin, one line of json per chunk on stdout."""
    order = json.load(sys.stdin)
    # Every field by its name: one that is left out here would be drawn otherwise than in a single process.
    factories = [
        Factory(**{**fields, "kinds": tuple((kind, share) for kind, share in fields["kinds"])})
        for fields in order["factories"]
    ]
    for result in _here(Path(order["root"]), factories, [tuple(c) for c in order["chunks"]]):
        print(json.dumps(result), flush=True)
