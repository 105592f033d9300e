"""`llavit inspect knockout`: what it costs to block attention, or a modality's projections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llavit.cli.choices import Dtype
from llavit.cli.errors import reports_errors
from llavit.cli.eval import ModeName
from llavit.cli.inspect import (
    OUTPUT,
    DtypeOption,
    Models,
    Output,
    finish,
    inspect_app,
    look_at,
    numbers,
    print_table,
    refuse,
)


@inspect_app.command()
@reports_errors
def knockout(
    models: Models,
    data: Annotated[
        Path,
        typer.Option(help="Folder of a benchmark or of a corpus (its test.json), or a file of items."),
    ] = Path("runs/bench"),
    tasks: Annotated[str, typer.Option(help="all, or names and families separated by commas.")] = "all",
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many items of each task.")] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Ranges in which attention is blocked beside all layers, as 0-9,10-19; or none; thirds if not given."
        ),
    ] = None,
    block: Annotated[
        str | None,
        typer.Option(
            help="Only these of visual_to_visual, bidirectional, text_to_visual, visual_q, visual_k, visual_v, "
            "visual_qkv; separated by commas."
        ),
    ] = None,
    mode: Annotated[
        ModeName, typer.Option(help="Read answers out of text, or take the likeliest of the possible ones.")
    ] = ModeName.generate,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that run together.")] = 32,
    dtype: DtypeOption = Dtype.auto,
    output: Output = OUTPUT,
) -> None:
    """Block attention or projections and measure the loss of accuracy; the same command goes on where it stopped."""
    from llavit.evaluate.bench import read_tasks
    from llavit.inspect.blocking import ATTENTION, Block
    from llavit.inspect.knockouts import measure_knockouts, standard_blocks
    from llavit.inspect.knockouts_page import cells, draw, failures, summary
    from llavit.inspect.report import figure_png
    from llavit.progress import progress_bar

    ranges: list[list[int]] | None = None
    if layers is not None:
        parts = [] if layers == "none" else layers.split(",")
        ranges = [found for part in parts if (found := numbers(part))]
    kinds = None if block is None else [Block(kind.strip()).what for kind in block.split(",")]
    if kinds is not None and not set(kinds) & set(ATTENTION):
        refuse(
            "where only projections are replaced, in all layers", layers=None if layers == "none" else layers
        )
    items = read_tasks(data, tasks)

    def look(model: Any, processor: Any, name: str) -> Any:
        blocks = standard_blocks(model.config.llm.num_hidden_layers, ranges)
        with progress_bar(name) as progress:
            return measure_knockouts(
                model,
                processor,
                items,
                blocks if kinds is None else [each for each in blocks if each.what in kinds],
                mode=mode.value,
                limit=limit,
                batch_size=batch_size,
                output=output / "answers" / f"knockout-{name.replace('/', '-')}.json",
                name=name,
                progress=lambda what, done, total: progress(done, total),
            )

    results = look_at(models, look, dtype)
    for result in results:
        scores = ", ".join(
            f"{family} {100 * score:.1f}"
            for family, score in zip(result.families, result.score_f3[:, 0], strict=True)
        )
        print_table(
            f"{result.model}: points of accuracy lost ({scores})",
            ["knocked out", *result.families],
            cells(result),
        )
        for line in failures(result):
            typer.echo(f"{result.model}: {line}", err=True)
    finish(results, output, summary=summary(results))
    if len(results) > 1:
        (output / "knockout.png").write_bytes(figure_png(draw(results)))
