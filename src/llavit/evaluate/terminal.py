"""A run's scores as a table for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from llavit.evaluate.table import NAMES, Result, columns, rows, titles


def score_table(result: Result) -> Table:
    """Return the scores of one run with intervals and baselines.

    Example:
        rich.print(score_table(read_result("run.json")))
    """
    heads: dict[Any, str] = titles([result])
    shown = Table(title=f"{result['name']}: scores in per cent, with 95 % intervals")
    shown.add_column("task")
    shown.add_column("items", justify="right")
    shown.add_column("chance", justify="right")
    shown.add_column("score", justify="right")
    for key in columns([result])[1:]:
        shown.add_column(heads[key], justify="right")
    shown.add_column("lost", justify="right")
    for row in rows([result]):
        cell = row.cells.get((0, "model"))
        if cell is None:
            continue
        baselines = [str(row.cells.get(key, "-")) for key in columns([result])[1:]]
        lost = cell.failed + cell.unparsed
        shown.add_row(
            f"{NAMES.get(row.name, row.name)}{', mean' if row.kind == 'family' else ''}",
            f"{row.items:,}" if row.kind == "task" else "",
            f"{100 * row.chance:.1f}" if row.chance is not None else "",
            f"{cell}  {cell.margin}",
            *baselines,
            str(lost) if lost else "",
            style="" if row.kind == "task" else "bold",
            end_section=row.kind != "task",
        )
    shown.caption = "lost: items that failed or whose answer could not be read; they score 0"
    return shown
