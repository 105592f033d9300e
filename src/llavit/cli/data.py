"""`llavit data`: look at data before training does."""

from __future__ import annotations

import random
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from llavit.cli.errors import reports_errors

data_app = typer.Typer(help="Look at data before training does.", no_args_is_help=True)


class DataFormat(StrEnum):
    """How records are stored; the formats of `llavit.data.open_reader`."""

    json = "json"
    jsonl = "jsonl"
    hf = "hf"
    webdataset = "webdataset"


class DataStyle(StrEnum):
    """How training renders records; the styles of a recipe's stage."""

    chat = "chat"
    plain = "plain"


Data = Annotated[
    str,
    typer.Argument(help="A .json, .jsonl, .parquet or .tar file, a folder, or with --format hf a hub id."),
]
ImageFolder = Annotated[Path | None, typer.Option(help="What image paths are relative to.")]
FormatOption = Annotated[
    DataFormat | None, typer.Option("--format", help="How the data is stored, if it cannot be seen.")
]
Split = Annotated[str | None, typer.Option(help="Of a Hugging Face data set, like train[:10%].")]
Limit = Annotated[int | None, typer.Option(min=1, help="Look at the first so many records only.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="Where training cuts, in tokens.")]
StyleOption = Annotated[DataStyle, typer.Option("--style", help="How training renders records.")]


@data_app.command()
@reports_errors
def verify(
    data: Data,
    image_folder: ImageFolder = None,
    format_: FormatOption = None,
    split: Split = None,
    limit: Limit = None,
    model: Annotated[
        str | None, typer.Option(help="A model whose processor counts tokens: a folder or hub id.")
    ] = None,
    max_length: MaxLength = None,
    style: StyleOption = DataStyle.chat,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one per core if not given.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File for the bad records; DATA.bad.jsonl if not given."),
    ] = None,
) -> None:
    """Decode every image, check every record, list the bad ones; exit code 1 if there are any."""
    if max_length is not None and model is None:
        raise ValueError("--max-length counts tokens, which takes a model: add --model")
    from rich.console import Console

    from llavit.data import open_reader, verify_data, verify_table
    from llavit.progress import progress_bar

    reader = open_reader(data, image_folder, limit, format=_value(format_), split=split)
    output = output or Path(f"{Path(data).stem or 'data'}.bad.jsonl")
    with progress_bar("checking") as progress:
        found = verify_data(
            reader,
            model=model,
            max_length=max_length,
            style=style.value,
            workers=workers,
            bad_file=output,
            progress=progress,
        )
    Console(soft_wrap=True, highlight=False).print(verify_table(found, reader, max_length))
    if found.bad:
        typer.echo(f"{found.bad:,} of {found.records:,} records are bad, see {output}", err=True)
        raise typer.Exit(1)


@data_app.command()
@reports_errors
def preview(
    data: Data,
    model: Annotated[str, typer.Option(help="The model that is to learn from it: a folder or hub id.")],
    image_folder: ImageFolder = None,
    format_: FormatOption = None,
    split: Split = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many records.")] = 8,
    seed: Annotated[
        int | None, typer.Option(help="Draw the records by this seed; without it, the first ones.")
    ] = None,
    max_length: MaxLength = None,
    style: StyleOption = DataStyle.chat,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write an HTML page instead of to the terminal.")
    ] = None,
) -> None:
    """Show records as the model will see them, what it learns in colour."""
    from rich.console import Console

    from llavit.data import open_reader, preview_page, preview_records, preview_text
    from llavit.data.verify import load_processor

    reader = open_reader(data, image_folder, format=_value(format_), split=split)
    processor = load_processor(model)
    count = min(count, len(reader))
    chosen = range(count) if seed is None else random.Random(seed).sample(range(len(reader)), count)
    shown = preview_records(reader, processor, chosen, max_length=max_length, style=style.value)
    if output is None:
        console = Console(highlight=False)
        for record in shown:
            console.print(preview_text(record))
    else:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(preview_page(shown, data), encoding="utf-8")
        typer.echo(output)


def _value(format_: DataFormat | None) -> Any:
    return None if format_ is None else format_.value
