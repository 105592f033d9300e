"""`llavit eval` and `llavit table`: run the benchmark, and look at what came out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from llavit.cli.errors import reports_errors
from llavit.progress import quiet_transformers, status


class ModeName(StrEnum):
    """How answers come about; the modes of `llavit.evaluate.evaluate`."""

    generate = "generate"
    likelihood = "likelihood"


class DtypeName(StrEnum):
    """What the model computes in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class EditionName(StrEnum):
    """What the benchmark's pictures are made of."""

    starter = "starter"
    full = "full"


@reports_errors
def eval_(
    model: Annotated[
        str,
        typer.Argument(
            help="A model's folder, its id on the hub, or a server's address: http://HOST:PORT/v1."
        ),
    ],
    tasks: Annotated[str, typer.Option(help="all, or names and families separated by commas.")] = "all",
    bench: Annotated[
        Path, typer.Option(help="Folder of the benchmark; what is asked for and not there is built.")
    ] = Path("runs/bench"),
    mode: Annotated[
        ModeName, typer.Option(help="Read answers out of text, or take the likeliest of the possible ones.")
    ] = ModeName.generate,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many items of each task.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The result file; MODEL/eval.json if not given.")
    ] = None,
    baselines: Annotated[
        str, typer.Option(help="What to run beside the model: some of majority,blind,shuffled, or none.")
    ] = "majority,blind,shuffled",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that run together.")] = 32,
    dtype: Annotated[DtypeName, typer.Option(help="What to compute in.")] = DtypeName.auto,
    edition: Annotated[EditionName, typer.Option(help="Of tasks that are built now.")] = EditionName.starter,
    name: Annotated[
        str | None, typer.Option(help="Of the model in tables; its folder's if not given.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="Real benchmarks through lmms-eval instead: paper. --output is then a folder."),
    ] = None,
    served_name: Annotated[
        str | None, typer.Option(help="Of a server with several models: the name of the one to ask.")
    ] = None,
    api_key: Annotated[
        str, typer.Option(envvar="LLAVIT_API_KEY", show_envvar=True, help="What a server asks for.")
    ] = "",
) -> None:
    """Run the benchmark; the same command again goes on where it stopped."""
    address = model.startswith(("http://", "https://"))
    if address:
        given = {
            "--mode": mode is not ModeName.generate,
            "--suite": suite is not None,
            "--dtype": dtype is not DtypeName.auto,
        }
        if unfit := [option for option, is_given in given.items() if is_given]:
            raise ValueError(f"{unfit[0]} is not for a server: it has its own dtype, and gives text only")
    if suite is not None:
        if mode is not ModeName.generate:
            raise ValueError(
                f"--suite {suite} runs as lmms-eval does: --mode {mode.value} is for our own tasks"
            )
        _suite(model, suite, output or _default_output(model, suite), tasks, batch_size, dtype.value, limit)
        return
    from rich.console import Console

    with status(f"{model}: starting"):
        from llavit.evaluate import evaluate, evaluate_served
        from llavit.evaluate.terminal import score_table
        from llavit.loading import load_model

    chosen = _bench(bench, tasks, edition.value)
    if output is None:
        parts = [mode.value] if mode is not ModeName.generate else []
        output = _default_output(
            model, "-".join(["eval", *parts, *([f"first-{limit}"] if limit else [])]) + ".json"
        )
    wanted = [one.strip() for one in baselines.split(",") if one.strip() and one != "none"]
    options: dict[str, Any] = {"baselines": wanted, "limit": limit, "output": output, "name": name}
    if address:
        with _display() as (progress, finished):
            options |= {"progress": progress, "finished": finished}
            result = evaluate_served(
                model, chosen, model=served_name, api_key=api_key, requests=batch_size, **options
            )
    else:
        with quiet_transformers():
            loaded, processor = load_model(model, dtype=dtype.value, progress=True)
        with _display() as (progress, finished):
            options |= {"progress": progress, "finished": finished}
            result = evaluate(loaded, processor, chosen, mode=mode.value, batch_size=batch_size, **options)
    Console(stderr=True, width=max(110, Console(stderr=True).width)).print(score_table(result))
    typer.echo(output)


@reports_errors
def table(
    results: Annotated[list[Path], typer.Argument(help="Result files of `llavit eval`.")],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown, also if files are written.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with table and picture.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a picture: png, svg or pdf.")] = None,
    summary: Annotated[
        Path | None, typer.Option(help="Write one run without its predictions, to keep beside the code.")
    ] = None,
) -> None:
    """Set results side by side: as Markdown, as an HTML page, as a picture."""
    from llavit.evaluate.chart import html_page, save_chart
    from llavit.evaluate.result import read_result, without_predictions, write_result
    from llavit.evaluate.table import markdown as as_markdown

    read = [read_result(path) for path in results]
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(html_page(read), encoding="utf-8")
        typer.echo(html)
    if png is not None:
        typer.echo(save_chart(read, png))
    if summary is not None:
        if len(read) != 1:
            raise ValueError(f"--summary: expected one run, got {len(read)}")
        write_result(without_predictions(read[0]), summary)
        typer.echo(summary)
    if markdown or (html is None and png is None and summary is None):
        typer.echo(as_markdown(read), nl=False)


def _bench(folder: Path, tasks: str, edition: Any) -> list[Any]:
    """Read the tasks, and build what is not there if it is the starter's."""
    from llavit.evaluate import load_bench
    from llavit.progress import progress_bar

    try:
        found = load_bench(folder, tasks)
    except (FileNotFoundError, ValueError) as error:
        from llavit.starter.bench.registry import TASKS

        known = {"all", *TASKS, *(task.family for task in TASKS.values())}
        missing = _not_built(folder, tasks)
        if not missing or any(name not in known for name in missing):
            raise
        if isinstance(error, ValueError) and "unknown tasks" not in str(error):
            raise
    else:
        _note_absent(folder, found, tasks)
        return found
    from llavit.starter.bench.build import build_bench

    typer.echo(f"building {', '.join(missing)} in {folder}", err=True)
    with progress_bar("drawing") as progress:
        build_bench(folder, missing, edition, progress=progress)
    return load_bench(folder, tasks)


def _not_built(folder: Path, tasks: str) -> list[str]:
    """List what is asked for, tasks and families, that has no folder of its name.

    Example:
        >>> _not_built(Path("no/such/bench"), "mini-mme, general")
        ['mini-mme', 'general']
    """
    there = {path.parent.name for path in folder.glob("*/task.json")}
    return [name for name in (part.strip() for part in tasks.split(",")) if name not in there]


def _note_absent(folder: Path, found: list[Any], tasks: str) -> None:
    """Say which of the starter's tasks "all" leaves out because they are not built."""
    if "all" not in tasks.split(",") or any(
        task.made.get("edition") not in ("starter", "full") for task in found
    ):
        return
    from llavit.starter.bench.registry import TASKS

    names = {task.name for task in found}
    absent = [name for name, task in TASKS.items() if not task.optional and name not in names]
    if absent:
        typer.echo(f"{folder} lacks {', '.join(absent)}; `llavit bench build` makes them", err=True)


def _default_output(model: str, name: str) -> Path:
    if not Path(model).is_dir():
        raise ValueError(f"{model} is no folder, so say where the results go: --output")
    return Path(model) / name


def _suite(
    model: str, suite: str, output: Path, tasks: str, batch_size: int, dtype: str, limit: int | None
) -> None:
    from llavit.evaluate.lmms import run_suite

    result = run_suite(
        model,
        suite,
        output=output,
        tasks=tasks,
        batch_size=batch_size,
        dtype=dtype,
        limit=limit,
        report=lambda line: typer.echo(line, err=True),
    )
    typer.echo(output / f"{suite}.json")
    if result["not_run"]:
        typer.echo(f"without a score: {', '.join(result['not_run'])}", err=True)
        raise typer.Exit(1)


@contextmanager
def _display() -> Iterator[tuple[Any, Any]]:
    """A bar over all questions on a terminal; a line for each finished task either way."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        line = bar.add_task("", total=None)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(line, description=what, completed=done, total=total)

        def finished(key: str, task: dict[str, Any]) -> None:
            lost = "".join(f", {task[what]} {what}" for what in ("failed", "unparsed") if task[what])
            console.print(f"{key:<28} {100 * task['score']:6.1f}   {task['seconds']:6.1f} s{lost}")

        yield progress, finished
