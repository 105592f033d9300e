"""`llavit convert`: a checkpoint of LLaVA's own repository, written anew in Hugging Face's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llavit.cli.errors import reports_errors
from llavit.progress import status


@reports_errors
def convert(
    source: Annotated[
        str,
        typer.Argument(help="A folder or an id on the hub: a whole model, adapters, or a projector alone."),
    ],
    to: Annotated[
        Path, typer.Option("--to", help="The new folder; what is there may be an empty one at most.")
    ],
    llm: Annotated[
        str | None,
        typer.Option(help="For adapters and projectors: the LLM, if not the one that they name."),
    ] = None,
    vision_tower: Annotated[
        str | None, typer.Option(help="A folder or an id, if not the one that the checkpoint names.")
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(
            help="A Jinja file; if not given the tokenizer's own, else LLaVA-1.5's conversation v1."
        ),
    ] = None,
) -> None:
    """Write a checkpoint of LLaVA's own repository in Hugging Face's format, which llavit and transformers load."""
    template = None if chat_template is None else chat_template.read_text(encoding="utf-8")
    with status(f"{source}: starting"):
        from llavit.convert import convert_llava

    typer.echo(
        convert_llava(source, to, llm=llm, vision_tower=vision_tower, chat_template=template, progress=True)
    )
