"""`llavit estimate`: what training a recipe takes, and what serving a model takes, before anything is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llavit.cli.choices import ServedDtype
from llavit.cli.errors import reports_errors

if TYPE_CHECKING:
    from llavit.sizing import Plan


@reports_errors
def estimate(
    recipe: Annotated[
        list[str],
        typer.Argument(
            help="A YAML file, or a name that `llavit recipes` lists; with --serving also models' folders or hub ids."
        ),
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value. Repeatable.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Number of devices.")] = 1,
    memory: Annotated[float, typer.Option(help="Memory of each, in GB.")] = 80,
    tflops: Annotated[
        float | None, typer.Option(help="Peak of each, in TFLOP/s; 312 (A100) if the recipe says none.")
    ] = None,
    utilisation: Annotated[float, typer.Option(help="Share of the peak that is reached.")] = 0.4,
    length: Annotated[
        int | None,
        typer.Option(help="Tokens of a row, for memory; the longest that a stage allows if not given."),
    ] = None,
    text_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Text tokens of a usual sample, for the time; of a whole chat with --serving (1024)."
        ),
    ] = None,
    config_dir: Annotated[
        Path | None, typer.Option(help="Folder with ORG/NAME/config.json of models, for work offline.")
    ] = None,
    serving: Annotated[
        bool, typer.Option("--serving", help="Serving instead: weights, KV cache, chats that fit at once.")
    ] = False,
    images: Annotated[int, typer.Option(min=0, help="With --serving: images of a chat.")] = 1,
    dtype: Annotated[
        ServedDtype, typer.Option(help="With --serving: type of weights, keys and values.")
    ] = ServedDtype.bfloat16,
    memory_share: Annotated[
        float,
        typer.Option(min=0.01, max=1, help="With --serving: share of the memory to use (vLLM's default)."),
    ] = 0.92,
    reserve: Annotated[
        float, typer.Option(min=0, help="With --serving: GB of that for activations and graphs.")
    ] = 2,
    markdown: Annotated[bool, typer.Option("--markdown", help="With --serving: print Markdown.")] = False,
) -> None:
    """Say what a recipe takes: parameters, memory, operations, time; or what serving a model does. Needs no weights."""
    from llavit.progress import quiet_transformers

    if serving:
        from llavit.sizing import Plan

        plan = Plan(gpus, memory, text_tokens or 1024, images, dtype.value, memory_share, reserve)
        with quiet_transformers():
            _serving(recipe, set_ or [], plan, config_dir, markdown)
        return
    if len(recipe) > 1:
        raise ValueError(f"expected one recipe, got {len(recipe)}; several are for --serving")
    with quiet_transformers():
        _training(recipe[0], set_ or [], gpus, memory, tflops, utilisation, length, text_tokens, config_dir)


def _training(
    recipe: str,
    overrides: list[str],
    gpus: int,
    memory: float,
    tflops: float | None,
    utilisation: float,
    length: int | None,
    text_tokens: int | None,
    config_dir: Path | None,
) -> None:
    """Print what a recipe's stages take."""
    from rich.console import Console

    from llavit.train.estimate import estimate as run
    from llavit.train.estimate import estimate_table
    from llavit.train.recipe import load_recipe

    made = load_recipe(recipe, overrides)
    stages = run(made, gpus=gpus, length=length, text_tokens=text_tokens, config_dir=config_dir)
    peak = tflops or made.peak_tflops or 312.0
    Console().print(
        estimate_table(made, stages, gpus=gpus, memory=memory, tflops=peak, utilisation=utilisation)
    )
    typer.echo(
        f"Time: {100 * utilisation:g} % of {peak:g} TFLOP/s on each device. Peaks are what tensors take; allow a few "
        "GB for fragmentation and the GPU's own context."
    )
    if any(stage.peak > memory * 1e9 for stage in stages):
        typer.echo(
            "Does not fit: try a smaller micro_batch_size, gradient_checkpointing, --length as long as your rows are, "
            "frozen_dtype: bfloat16, lora, or parallel: fsdp2 on more devices."
        )


def _serving(
    sources: list[str], overrides: list[str], plan: Plan, config_dir: Path | None, as_markdown: bool
) -> None:
    """Print what serving models takes."""
    from rich.console import Console
    from rich.table import Table

    from llavit.sizing import chats_table, markdown, serving_config, sizes_table

    configs = {
        name: serving_config(source, overrides, config_dir)
        for name, source in zip(_names(sources), sources, strict=True)
    }
    tables = [sizes_table(configs, plan), chats_table(configs, plan)]
    about = (
        f"Chats of {plan.text_tokens:,} tokens of text and {plan.images} image(s) at once, beside the weights of each "
        f"device, in {plan.dtype}: {100 * plan.share:g} % of the memory, less {plan.reserve:g} GB for activations and "
        "graphs. Several devices share a model (tensor parallel); -: its heads cannot be shared so."
    )
    if as_markdown:
        typer.echo(f"{markdown(tables[0])}\n{about}\n\n{markdown(tables[1])}", nl=False)
        return
    console = Console()
    for head, *rows in (_turned(tables[0]), tables[1]):
        table = Table(*head)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*row)
        console.print(table)
    typer.echo(about)


def _names(sources: list[str]) -> list[str]:
    """Call files and folders by their last part, or by the whole path where two would be called the same."""
    short = [
        path.stem if path.is_file() else path.name if path.is_dir() else source
        for source, path in zip(sources, map(Path, sources), strict=True)
    ]
    return [
        name if name and short.count(name) == 1 else source
        for name, source in zip(short, sources, strict=True)
    ]


def _turned(rows: list[list[str]]) -> list[list[str]]:
    """Swap rows and columns: a terminal is narrow."""
    return [list(column) for column in zip(*rows, strict=True)]
