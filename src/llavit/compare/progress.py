"""What is done, what is not, and how long the rest may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from llavit.compare.cells import Cell
from llavit.train.progress import STEP_LOG, read_step_log

if TYPE_CHECKING:
    from llavit.compare.run import Experiment


def estimate_seconds(experiment: Experiment, cell: Cell) -> float | None:
    """Estimate a cell's seconds by those that are done: of the same variant, else of any, on the same LLM and size.

    Returns:
        seconds, less those that a begun cell has spent in training; None where there is nothing to go by.
    """
    alike: list[float] = []
    near: list[float] = []
    for other in experiment.cells():
        record = experiment.results.read(other)
        if record is None or (other.llm, other.size) != (cell.llm, cell.size):
            continue
        seconds = record["seconds"]["wall"]
        near.append(seconds)
        if other.variant == cell.variant:
            alike.append(seconds)
    known = alike or near
    if not known:
        return None
    return max(0.0, sum(known) / len(known) - _spent(experiment, cell))


def what_is_left(experiment: Experiment, waiting: Sequence[Cell]) -> str:
    """Say why cells that are not done cannot be run now: others work on them, or on those they choose from."""
    choosing = [cell.name for cell in waiting if experiment.obstacle(cell)]
    taken = [cell.name for cell in waiting if cell.name not in choosing]
    said = f"cells left: {len(waiting)}; other processes work on {', '.join(taken)}"
    if choosing:
        said += f"; {', '.join(choosing)} choose from those"
    return f"{said}; the same command goes on when they are done"


def listing(experiment: Experiment, only: tuple[str, ...] = ()) -> Table:
    """Draw a table of the cells in their order: state, score, minutes taken or estimated.

    Example:
        ```python
        Console().print(listing(Experiment.at(load_grid("tiny"))))
        ```
    """
    table = Table(title=f"Grid {experiment.grid.name}", title_justify="left", show_footer=True)
    rows: list[tuple[str, ...]] = []
    left, unknown, done = 0.0, 0, 0
    for cell in experiment.cells(only):
        found = experiment.find(cell)
        estimated, score = "", ""
        minutes = ""
        if found.record is not None:
            minutes = f"{found.record['seconds']['wall'] / 60:.1f}"
            shown = found.record["test"] or found.record["val"]
            score = "failed" if shown is None else f"{100 * shown['score']:.1f}"
            score += "" if found.record["test"] or shown is None else " (val)"
        state: str = found.state
        if found.state == "done":
            done += 1
        else:
            seconds = estimate_seconds(experiment, cell)
            estimated = "?" if seconds is None else f"{seconds / 60:.1f}"
            left, unknown = left + (seconds or 0.0), unknown + (seconds is None)
            if found.state == "not run" and (begun := _begun(experiment, cell)):
                state = f"begun: {begun}"
            elif found.state == "not run" and (obstacle := experiment.obstacle(cell)):
                state = obstacle
        rows.append((cell.name, state, score, minutes, estimated))
    total = f"{left / 60:.0f}" + (f" + {unknown} unknown" if unknown else "")
    for column, footer, right in (
        ("cell", f"{len(rows)} cells", False),
        ("state", f"{done} done", False),
        ("score", "", True),
        ("minutes", "", True),
        ("minutes to go", total, True),
    ):
        table.add_column(column, footer=footer, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _log(experiment: Experiment, cell: Cell) -> list[dict[str, Any]]:
    run = experiment.folder(cell) / "run"
    return [row for path in sorted(run.glob(f"*/{STEP_LOG}")) for row in read_step_log(path)]


def _spent(experiment: Experiment, cell: Cell) -> float:
    return sum(row["seconds"] for row in _log(experiment, cell))


def _begun(experiment: Experiment, cell: Cell) -> str:
    rows = _log(experiment, cell)
    return f"{len(rows)} steps" if rows else ""
