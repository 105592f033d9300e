"""`llavit inspect probe` and `llavit inspect drift`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llavit.cli.choices import Dtype
from llavit.cli.errors import reports_errors
from llavit.cli.inspect import (
    OUTPUT,
    DtypeOption,
    ImageOption,
    MessagesOption,
    Models,
    Output,
    QuestionOption,
    finish,
    inspect_app,
    look_at,
    messages_of,
    numbers,
    print_table,
    refuse,
)


@inspect_app.command()
@reports_errors
def probe(
    models: Models,
    data: Annotated[
        Path, typer.Option(help="A starter corpus with val (or instruct) and test: see docs/inspect.md.")
    ],
    layers: Annotated[
        str | None,
        typer.Option(
            help="Of the LLM, 0 for the projector's output: 0,15,30 or 20-30; about eleven if not given."
        ),
    ] = None,
    tower_layers: Annotated[
        str | None, typer.Option(help="Of the vision tower, alike; about five if not given.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many pictures to learn from, and to ask about.")
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Run the image alone, without what comes before it in a prompt.")
    ] = False,
    pictures: Annotated[int, typer.Option(min=0, help="How many pictures to show in colours.")] = 6,
    dtype: DtypeOption = Dtype.auto,
    output: Output = OUTPUT,
) -> None:
    """Probe features of tower and LLM, layer by layer: what is in a picture, and what is on a patch?"""
    from llavit.inspect.pca import patch_pca
    from llavit.inspect.probe import probe_layers, probe_pictures
    from llavit.inspect.probe_report import ProbeReport, best_places, save_comparison
    from llavit.progress import progress_bar

    chosen = probe_pictures(data, limit=limit)
    places: dict[str, Any] = {"layers": numbers(layers), "tower_layers": numbers(tower_layers)}

    def look(model: Any, processor: Any, name: str) -> ProbeReport:
        with progress_bar(f"{name}: pictures") as progress:
            found = probe_layers(
                model, processor, chosen, name=name, prefix=not alone, progress=progress, **places
            )
        shown = [s.image for s in chosen.test[:pictures]]
        pca = patch_pca(model, processor, shown, name=name, prefix=not alone, **places) if shown else None
        return ProbeReport.of(found, pca)

    results = look_at(models, look, dtype)
    print_table(
        "best place by probe, in an unseen style (accuracy; on patches balanced accuracy)",
        ["model", "part", "nearest neighbours", "linear", "on patches"],
        best_places(results),
    )
    finish(results, output, "probe", save_comparison(results, output))


@inspect_app.command()
@reports_errors
def drift(
    models: Models,
    reference: Annotated[
        str | None,
        typer.Option(help="Compare with it as well: the LLM that a model was trained from, or a model."),
    ] = None,
    image: ImageOption = None,
    question: QuestionOption = None,
    messages: MessagesOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Instead of an image: pictures of the test of a starter corpus.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="How many pictures of --data; 16 if not given.")
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="What the models are read in; bfloat16 rounds away small differences.")
    ] = Dtype.float32,
    output: Output = OUTPUT,
) -> None:
    """Compare visual and text QKV, layer by layer; with an image also attention entropy and norms of tokens."""
    from llavit.inspect.drift import QKV, load_reference, qkv_drift
    from llavit.inspect.inputs import QUESTION, one_image
    from llavit.inspect.tokens import token_statistics
    from llavit.progress import quiet_transformers
    from llavit.starter.truth import read_truth

    conversations: list[list[dict[str, Any]]] = []
    if data is not None:
        if image is not None or messages is not None:
            raise ValueError("expected one of --data, --image and --messages, got two")
        shown = read_truth(data, ["test"])[: limit or 16]
        conversations = [one_image(str(s.image), question or QUESTION) for s in shown]
    elif image is not None or messages is not None:
        refuse("without --data", limit=limit)
        conversations = [messages_of(image, question, messages)]
    else:
        refuse("without --image, --messages or --data", question=question, limit=limit)
    with quiet_transformers():
        other = None if reference is None else load_reference(reference)

    def look(model: Any, processor: Any, name: str) -> Any:
        tokens = token_statistics(model, processor, conversations) if conversations else None
        return qkv_drift(model, other, name=name, reference_name=str(reference), tokens=tokens)

    results = look_at(models, look, dtype)
    rows = []
    for found in results:
        for number, pair in enumerate(found.pairs):
            rows.append([found.model, pair, *(f"{x:.4f}" for x in found.relative[number].mean(0))])
        if found.note:
            typer.echo(f"{found.model}: {found.note}", err=True)
    if rows:
        print_table("relative distance, mean over layers", ["model", "pair", *QKV], rows)
    if not conversations:
        typer.echo("no attention entropy and norms: they take --image, --messages or --data", err=True)
    finish(results, output)
