"""Records of cells to comparisons: scores of each variant, gains over baselines, and what was not run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llavit.compare.cells import Cell
from llavit.compare.grid import Evaluation
from llavit.compare.identity import require_same_order
from llavit.compare.paired import Difference, difference, over_seeds
from llavit.compare.scoring import tasks_of
from llavit.evaluate.bench import FAMILIES

if TYPE_CHECKING:
    from llavit.compare.run import Experiment

Record = Mapping[str, Any]
SUMMARY_FORMAT = 1


@dataclass(frozen=True)
class Line:
    """One variant on one LLM at one size: the records of its seeds that are done and tested.

    Attributes:
        variant: its name.
        llm: the LLM's name.
        size: the size's name.
        records: by seed.
    """

    variant: str
    llm: str
    size: str
    records: dict[int, Record]

    @property
    def mean(self) -> Difference:
        """Mean of the families over seeds."""
        return over_seeds([record["test"]["score"] for record in self.records.values()])

    def of_family(self, family: str) -> Difference:
        """Mean of a family over seeds."""
        return over_seeds([record["test"]["families"][family] for record in self.records.values()])

    def of_task(self, task: str) -> Difference:
        """Mean of a task over seeds."""
        return over_seeds([record["test"]["tasks"][task]["score"] for record in self.records.values()])

    @property
    def parameters(self) -> tuple[int, int]:
        """All parameters, and those that train in the last stage."""
        last = list(next(iter(self.records.values()))["parameters"].values())[-1]
        return last["total"], sum(last["trained"].values())

    @property
    def first(self) -> Record:
        """The record of the first seed."""
        return next(iter(self.records.values()))


@dataclass(frozen=True)
class Gain:
    """A variant against a baseline, over the seeds that both have.

    Attributes:
        line: the variant's.
        baseline: the other's.
        seeds: that both have.
        mean: of the variant, over these seeds.
        baseline_mean: of the baseline.
        gain: the paired difference of the means of the families.
        families: the same for each family.
        tasks: the same for each task.
        of_seeds: the gain of each seed alone; its interval covers the questions only.
    """

    line: Line
    baseline: Line
    seeds: tuple[int, ...]
    mean: float
    baseline_mean: float
    gain: Difference
    families: dict[str, Difference]
    tasks: dict[str, Difference]
    of_seeds: dict[int, Difference]


@dataclass(frozen=True)
class Summary:
    """All that reports show.

    Attributes:
        lines: variants with at least one tested seed, in the order of the grid.
        gains: comparisons with baselines.
        val_only: cells that were for tuning or a choice, with their score on val.
        not_run: cells without a result, with the reason.
        failed: cells whose training broke down, with the message.
        left_out: those not run that do have a result, by other code or with other settings.
        notes: what a reader must know about how the results were made.
    """

    lines: list[Line]
    gains: list[Gain]
    val_only: list[tuple[str, float]]
    not_run: list[tuple[str, str]]
    failed: list[tuple[str, str]]
    left_out: list[str]
    notes: list[str]

    def line(self, variant: str, llm: str, size: str) -> Line | None:
        """Find a line."""
        wanted = (variant, llm, size)
        return next((one for one in self.lines if (one.variant, one.llm, one.size) == wanted), None)


def summarise(experiment: Experiment) -> Summary:
    """Gather the results of an experiment.

    Results of other settings, and of other code unless that was accepted, are listed as not run.

    Raises:
        ValueError: cells that stand beside each other saw other samples, or another order of them.
    """
    grouped: dict[tuple[str, str, str], dict[int, Record]] = {}
    val_only: list[tuple[str, float]] = []
    not_run: list[tuple[str, str]] = []
    failed: list[tuple[str, str]] = []
    left_out: list[str] = []
    used: list[Record] = []
    unchecked = 0
    for cell in experiment.cells():
        found = experiment.find(cell)
        if found.state != "done" or found.record is None:
            reasons = "; ".join(found.why) or experiment.obstacle(cell)
            why = f"{found.state}: {reasons}" if reasons else found.state
            not_run.append((cell.name, why))
            left_out += [cell.name] * (found.record is not None)
            continue
        used.append(found.record)
        unchecked += not found.checked
        if found.record.get("failed"):
            failed.append((cell.name, found.record["failed"]))
        elif cell.test:
            grouped.setdefault((cell.llm, cell.size, cell.variant), {})[cell.seed] = found.record
        else:
            val_only.append((cell.name, found.record["val"]["score"]))
    lines = [Line(variant, llm, size, records) for (llm, size, variant), records in grouped.items()]
    for key in dict.fromkeys((line.llm, line.size) for line in lines):
        _require_same_samples(line for line in lines if (line.llm, line.size) == key)
    notes = _notes(experiment, used, unchecked)
    if left_out:
        notes.insert(
            0,
            f"LEFT OUT: {len(left_out)} cells have a result that is in no table and no picture, as other code made it "
            "or other settings; they are named under what was not run. --accept-code takes those of other code.",
        )
    summary = Summary(lines, [], val_only, not_run, failed, left_out, notes)
    alone: dict[str, list[str]] = {}  # by a baseline, the variants that have no seed in common with it
    for line in lines:
        for name in experiment.grid.baselines:
            if name != line.variant and not _compare(summary, line, name, line.llm):
                alone.setdefault(f"{name} on {line.llm}, {line.size}", []).append(line.variant)
    for one in experiment.grid.against:
        for size in experiment.grid.sizes:
            ours = summary.line(one.variant, one.llm, size)
            if ours is not None and not _compare(summary, ours, one.baseline, one.baseline_llm):
                alone.setdefault(f"{one.baseline} on {one.baseline_llm}, {size}", []).append(
                    f"{one.variant} on {one.llm}"
                )
    for baseline, variants in alone.items():
        notes.append(
            f"NOT COMPARED with {baseline}, for want of a seed that both have: {', '.join(variants)}."
        )
    return summary


def as_json(summary: Summary, experiment: Experiment) -> dict[str, Any]:
    """Give a summary as plain values for `summary.json`; scores are from 0 to 1."""
    return {
        "format": SUMMARY_FORMAT,
        "grid": experiment.grid.name,
        "about": experiment.grid.about,
        "comparisons": [_gain_json(gain) for gain in summary.gains],
        "variants": [_line_json(line) for line in summary.lines],
        "val_only": [{"cell": name, "val": round(score, 6)} for name, score in summary.val_only],
        "not_run": [{"cell": name, "why": why} for name, why in summary.not_run],
        "failed": [{"cell": name, "why": why} for name, why in summary.failed],
        "notes": summary.notes,
    }


def tested_families(lines: Iterable[Line]) -> dict[str, str]:
    """Give the family of each task of a test, in the order of the families; anchors are left out."""
    tasks = {key: task["family"] for line in lines for key, task in line.first["test"]["tasks"].items()}
    return {key: family for name in FAMILIES for key, family in sorted(tasks.items()) if family == name}


def _compare(summary: Summary, line: Line, baseline: str, llm: str) -> bool:
    """Add the gain over a baseline at the same size; False where there is no seed of both."""
    other = summary.line(baseline, llm, line.size)
    seeds = tuple(seed for seed in line.records if other is not None and seed in other.records)
    if other is None or not seeds:
        return False
    _require_same_samples([line, other])
    families = tested_families([line])

    def points(one: Line) -> list[dict[str, list[float]]]:
        return [
            {key: task["points"] for key, task in one.records[seed]["test"]["tasks"].items()}
            for seed in seeds
        ]

    ours, theirs = points(line), points(other)

    def mean(one: Line) -> float:
        return sum(one.records[seed]["test"]["score"] for seed in seeds) / len(seeds)

    summary.gains.append(
        Gain(
            line,
            other,
            seeds,
            mean(line),
            mean(other),
            difference(ours, theirs, families),
            {
                name: difference(ours, theirs, {t: f for t, f in families.items() if f == name})
                for name in dict.fromkeys(families.values())
            },
            {task: difference(ours, theirs, {task: family}) for task, family in families.items()},
            {
                seed: difference([mine], [its], families)
                for seed, mine, its in zip(seeds, ours, theirs, strict=True)
            },
        )
    )
    return True


def _require_same_samples(lines: Iterable[Line]) -> None:
    """Check that variants saw the same samples of a seed in the same order.

    Lines of one LLM and size must agree, and so must the two of a comparison across LLMs. LLMs that nobody compares may
    differ: a small one from scratch takes steps of its own.
    """
    require_same_order(
        (Cell(line.variant, line.llm, line.size, seed), record["data"])
        for line in lines
        for seed, record in line.records.items()
    )


def _notes(experiment: Experiment, used: Sequence[Record], unchecked: int) -> list[str]:
    """Say what was asked and what the results were made with; every difference between cells is named."""
    evaluation = experiment.grid.evaluation
    limit = f", the first {evaluation.limit} questions of each task" if evaluation.limit else ""
    said = [
        f"Test: {evaluation.test}{limit}; {evaluation.mode}, greedy. Choices and curves: {evaluation.val}. Scores "
        "are the mean of the families in per cent; the interval beside a mean is over seeds (95 %, Student's t).",
        "Gains are paired over questions and seeds; their 95 % interval and p cover both "
        "(src/llavit/compare/paired.py), with one seed the questions only: it says nothing about other seeds. They are "
        "not corrected for the number of comparisons: of 20 without a difference, one has p < 0.05.",
        "All variants of a seed see the same samples in the same order, and start from the same tower and LLM; from "
        "the same projector too where it reads as many tower layers and is as wide.",
    ]
    if shared := _sharing_a_picture(evaluation):
        said.append(
            f"SHARED PICTURES: {shared[0]} of {shared[1]} test questions are about a picture of another one. Intervals "
            "and p take questions as independent, so they claim somewhat too much."
        )
    for record in used:
        where = record["cell"]
        lost = sum(
            task["failed"]
            for part in ("test", "val")
            if record[part]
            for task in record[part]["tasks"].values()
        )
        if lost:
            name = f"{where['llm']}.{where['size']}.{where['variant']}.{where['seed']}"
            said.append(f"FAILED ANSWERS: {lost} questions to {name} ended in an error and count as wrong.")
    if unchecked:
        said.append(
            f"UNCHECKED: the settings of {unchecked} cells could not be compared with the grid, as data or weights are "
            "not there."
        )
    revisions: dict[str, dict[str, None]] = {}  # one code has several where other files changed
    for record in used:
        revision = str(record["environment"].get("git revision"))
        revisions.setdefault(record["code"], {})[revision] = None
    for what, where in (
        ("code", lambda r: f"{r['code']} (revision {', '.join(revisions[r['code']])})"),
        ("torch", lambda r: r["environment"].get("torch")),
        ("transformers", lambda r: r["environment"].get("transformers")),
        ("computed in", lambda r: r["computed_in"]),
        ("cores", lambda r: r["environment"].get("cores")),
    ):
        values: dict[str, int] = {}
        for record in used:
            values[str(where(record))] = values.get(str(where(record)), 0) + 1
        if len(values) == 1:
            said.append(f"{what}: {next(iter(values))}.")
        elif values:
            mixed = "; ".join(f"{value}: {count} cells" for value, count in values.items())
            said.append(f"MIXED {what}: {mixed}.")
    return said


def _sharing_a_picture(evaluation: Evaluation) -> tuple[int, int] | None:
    """Count the test's units that have a picture of another unit, and all; None where no two share one."""
    try:
        tasks = tasks_of(evaluation, "test")
    except FileNotFoundError:
        return None
    pictures = [
        {task.items[place].image for place in unit} - {None}
        for task in tasks
        if task.family in FAMILIES
        for unit in task.units()
    ]
    seen = Counter(picture for unit in pictures for picture in unit)
    shared = sum(any(seen[picture] > 1 for picture in unit) for unit in pictures)
    return (shared, len(pictures)) if shared else None


def _gain_json(gain: Gain) -> dict[str, Any]:
    found = {
        "llm": gain.line.llm,
        "size": gain.line.size,
        "variant": gain.line.variant,
        "baseline": gain.baseline.variant,
        "baseline_llm": gain.baseline.llm,
        "seeds": list(gain.seeds),
        "mean": round(gain.mean, 6),
        "baseline_mean": round(gain.baseline_mean, 6),
        **_difference_json(gain.gain),
        "per_family": {
            name: {
                "mean": _mean(gain.line, gain.seeds, name),
                "baseline_mean": _mean(gain.baseline, gain.seeds, name),
                **_difference_json(of_family),
            }
            for name, of_family in gain.families.items()
        },
        "per_task": {name: _difference_json(of_task) for name, of_task in gain.tasks.items()},
        "per_seed": [
            {
                "seed": seed,
                "mean": round(gain.line.records[seed]["test"]["score"], 6),
                "baseline_mean": round(gain.baseline.records[seed]["test"]["score"], 6),
                **_difference_json(alone),
            }
            for seed, alone in gain.of_seeds.items()
        ],
    }
    return found


def _mean(line: Line, seeds: Iterable[int], family: str) -> float:
    values = [line.records[seed]["test"]["families"][family] for seed in seeds]
    return round(sum(values) / len(values), 6)


def _difference_json(one: Difference) -> dict[str, Any]:
    return {
        "gain": round(one.mean, 6),
        "ci95": [round(one.low, 6), round(one.high, 6)],
        "ci95_over": "seeds and questions" if one.seeds > 1 else "questions",
        "p": round(one.p, 6),
    }


def _line_json(line: Line) -> dict[str, Any]:
    mean, (total, trained) = line.mean, line.parameters
    return {
        "llm": line.llm,
        "size": line.size,
        "variant": line.variant,
        "chosen": sorted({record["chosen"] for record in line.records.values()}),
        "seeds": sorted(line.records),
        "mean": round(mean.mean, 6),
        "ci95_over_seeds": None if math.isnan(mean.low) else [round(mean.low, 6), round(mean.high, 6)],
        "baselines": line.first["test"]["baselines"],
        "families": {name: round(line.of_family(name).mean, 6) for name in line.first["test"]["families"]},
        "parameters": total,
        "trained_parameters": trained,
        "training_seconds": [record["seconds"]["training"] for record in line.records.values()],
        "peak_memory_gib": max(record["peak_memory_gib"] for record in line.records.values()),
    }
