"""`llavit compare`: a controlled experiment, cell by cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llavit.cli.errors import ends_when_stopped, reports_errors


@reports_errors
def compare(
    grid: Annotated[
        str, typer.Argument(help="A YAML file, or a grid that comes with llavit: starter, tiny.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where cells work; runs/compare/NAME if not given.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Where results and reports go; OUTPUT/results if not given.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Cells to run: a name, or parts of one like llavit or smollm2.full. Repeatable."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=0, help="Minutes after which no further cell is begun.")
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Show what is done and what is not; run nothing.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Write the reports of what is there; run nothing.")
    ] = False,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="Leave the trained weights of cells that run now.")
    ] = False,
    accept_code: Annotated[
        bool, typer.Option("--accept-code", help="Take results that other code made; reports say so.")
    ] = False,
) -> None:
    """Train and score the cells of a grid; the same command again goes on where it stopped."""
    from rich.console import Console

    from llavit.compare.grid import load_grid
    from llavit.compare.run import Experiment, run_grid

    runs = {
        "--budget": budget is not None,
        "--keep-weights": keep_weights,
        "--only": bool(only) and not list_,
    }
    ignored = [name for name, given in runs.items() if given]
    if list_ and report:
        raise ValueError("--list shows and --report writes: say one of them")
    if (list_ or report) and ignored:
        what = "--list runs nothing" if list_ else "--report writes of all cells and runs nothing"
        raise ValueError(f"{what}: leave out {', '.join(ignored)}")
    experiment = Experiment.at(load_grid(grid), output, results, accept_code)
    if list_:
        from llavit.compare.progress import listing

        console = Console(highlight=False)
        console.print(listing(experiment, tuple(only or ())))
        return
    if report:
        from llavit.compare.report import write_reports

        folder = write_reports(experiment)
        notes = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["notes"]
        for note in (note for note in notes if note.startswith("LEFT OUT")):
            typer.echo(note, err=True)
        typer.echo(folder)
        return
    with ends_when_stopped():
        run_grid(experiment, only=only or (), budget=budget, keep_weights=keep_weights)
    typer.echo(experiment.results.folder)
