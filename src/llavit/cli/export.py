"""`llavit export`: a model as one plain folder, with a model card."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llavit.cli.errors import reports_errors
from llavit.progress import status


class ExportDtype(StrEnum):
    """What the weights are written in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@reports_errors
def export(
    model: Annotated[
        str, typer.Argument(help="A model's folder, with adapters or without, or its id on the hub.")
    ],
    to: Annotated[
        Path, typer.Option("--to", help="The new folder; what is there may be an empty one at most.")
    ],
    dtype: Annotated[
        ExportDtype, typer.Option(help="Of the weights; auto: as they are, with --int8 bfloat16.")
    ] = ExportDtype.auto,
    int8: Annotated[
        bool, typer.Option("--int8", help="Hold the LLM's weights in int8: half the memory.")
    ] = False,
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            help="A result file of llavit eval for the card; MODEL/eval*.json if not given. Repeatable."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the model on the card; the folder's if not given.")
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="For the card, e.g. apache-2.0; not known if not given.")
    ] = None,
    language: Annotated[list[str] | None, typer.Option(help="For the card, e.g. en. Repeatable.")] = None,
) -> None:
    """Write a model as one plain folder: adapters merged, weights, processor, and a card of what is on record."""
    with status(f"{model}: starting"):
        from llavit.export import export as run

        folder = run(
            model,
            to,
            dtype=dtype.value,
            int8=int8,
            scores=scores,
            name=name,
            licence=license_,
            languages=language or (),
            progress=True,
        )
    typer.echo(folder)
