"""`llavit inspect probe` and `llavit inspect drift`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llavit.cli_choices import Dtype
from llavit.cli_errors import reports_errors
from llavit.cli_inspect import (
    OUTPUT,
    DtypeOption,
    Models,
    Output,
    finish,
    inspect_app,
    look_at,
    numbers,
    print_table,
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
