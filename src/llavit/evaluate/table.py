"""Results side by side: rows are tasks, families and their mean; columns are runs and their baselines.

One set of rows (`rows`) serves every form: Markdown, HTML, a terminal and a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llavit.evaluate.bench import FAMILIES
from llavit.evaluate.fingerprint import SERVED

NAMES = {
    "general": "general",
    "knowledge": "knowledge",
    "ocr_chart": "OCR and chart",
    "vision_centric": "vision-centric",
    "anchor": "anchors, outside the mean",
    "mean": "mean of the families",
}

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A score of one run, or None where the run has none.

    Attributes:
        score: as the result file has it; shown a hundredfold.
        low: lower end of the 95 % interval.
        high: upper end.
        failed: items without an answer, because of an error.
        unparsed: items out of whose text no answer could be read.
        items: of the task.
    """

    score: float
    low: float
    high: float
    failed: int = 0
    unparsed: int = 0
    items: int = 0

    def __str__(self) -> str:
        return f"{100 * self.score:.1f}"

    @property
    def margin(self) -> str:
        """The interval's ends, as in "61.0-72.3"."""
        return f"{100 * self.low:.1f}-{100 * self.high:.1f}"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        kind: a task, the mean of a family, or the mean of the families.
        name: of the task (its id), the family, or "mean".
        family: where it belongs; "" for the overall mean.
        metric: of a task, with its group; "" for means.
        chance: of a task; None for means.
        items: of a task; of means the number of tasks.
        cells: by (position of the run, "model" or baseline).
    """

    kind: Literal["task", "family", "mean"]
    name: str
    family: str
    metric: str
    chance: float | None
    items: int
    cells: Mapping[tuple[int, str], Cell]


def rows(results: Sequence[Result]) -> list[Row]:
    """Lay runs out in rows: the tasks of a family, its mean, and so on; then the mean of the families; then anchors.

    A task that one of the runs lacks has no cell there, and neither have the means that it belongs to: they would be
    over other tasks than those beside them. A task of another edition or version is another row.

    Args:
        results: of `read_result` or `evaluate`.

    Raises:
        ValueError: two runs have other items under one task id, or scored them in another way.

    Example:
        for row in rows([read_result("run.json")]):
            print(row.name, row.cells[0, "model"])
    """
    tasks: dict[str, Mapping[str, Any]] = {}
    for result in results:
        for key, task in result["tasks"].items():
            first = tasks.setdefault(key, task)
            for fact, what in (("fingerprint", "items"), ("metric", "scoring"), ("group", "groups")):
                if first[fact] != task[fact]:
                    raise ValueError(
                        f"task {key} has other {what} in {result['name']} than in an earlier run, and cannot stand in "
                        f"one row with it: {task[fact]} there, {first[fact]} before"
                    )
    found: list[Row] = []
    families = [*FAMILIES, *sorted({task["family"] for task in tasks.values()} - set(FAMILIES))]
    for family in families:
        members = sorted(key for key, task in tasks.items() if task["family"] == family)
        if not members:
            continue
        if family not in FAMILIES and not any(row.kind == "mean" for row in found):
            found += _overall(results)
        for key in members:
            task = tasks[key]
            metric = " ".join(part for part in (task["metric"], task["group"]) if part)
            cells = _cells([result["tasks"].get(key) for result in results])
            found.append(Row("task", key, family, metric, task["chance"], task["items"], cells))
        if family in FAMILIES:
            cells = _cells(
                [
                    result["families"][family] if result["tasks"].keys() >= set(members) else None
                    for result in results
                ]
            )
            found.append(Row("family", family, family, "", None, len(members), cells))
    if not any(row.kind == "mean" for row in found):
        found += _overall(results)
    return found


def lacking(results: Sequence[Result]) -> list[list[str]]:
    """Return for each run the tasks, anchors aside, that another of the runs has and it has not."""
    every = {key for result in results for key, task in result["tasks"].items() if task["family"] in FAMILIES}
    return [sorted(every - result["tasks"].keys()) for result in results]


def columns(results: Sequence[Result]) -> list[tuple[int, str]]:
    """Return what stands beside each other: each run, then its baselines."""
    return [
        (number, who)
        for number, result in enumerate(results)
        for who in ("model", *result["settings"]["baselines"])
    ]


def titles(results: Sequence[Result]) -> dict[tuple[int, str], str]:
    """Return the heading of each column; with several runs, baselines say whose they are."""
    names = run_names(results)
    alone = len(results) == 1
    return {
        (number, who): names[number] if who == "model" else who if alone else f"{names[number]}: {who}"
        for number, who in columns(results)
    }


def run_names(results: Sequence[Result]) -> list[str]:
    """Return a name for each run that tells it from the others.

    Example:
        >>> run_names([{"name": "a"}, {"name": "b"}, {"name": "a"}])
        ['a (1)', 'b', 'a (3)']
    """
    names = [str(result["name"]) for result in results]
    return [f"{name} ({place + 1})" if names.count(name) > 1 else name for place, name in enumerate(names)]


def markdown(results: Sequence[Result]) -> str:
    """Return the table in Markdown, with what was run beneath it.

    Example:
        print(markdown([read_result("run.json")]))
    """
    heads = titles(results)
    lines = [
        "| task | scored | items | chance | " + " | ".join(heads[key] for key in heads) + " |",
        "|---|---|---:|---:|" + "---:|" * len(heads),
    ]
    for row in rows(results):
        strong = "**" if row.kind != "task" else ""
        label = f"{NAMES.get(row.name, row.name)}{', mean' if row.kind == 'family' else ''}"
        chance = f"{100 * row.chance:.1f}" if row.chance is not None else ""
        items = f"{row.items:,}" if row.kind == "task" else ""
        cells = [_markdown_cell(row.cells.get(key), key[1], strong) for key in heads]
        lines.append(
            f"| {strong}{label}{strong} | {row.metric} | {items} | {chance} | " + " | ".join(cells) + " |"
        )
    return "\n".join([*lines, "", *notes(results)]) + "\n"


def notes(results: Sequence[Result]) -> list[str]:
    """Return what a reader of the table must know, a sentence or two each."""
    said = [
        "Scores in per cent, with 95 % bootstrap intervals over items (over groups, where items count only together; "
        "Clopper and Pearson's where all are right or all wrong); "
        "captions: CIDEr-D, 100 times that of COCO's code."
    ]
    used = {who for _, who in columns(results)}
    meaning = {
        "majority": "majority: always the task's most frequent answer",
        "blind": "blind: the same model without the pictures",
        "shuffled": "shuffled: each question with the picture of another item",
    }
    if baselines := [text for who, text in meaning.items() if who in used]:
        said.append(f"{'; '.join(baselines)[0].upper()}{'; '.join(baselines)[1:]}.")
    for name, result, lacks in zip(run_names(results), results, lacking(results), strict=True):
        settings, made = result["settings"], result["environment"]
        counts = {
            what: sum(task[what] for task in result["tasks"].values())
            for what in ("items", "failed", "unparsed")
        }
        limit = f", the first {settings['limit']} items of each task only" if settings["limit"] else ""
        model = settings["model"] if settings["model"].startswith(SERVED) else settings["model"][:12]
        on = made.get("gpu") or f"{made.get('cores')} cores"
        unfinished = "" if result["complete"] else " The run is not finished."
        said.append(
            f"{name}: {settings['mode']}{limit}, {settings['dtype']}, greedy; {counts['items']:,} items in "
            f"{result['seconds']:.0f} s on {on}, baselines included; {counts['failed']} failed, "
            f"{counts['unparsed']} unparsed (both score 0). Model {model}, llavit "
            f"{made.get('llavit')} at {made.get('git revision')}, torch {made.get('torch')}, transformers "
            f"{made.get('transformers')}.{unfinished}"
        )
        covered = result["mean"]["families"] if result["mean"] else []
        if lacks:
            said.append(
                f"{name} lacks {', '.join(lacks)}: its means that these belong to are left out, as they would be over "
                "other tasks than those beside them."
            )
        elif covered and list(covered) != list(FAMILIES):
            said.append(f"{name}: the mean is over {', '.join(NAMES[one] for one in covered)} only.")
        cuts = [
            f"{what} seen {100 * cut['seen']:.1f}, unseen {100 * cut['unseen']:.1f} ({cut['tasks']} tasks)"
            for what, cut in result["unseen"].items()
        ]
        if cuts:
            said.append(f"{name}, tasks that have both: {'; '.join(cuts)}.")
    return said


def _markdown_cell(cell: Cell | None, who: str, strong: str) -> str:
    if cell is None:
        return "-"
    if who != "model":
        return f"{strong}{cell}{strong}" + (f" ({cell.failed} failed)" if cell.failed else "")
    lost = [
        f"{count} {what}" for what, count in (("failed", cell.failed), ("unparsed", cell.unparsed)) if count
    ]
    return f"{strong}{cell}{strong} ({', '.join([cell.margin, *lost])})"


def _overall(results: Sequence[Result]) -> Iterator[Row]:
    if any(result["mean"] for result in results):
        count = max(result["mean"]["tasks"] for result in results if result["mean"])
        means = [
            None if lacks else result["mean"] for result, lacks in zip(results, lacking(results), strict=True)
        ]
        yield Row("mean", "mean", "", "", None, count, _cells(means))


def _cells(found: Sequence[Mapping[str, Any] | None]) -> dict[tuple[int, str], Cell]:
    cells = {}
    for number, task in enumerate(found):
        if task is None:
            continue
        for who, part in {"model": task, **task["baselines"]}.items():
            cells[number, who] = Cell(
                part["score"],
                part["low"],
                part["high"],
                part.get("failed", 0),
                part.get("unparsed", 0),
                task.get("items", 0),
            )
    return cells
