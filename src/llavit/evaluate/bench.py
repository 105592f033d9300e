"""A built benchmark on disk: what evaluation reads, whoever wrote it.

BENCH/TASK/task.json     what the task is: family, metric, chance, fingerprint, ...
BENCH/TASK/items.jsonl   one question a line
BENCH/TASK/images/       its pictures
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llavit.evaluate.items import Item, load_items
from llavit.evaluate.reading import LETTERS
from llavit.evaluate.score import normalise

FAMILIES = ("general", "knowledge", "ocr_chart", "vision_centric")
"""The families of which the mean is taken; tasks of any other ("anchor") stand beside it."""

METRICS = ("choice", "yes_no", "exact", "relaxed", "anls", "caption")
_GROUPS = (None, "pair", "circular")
_ROW = {"id", "image", "question", "answer"}


@dataclass(frozen=True)
class BenchTask:
    """One task of a benchmark, with its items.

    Attributes:
        id: "NAME@EDITION-VERSION": its name in every result. Another edition or version is another task.
        name: the part before the "@".
        family: one of `FAMILIES`, or "anchor".
        metric: one of `METRICS`; `llavit.evaluate.judge` says how each scores.
        group: None, "pair" or "circular": items that count only together.
        chance: the score of guessing, 0 to 1.
        max_new_tokens: greatest length of an answer.
        about: one sentence.
        fingerprint: sha256 over items and pictures; a run works it out where it is empty.
        items: the questions; `Item.task` is the task's name.
        folder: where it was read.
        made: everything else that task.json states.

    Example:
        >>> from llavit.evaluate.items import Item
        >>> item = Item("1", None, "Is fire hot?", "yes", "hot")
        >>> BenchTask("hot@mine-1", "hot", "general", "yes_no", items=(item,)).units()
        [[0]]
    """

    id: str
    name: str
    family: str
    metric: str
    group: str | None = None
    chance: float = 0.0
    max_new_tokens: int = 8
    about: str = ""
    fingerprint: str = ""
    items: tuple[Item, ...] = ()
    folder: Path | None = None
    made: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"task {self.id}: expected a metric out of {list(METRICS)}, got {self.metric!r}")
        if self.group not in _GROUPS:
            raise ValueError(f"task {self.id}: expected a group out of {list(_GROUPS)}, got {self.group!r}")
        if not self.items:
            raise ValueError(f"task {self.id}: expected items, got none")
        ids = [item.id for item in self.items]
        if len(set(ids)) != len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise ValueError(f"task {self.id}: item id {twice!r} occurs more than once")
        for item in self.items:
            self._require_answerable(item)

    def _require_answerable(self, item: Item) -> None:
        """Check that the metric can find an item right: else each answer to it would score 0, and nothing say why."""
        if self.metric == "choice":
            answer, expected = item.answer, list(LETTERS[: len(item.options or ())])
        elif self.metric == "yes_no":
            answer, expected = normalise(item.answer), ["yes", "no"]
        else:
            return
        if answer not in expected:
            raise ValueError(
                f"task {self.id}, item {item.id}: expected an answer to {self.metric} out of {expected}, got "
                f"{item.answer!r}" + (f" with options {item.options}" if self.metric == "choice" else "")
            )

    def units(self) -> list[list[int]]:
        """Return the positions of the items that count together, each a unit: single items, or groups."""
        if self.group is None:
            return [[position] for position in range(len(self.items))]
        units: dict[str, list[int]] = {}
        for position, item in enumerate(self.items):
            units.setdefault(item.group or f"item {item.id}", []).append(position)
        return list(units.values())

    def first(self, count: int) -> BenchTask:
        """Return the task with its first items only: at least `count` of them, so that no group is cut."""
        kept: list[int] = []
        for unit in self.units():
            if len(kept) >= count:
                break
            kept += unit
        return replace(self, items=tuple(self.items[position] for position in sorted(kept)))


def load_task(folder: str | Path, *, check: bool = True) -> BenchTask:
    """Read a task from its folder.

    Args:
        folder: with task.json, items.jsonl and images.
        check: compare the fingerprint with the files.

    Raises:
        FileNotFoundError: no task lies there.
        ValueError: a field is missing or unknown, or the files are not those that task.json was written for.

    Example:
        task = load_task("runs/bench/mini-mme")
        print(task.id, len(task.items))
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        text = (folder / "items.jsonl").read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no task in {folder}: {Path(error.filename).name} is missing") from None
    missing = {"id", "name", "family", "metric", "fingerprint"} - about.keys()
    if missing:
        raise ValueError(f"{folder / 'task.json'}: the fields {sorted(missing)} are missing")
    items = tuple(_items(text, folder, about["name"]))
    if check:
        found = bench_fingerprint(folder, text)
        if found != about["fingerprint"]:
            raise ValueError(
                f"{folder}: items or pictures are not those that task.json was written for (fingerprint "
                f"{about['fingerprint'][:12]} stated, {found[:12]} found). Delete the folder and build it again"
            )
    known = ("id", "name", "family", "metric", "group", "chance", "max_new_tokens", "about", "fingerprint")
    return BenchTask(
        **{key: about[key] for key in known if key in about},
        items=items,
        folder=folder,
        made={key: value for key, value in about.items() if key not in known},
    )


def load_bench(
    folder: str | Path, tasks: str | Iterable[str] = "all", *, check: bool = True
) -> list[BenchTask]:
    """Read tasks of a benchmark, family by family.

    Args:
        folder: with one folder for each task.
        tasks: "all", or names or families, as a list or with commas between; a task that states `optional` comes
            by its name only.
        check: see `load_task`.

    Raises:
        FileNotFoundError: there is no benchmark in the folder.
        ValueError: an unknown task; names those that are there. Or a bad task, see `load_task`.

    Example:
        tasks = load_bench("runs/bench", "mini-mme,mini-pope")
    """
    folder = Path(folder)
    stated = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*/task.json"))
        if not path.parent.name.startswith(".")
    }
    there = {name: about.get("family", "") for name, about in stated.items()}
    if not there:
        raise FileNotFoundError(f"no benchmark in {folder}: expected folders with a task.json")
    wanted = [name.strip() for name in tasks.split(",")] if isinstance(tasks, str) else list(tasks)
    unknown = [name for name in wanted if name != "all" and name not in there and name not in there.values()]
    if unknown or not wanted:
        raise ValueError(f"unknown tasks {unknown}: {folder} has {sorted(there)}, and their families")
    chosen = [
        name
        for name, family in there.items()
        if name in wanted or (not stated[name].get("optional") and {"all", family} & set(wanted))
    ]
    loaded = [load_task(folder / name, check=check) for name in chosen]
    rank = {family: number for number, family in enumerate(FAMILIES)}
    return sorted(loaded, key=lambda task: (rank.get(task.family, len(rank)), task.name))


def read_tasks(data: str | Path, tasks: str | Iterable[str] = "all") -> list[BenchTask]:
    """Read tasks of a benchmark, or the items of a corpus with each kind of question as a task and family of its own.

    Args:
        data: folder of a benchmark; or of a corpus, of which `test.json` is read; or such a file.
        tasks: of a benchmark, see `load_bench`; of items, "all" or kinds of questions.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: unknown tasks, or a bad file.

    Example:
        ```python
        tasks = read_tasks("runs/demo/data")  # place, colour, count, ...
        tasks = read_tasks("runs/bench", "vision_centric")
        ```
    """
    data = Path(data)
    file = data / "test.json" if data.is_dir() else data
    if not file.is_file():
        return load_bench(data, tasks)
    found = _kinds(load_items(file))
    wanted = [name.strip() for name in tasks.split(",")] if isinstance(tasks, str) else list(tasks)
    unknown = [name for name in wanted if name not in ("all", *(task.name for task in found))]
    if unknown or not wanted:
        raise ValueError(f"unknown tasks {unknown}: {file} has {sorted(task.name for task in found)}")
    return [task for task in found if "all" in wanted or task.name in wanted]


def _kinds(items: Iterable[Item]) -> list[BenchTask]:
    """Make a task of each kind of question, scored as the demo's test is: normalised, equal to the answer."""
    kinds: dict[str, list[Item]] = {}
    for item in items:
        kinds.setdefault(item.task, []).append(item)
    tasks = []
    for name, members in sorted(kinds.items()):
        digest = hashlib.sha256()
        for item in members:
            digest.update(json.dumps([item.id, item.question, item.answer]).encode())
            digest.update(item.image.read_bytes() if item.image else b"")
        stated = digest.hexdigest()
        tasks.append(
            BenchTask(f"{name}@items", name, name, "exact", fingerprint=stated, items=tuple(members))
        )
    return tasks


def bench_fingerprint(folder: Path, items: bytes) -> str:
    """Return the sha256 over items.jsonl and the pictures that it names, in the order of their names."""
    digest = hashlib.sha256(items)
    for image in sorted({name for line in items.splitlines() if (name := json.loads(line)["image"])}):
        try:
            digest.update(hashlib.sha256((folder / image).read_bytes()).digest())
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder / 'items.jsonl'} names a picture that is not there: {image}"
            ) from None
    return digest.hexdigest()


def items_fingerprint(task: BenchTask) -> str:
    """Return a sha256 over a task's items and their pictures: for one that was made in memory, and states none.

    Example:
        >>> task = BenchTask("t@mine-1", "t", "general", "exact", items=(Item("1", None, "?", "a", "t"),))
        >>> items_fingerprint(task)[:8]
        '921dad2f'
    """
    digest = hashlib.sha256()
    for item in task.items:
        stated = [item.id, item.question, item.answer, item.options, item.accepted, item.group, item.truth]
        digest.update(json.dumps(stated, default=str).encode())
        if (
            item.image is not None and item.image.is_file()
        ):  # one that is missing fails when it is asked about
            digest.update(hashlib.sha256(item.image.read_bytes()).digest())
    return digest.hexdigest()


def _items(text: bytes, folder: Path, task: str) -> Iterable[Item]:
    for number, line in enumerate(text.splitlines()):  # bytes: a U+2028 within a question ends no line
        row = json.loads(line)
        if missing := _ROW - row.keys():
            raise ValueError(
                f"{folder / 'items.jsonl'}: line {number + 1}: the fields {sorted(missing)} are missing"
            )
        yield Item(
            id=row["id"],
            image=folder / row["image"] if row["image"] else None,
            question=row["question"],
            answer=str(row["answer"]),
            task=task,
            options=tuple(row["options"]) if row.get("options") else None,
            unseen=frozenset(what for what in ("concept", "style") if row.get(f"unseen_{what}")),
            accepted=tuple(str(one) for one in row.get("accepted") or ()),
            group=row.get("group"),
            truth=row.get("truth"),
        )
