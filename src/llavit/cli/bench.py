"""`llavit bench`: the benchmark that is made from packages."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llavit.cli.errors import reports_errors

bench_app = typer.Typer(help="The benchmark that needs no download.", no_args_is_help=True)


class EditionName(StrEnum):
    """What the pictures are made of; the editions of `llavit.starter.kit`."""

    starter = "starter"
    full = "full"


@bench_app.command()
@reports_errors
def build(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the benchmark.")] = Path(
        "runs/bench"
    ),
    tasks: Annotated[str, typer.Option(help="all, or names and families separated by commas.")] = "all",
    edition: Annotated[
        EditionName, typer.Option(help="starter: PyPI packages only; full: npm and Debian packages too.")
    ] = EditionName.starter,
    items: Annotated[
        int | None, typer.Option(min=1, help="Questions per task, for a quick look; results then differ.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other items.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; chosen by size if not given.")
    ] = None,
) -> None:
    """Draw the items of the tasks; what is there already is reused."""
    import json

    from llavit.progress import progress_bar
    from llavit.starter.bench.build import build_bench

    with progress_bar("drawing") as progress:
        folders = build_bench(output, tasks, edition.value, items, seed, progress=progress, workers=workers)
    for folder in folders:
        about = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        typer.echo(
            f"{about['id']:<26}  {about['family']:<14}  {about['items']:>6,} items  {about['fingerprint'][:12]}"
        )
    typer.echo(output)


@bench_app.command()
@reports_errors
def show(
    task: Annotated[str, typer.Argument(help="A task's name, like mini-mme.")],
    html: Annotated[Path | None, typer.Option(help="The page to write; TASK.html if not given.")] = None,
    bench: Annotated[Path, typer.Option(help="Folder of the benchmark.")] = Path("runs/bench"),
    run: Annotated[
        Path | None, typer.Option(help="A result file of `llavit eval`, whose answers are shown as well.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Items, from the first.")] = 100,
) -> None:
    """Write a page with a task's items: pictures, questions, answers."""
    from llavit.evaluate import load_task, read_result
    from llavit.evaluate.task_page import task_page

    page = task_page(load_task(bench / task), read_result(run) if run else None, count)
    html = html or Path(f"{task}.html")
    html.parent.mkdir(parents=True, exist_ok=True)
    html.write_text(page, encoding="utf-8")
    typer.echo(html)
