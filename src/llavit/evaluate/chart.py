"""Runs as a picture: a bar for each task and mean, with intervals and baselines; and the table's HTML page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from llavit.evaluate.table import NAMES, Result, notes, rows, run_names, titles

_COLOURS = ("#3b7dd8", "#e07b39", "#3c9d5d", "#a05cc0", "#c0392b", "#7f7f7f")
_MARKS = {"majority": ("D", "#888888"), "blind": ("v", "#555555"), "shuffled": ("x", "#111111")}


def save_chart(results: Sequence[Result], path: str | Path) -> Path:
    """Draw runs as bars, task by task, with 95 % intervals; marks show the baselines. The suffix chooses the format.

    Captions are left out: their score is on another scale.

    Args:
        results: of `read_result` or `evaluate`.
        path: e.g. "scores.png"; what matplotlib can write.

    Example:
        save_chart([read_result("llava.json"), read_result("llavit.json")], "scores.png")
    """
    from matplotlib import pyplot

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = _figure(results)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)
    return path


def html_page(results: Sequence[Result], title: str = "Scores") -> str:
    """Return table and picture as one HTML page that needs no other file.

    Example:
        Path("scores.html").write_text(html_page([read_result("run.json")]))
    """
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2"]))
    about = {key: task["about"] for result in results for key, task in result["tasks"].items()}
    return pages.get_template("table.html.j2").render(
        title=title,
        picture=_svg(results),
        heads=titles(results),
        rows=rows(results),
        families=NAMES,
        about=about,
        notes=notes(results),
    )


def _svg(results: Sequence[Result]) -> str:
    from matplotlib import pyplot

    figure = _figure(results)
    out = io.StringIO()
    figure.savefig(out, format="svg")
    pyplot.close(figure)
    svg = out.getvalue()
    return svg[svg.index("<svg") :]


def _figure(results: Sequence[Result]) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows(results) if not row.metric.startswith("caption")]
    thick = 0.8 / len(results)
    figure, axis = pyplot.subplots(figsize=(8.5, 1.4 + (0.16 + 0.2 * len(results)) * len(shown)))
    labels, marked = [], set()
    for place, row in enumerate(shown):
        name = f"{NAMES.get(row.name, row.name)}{', mean' if row.kind == 'family' else ''}"
        labels.append(name)
        for number in range(len(results)):
            at = place - 0.4 + thick * (number + 0.5)
            cell = row.cells.get((number, "model"))
            if cell is None:
                continue
            low, high = max(0.0, cell.score - cell.low), max(0.0, cell.high - cell.score)
            axis.barh(
                at,
                100 * cell.score,
                thick * 0.92,
                xerr=[[100 * low], [100 * high]],
                color=_COLOURS[number % len(_COLOURS)],
                alpha=1.0 if row.kind != "task" else 0.65,
                error_kw={"elinewidth": 0.9, "ecolor": "#333333"},
            )
            for who, (mark, colour) in _MARKS.items():
                if baseline := row.cells.get((number, who)):
                    axis.plot(100 * baseline.score, at, mark, color=colour, markersize=4)
                    marked.add(who)
        if row.chance:
            axis.plot([100 * row.chance] * 2, [place - 0.42, place + 0.42], color="#c0392b", linewidth=1)
    handles: list[Any] = [
        pyplot.Rectangle((0, 0), 1, 1, color=_COLOURS[number % len(_COLOURS)], label=name)
        for number, name in enumerate(run_names(results))
    ]
    for who, (mark, colour) in _MARKS.items():
        if who in marked:
            handles.append(
                pyplot.Line2D([], [], marker=mark, color=colour, linestyle="", markersize=4, label=who)
            )
    handles.append(pyplot.Line2D([], [], color="#c0392b", linewidth=1, label="chance"))
    axis.legend(
        handles=handles, fontsize=7.5, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=6, frameon=False
    )
    axis.set_yticks(range(len(shown)), labels, fontsize=8)
    for text, row in zip(axis.get_yticklabels(), shown, strict=True):
        text.set_fontweight("normal" if row.kind == "task" else "bold")
    axis.set(xlim=(0, 100), ylim=(len(shown) - 0.4, -0.6), xlabel="score, per cent")
    axis.grid(axis="x", alpha=0.25)
    figure.tight_layout()
    return figure
