"""Builds the benchmark on disk: a folder per task with its items, pictures and fingerprint.

    Task + Gallery -> samples -> TASK/images/*.png, TASK/items.jsonl, TASK/task.json

A task is written beside its place and moved there when it is whole, so a folder is finished or not there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from PIL import Image

from llavit.starter.bench.registry import chosen
from llavit.starter.bench.task import Task
from llavit.starter.bench.watch import Watched
from llavit.starter.kit import Edition, Gallery, Split
from llavit.starter.manifest import one_build, require_same_settings
from llavit.starter.packages import packages
from llavit.starter.processes import lines_of_processes
from llavit.starter.sources import package_versions

FORMAT = 1
"""Raised when task.json or items.jsonl mean something else."""
_BOOT = "from llavit.starter.bench.build import work; work()"
_MIN_FOR_PROCESSES = 1_500  # below, a second process spends its time on drawings that the first one knows

Progress = Callable[[int, int], None]


def build_bench(
    folder: Path | str,
    tasks: str | Iterable[str] = "all",
    edition: Edition = "starter",
    items: int | None = None,
    seed: int = 0,
    split: Split = "test",
    progress: Progress | None = None,
    workers: int | None = None,
    gallery: Gallery | None = None,
) -> list[Path]:
    """Build tasks into a folder, or reuse those that are there with the same settings.

    The same arguments and packages give the same bytes. An interrupted build goes on with the first task that is
    not finished.

    Args:
        folder: of the benchmark; made if missing.
        tasks: "all", or names and families, separated by commas or as a list.
        edition: "starter" (PyPI packages only) or "full" (npm and Debian packages as well).
        items: questions per task instead of each task's own number, for a quick look; the rotations of one
            choice count as one question.
        seed: another seed gives other items.
        split: whose pictures and phrasings; "test" unless the makers are to be tried on training data.
        progress: called with (questions done, questions in all).
        workers: processes; None chooses by the size of the build and the number of cores.
        gallery: drawings to use instead of opening the edition's; the build then runs in this process.

    Returns:
        The folder of each task, in the order of the registry.

    Raises:
        ValueError: unknown tasks, bad numbers, or a folder that holds a task with other settings.
        ImportError: a package that the edition is made of is missing.
    """
    wanted = chosen(tasks)
    if items is not None and items < 1:
        raise ValueError(f"items={items}: a task needs at least one question")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: at least one process is needed")
    root = Path(folder)
    settings = {task.name: _settings(task, edition, items, seed, split) for task in wanted}

    def not_there() -> list[Task]:
        return [task for task in wanted if not _reusable(root / task.name, settings[task.name])]

    missing = not_there()
    with one_build(root) if missing else nullcontext():
        missing = not_there() if missing else []  # less, after another process that was waited for
        total = sum(task.numbers(items) for task in wanted)
        done = total - sum(task.numbers(items) for task in missing)
        if progress:
            progress(done, total)

        def advance(number: int) -> None:
            nonlocal done
            done += number
            if progress:
                progress(done, total)

        if workers is None:
            workers = 1 if total - done < _MIN_FOR_PROCESSES else min(os.cpu_count() or 1, 8)
        if missing and (gallery is not None or workers == 1 or len(missing) == 1):
            opened = gallery or open_edition(edition)
            for task in missing:
                _build(task, root, settings[task.name], opened, advance)
        elif missing:
            workers = min(workers, len(missing))
            orders = [
                {"root": str(root), "edition": edition, "tasks": {t.name: settings[t.name] for t in share}}
                for share in _shares(missing, workers, items)
            ]
            for line in lines_of_processes(_BOOT, orders, "the build of the benchmark"):
                advance(int(line))
    return [root / task.name for task in wanted]


def open_edition(edition: Edition) -> Gallery:
    """The drawings, fonts, words and tables of an edition."""
    from llavit.starter.gallery import open_gallery

    return open_gallery(edition)


def _settings(task: Task, edition: str, items: int | None, seed: int, split: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "id": task.identity(edition),
        "group": task.group,
        "items": task.items if items is None else items,
        "seed": seed,
        "split": split,
        "packages": _versions(edition),
    }


def _versions(edition: str) -> dict[str, str]:
    """Version of each package that the pictures of an edition come from."""
    added = {p.name: p.version for p in packages().values()} if edition == "full" else {}
    return {**package_versions(), **added}


def _shares(tasks: Sequence[Task], workers: int, items: int | None) -> list[list[Task]]:
    """Tasks dealt to workers: the largest first, each to the worker that has least to do."""
    shares: list[list[Task]] = [[] for _ in range(workers)]
    for task in sorted(tasks, key=lambda t: -t.numbers(items)):
        min(shares, key=lambda share: sum(t.numbers(items) for t in share)).append(task)
    return shares


def _reusable(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a task lies there, whole and with these settings.

    Raises:
        ValueError: it was built with other settings.
    """
    try:
        found = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        if folder.exists():
            raise ValueError(
                f"{folder} holds no task.json: build the benchmark in a folder of its own"
            ) from None
        return False
    require_same_settings(folder, found.get("settings", {}), settings)
    return fingerprint(folder) == found["fingerprint"]


def fingerprint(folder: Path) -> str:
    """SHA-256 over items.jsonl and the bytes of the pictures, in the order of their names; "" if a part is missing."""
    digest = hashlib.sha256()
    try:
        text = (folder / "items.jsonl").read_bytes()
        digest.update(text)
        for image in sorted({json.loads(line)["image"] for line in text.splitlines()}):
            digest.update(hashlib.sha256((folder / image).read_bytes()).digest())
    except FileNotFoundError:
        return ""
    return digest.hexdigest()


def _build(
    task: Task, root: Path, settings: dict[str, Any], gallery: Gallery, advance: Callable[[int], None]
) -> None:
    """Write one task, whole or not at all."""
    temporary = root / f".{task.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "images").mkdir(parents=True)
    watched = Watched(gallery)
    lines: list[str] = []
    try:
        for number in range(task.numbers(settings["items"])):
            samples = task.samples(watched, number, settings["split"], settings["seed"])
            for row, sample in task.rows(samples, number):
                path = temporary / row["image"]
                if not path.exists():
                    path.write_bytes(_png(sample.image))
                lines.append(json.dumps(row, ensure_ascii=False))
            if number % 20 == 19:
                advance(20)
        advance(task.numbers(settings["items"]) % 20)
        (temporary / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        about = {
            "id": task.identity(gallery.edition),
            "name": task.name,
            "edition": gallery.edition,
            "version": task.version,
            "family": task.family,
            "metric": task.metric,
            "group": task.group,
            "chance": task.chance,
            "max_new_tokens": task.max_new_tokens,
            "about": task.about,
            "optional": task.optional,
            "seed": settings["seed"],
            "items": len(lines),
            "fingerprint": fingerprint(temporary),
            "packages": settings["packages"],
            "sources": sorted(watched.seen),
            "settings": settings,
        }
        (temporary / "task.json").write_text(
            json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        shutil.rmtree(root / task.name, ignore_errors=True)  # only there if it was damaged
        os.replace(temporary, root / task.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.convert("RGB").save(stream, format="PNG")
    return stream.getvalue()


def work() -> None:
    """Body of a worker: an order on stdin, the number of questions just done per line on stdout."""
    import sys

    order = json.load(sys.stdin)
    gallery = open_edition(order["edition"])
    for task in chosen(list(order["tasks"])):
        _build(task, Path(order["root"]), order["tasks"][task.name], gallery, lambda n: print(n, flush=True))
