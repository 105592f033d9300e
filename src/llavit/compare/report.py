"""Reports of an experiment: Markdown, HTML, PNG and JSON out of one set of rows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from llavit.compare.paired import Difference
from llavit.compare.summary import Gain, Line, Summary, as_json, summarise, tested_families
from llavit.compare.variants import variant_of
from llavit.evaluate.table import NAMES
from llavit.train.store import write_text

if TYPE_CHECKING:
    from llavit.compare.run import Experiment


@dataclass(frozen=True)
class TableOf:
    """The table of one LLM at one size.

    Attributes:
        title: names both.
        heads: a column for each variant.
        rows: label, kind ("mean", "family" or "task") and a text for each column.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]


def write_reports(experiment: Experiment) -> Path:
    """Write `summary.json`, `results.md`, `results.html` and pictures into the results folder.

    Returns:
        the folder.

    Raises:
        ValueError: results that do not belong together (`summarise`).
    """
    from filelock import FileLock

    folder = experiment.results.folder
    for needed in (folder, experiment.output):
        needed.mkdir(parents=True, exist_ok=True)
    with FileLock(experiment.output / ".report.lock"):  # the last to write knows all that the others knew
        _write(summarise(experiment), experiment, folder)
    return folder


def _write(summary: Summary, experiment: Experiment, folder: Path) -> None:
    from llavit.compare.pictures import PICTURES, pictures

    write_text(folder / "summary.json", json.dumps(as_json(summary, experiment), indent=1) + "\n")
    drawn: dict[str, str] = {}
    for name, (figure, about) in pictures(summary, experiment).items():
        temporary = folder / f".{name}.png"
        figure.savefig(temporary, dpi=140, format="png")
        temporary.replace(folder / f"{name}.png")
        drawn[name] = about
        _close(figure)
    for name in PICTURES:
        if name not in drawn:  # an earlier report's shows what this one does not
            (folder / f"{name}.png").unlink(missing_ok=True)
    write_text(folder / "results.md", markdown(summary, experiment, drawn))
    write_text(folder / "results.html", html(summary, experiment, drawn))


def tables(summary: Summary) -> list[TableOf]:
    """Make a table for each LLM and size: mean, families and tasks against variants."""
    found = []
    for key in dict.fromkeys((line.llm, line.size) for line in summary.lines):
        lines = [line for line in summary.lines if (line.llm, line.size) == key]
        tasks = tested_families(lines)
        rows: list[tuple[str, str, tuple[str, ...]]] = [
            ("seeds", "count", tuple(", ".join(map(str, sorted(line.records))) for line in lines)),
            (NAMES["mean"], "mean", tuple(_score(line.mean) for line in lines)),
        ]
        for family in dict.fromkeys(tasks.values()):
            rows.append((NAMES[family], "family", tuple(_score(line.of_family(family)) for line in lines)))
            for task in (name for name, of in tasks.items() if of == family):
                rows.append((task, "task", tuple(_score(line.of_task(task)) for line in lines)))
        for who in lines[0].first["test"]["baselines"]:
            texts = tuple(f"{100 * line.first['test']['baselines'].get(who, math.nan):.1f}" for line in lines)
            rows.append((f"{who} (of the first seed)", "count", texts))
        rows.append(("parameters", "count", tuple(f"{line.parameters[0] / 1e6:.1f} M" for line in lines)))
        rows.append(("of these trained in pretraining", "count", tuple(map(_trained_first, lines))))
        rows.append(("minutes of training", "count", tuple(map(_minutes, lines))))
        title = f"{key[0]}, {key[1]}"
        found.append(TableOf(title, tuple(line.variant for line in lines), tuple(rows)))
    return found


def gain_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Make a row for each comparison: who, against whom, seeds, both means, gain, p, and the gain in each family."""
    return [
        (
            _name(gain.line, gain),
            _name(gain.baseline, gain),
            f"{gain.line.llm}, {gain.line.size}",
            _seeds(gain),
            f"{100 * gain.mean:.1f}",
            f"{100 * gain.baseline_mean:.1f}",
            _gain(gain.gain),
            _p(gain.gain),
            "; ".join(f"{NAMES[name]} {_gain(one)}" for name, one in gain.families.items()),
        )
        for gain in summary.gains
    ]


def seed_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Make a row for each seed of each comparison that has several: few seeds say little together."""
    return [
        (
            _name(gain.line, gain),
            _name(gain.baseline, gain),
            f"{gain.line.llm}, {gain.line.size}",
            str(seed),
            f"{100 * gain.line.records[seed]['test']['score']:.1f}",
            f"{100 * gain.baseline.records[seed]['test']['score']:.1f}",
            _gain(alone),
            _p(alone),
        )
        for gain in summary.gains
        if len(gain.seeds) > 1
        for seed, alone in gain.of_seeds.items()
    ]


VAL_ONLY = "Scored on val only: tuning and choices"
FAILED = "Trainings that broke down. They have no part in the means and gains above."
GAIN_HEADS = ("variant", "against", "LLM, size", "seeds", "mean", "baseline", "gain", "p", "gain by family")
SEED_HEADS = ("variant", "against", "LLM, size", "seed", "mean", "baseline", "gain", "p")
BY_SEED = "Gains seed by seed, with intervals of the questions only"


def markdown(summary: Summary, experiment: Experiment, drawn: dict[str, str]) -> str:
    """Write the report in Markdown; pictures are files beside it."""
    grid = experiment.grid
    said = [f"# {grid.name}: results", ""]
    said += [grid.about, ""] if grid.about else []
    said += [*(f"- {note}" for note in summary.notes), ""]
    if summary.gains:
        said += ["## Gains", "", _markdown_table(GAIN_HEADS, gain_rows(summary)), ""]
    if by_seed := seed_rows(summary):
        said += [f"## {BY_SEED}", "", _markdown_table(SEED_HEADS, by_seed), ""]
    for table in tables(summary):
        rows = [(_label(label, kind), *texts) for label, kind, texts in table.rows]
        said += [f"## {table.title}", "", _markdown_table(("", *table.heads), rows), ""]
    said += [f"![{about}]({name}.png)\n" for name, about in drawn.items()]
    said += _markdown_rest(summary, experiment)
    return "\n".join(said).rstrip() + "\n"


def html(summary: Summary, experiment: Experiment, drawn: dict[str, str]) -> str:
    """Write the report as one HTML page that needs no other file."""
    from llavit.compare.pictures import as_svg

    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2"]))
    return pages.get_template("results.html.j2").render(
        title=f"{experiment.grid.name}: results",
        about=experiment.grid.about,
        notes=summary.notes,
        gain_heads=GAIN_HEADS,
        gains=gain_rows(summary),
        seeds_title=BY_SEED,
        seed_heads=SEED_HEADS,
        seeds=seed_rows(summary),
        tables=tables(summary),
        pictures=[(as_svg(name, summary, experiment), about) for name, about in drawn.items()],
        variants=_about_variants(summary, experiment),
        val_only=[(name, f"{100 * score:.1f}") for name, score in summary.val_only],
        val_only_title=VAL_ONLY,
        not_run=summary.not_run,
        failed=summary.failed,
        about_failed=FAILED,
    )


def _markdown_rest(summary: Summary, experiment: Experiment) -> list[str]:
    said = []
    about = _about_variants(summary, experiment)
    if about:
        said += ["## Variants", "", *(f"- `{name}`: {what}" for name, what in about), ""]
    if summary.val_only:
        rows = [(name, f"{100 * score:.1f}") for name, score in summary.val_only]
        said += [f"## {VAL_ONLY}", "", _markdown_table(("cell", "val"), rows), ""]
    if summary.failed:
        said += ["## Failed", "", FAILED, "", *(f"- {name}: {why}" for name, why in summary.failed), ""]
    if summary.not_run:
        said += ["## Not run", "", *(f"- {name}: {why}" for name, why in summary.not_run), ""]
    return said


def _about_variants(summary: Summary, experiment: Experiment) -> list[tuple[str, str]]:
    found = []
    for name in dict.fromkeys(line.variant for line in summary.lines):
        chosen = {
            record["chosen"]
            for line in summary.lines
            if line.variant == name
            for record in line.records.values()
            if record["chosen"] != name
        }
        about = variant_of(experiment.grid, name).about
        found.append((name, about + (f" ({', '.join(sorted(chosen))})" if chosen else "")))
    return found


def _markdown_table(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def _label(label: str, kind: str) -> str:
    return f"**{label}**" if kind in ("mean", "family") else label


def _score(one: Difference) -> str:
    half = "" if math.isnan(one.low) else f" ± {100 * (one.high - one.mean):.1f}"
    return f"{100 * one.mean:.1f}{half}"


def _gain(one: Difference) -> str:
    return f"{100 * one.mean:+.1f} ({100 * one.low:+.1f} to {100 * one.high:+.1f})"


def _seeds(gain: Gain) -> str:
    return str(len(gain.seeds)) if len(gain.seeds) > 1 else "1 (interval of questions only)"


def _p(one: Difference) -> str:
    return "< 0.001" if one.p < 0.001 else f"{one.p:.3f}"


def _name(line: Line, gain: Gain) -> str:
    return line.variant if gain.line.llm == gain.baseline.llm else f"{line.variant} on {line.llm}"


def _trained_first(line: Line) -> str:
    first = next(iter(line.first["parameters"].values()))
    return f"{sum(first['trained'].values()) / 1e6:.1f} M"


def _minutes(line: Line) -> str:
    seconds = [record["seconds"]["training"] for record in line.records.values()]
    return f"{sum(seconds) / len(seconds) / 60:.1f}"


def _close(figure: Any) -> None:
    from matplotlib import pyplot

    pyplot.close(figure)
