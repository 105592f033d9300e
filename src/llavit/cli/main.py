"""The command line: one thin command per verb. What a command does is a function elsewhere, imported when it runs."""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

import llavit.cli.inspect_attention
import llavit.cli.inspect_knockout
import llavit.cli.inspect_probe  # noqa: F401  # their commands
from llavit.cli.bench import bench_app
from llavit.cli.compare import compare
from llavit.cli.convert import convert
from llavit.cli.data import data_app
from llavit.cli.errors import ends_when_stopped, show_traceback
from llavit.cli.errors import reports_errors as _reports_errors
from llavit.cli.estimate import estimate
from llavit.cli.eval import eval_, table
from llavit.cli.export import export
from llavit.cli.inspect import inspect_app
from llavit.cli.serve import serve
from llavit.cli.web import web
from llavit.progress import status

app = typer.Typer(
    help="Train and ask LLaViT models: LLaVA in which the LLM is a vision transformer as well.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
starter_app = typer.Typer(help="The starter: data and weights out of Python packages.", no_args_is_help=True)
app.add_typer(starter_app, name="starter")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(inspect_app, name="inspect")
app.command()(compare)
app.command()(convert)
app.command()(estimate)
app.command("eval")(eval_)
app.command()(table)
app.command()(export)
app.command()(serve)
app.command()(web)


def _show_version(asked: bool) -> None:
    if asked:
        from llavit import __version__

        typer.echo(f"llavit {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where in the code an error arose.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    show_traceback(traceback)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a warning from each worker process
    if not traceback:
        warnings.simplefilter("ignore")
    logger = logging.getLogger("llavit")
    if not logger.handlers:
        logger.addHandler(_Lines())
        logger.setLevel(logging.INFO)


class _Lines(logging.Handler):
    """Writes messages to stderr as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(self.format(record), err=True)


@app.command()
@_reports_errors
def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a name that `llavit recipes` lists.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, e.g. stages.0.steps=3. Repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; the recipe's `output`, else runs/NAME, if not given."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            help="Go on with the run in the folder, if there is one; --no-resume refuses such a folder."
        ),
    ] = True,
) -> None:
    """Train a recipe's stages; the same command again resumes or reuses them."""
    from llavit.train import load_recipe

    made = load_recipe(recipe, set_ or [])
    from llavit.train.distributed import is_first_process, leave
    from llavit.train.run import train as run

    try:
        with ends_when_stopped():
            folder = run(made, output=output, resume=resume)
    except typer.Exit:  # told to stop: all processes do so after the same step
        leave()
        raise
    leave()
    if is_first_process():
        typer.echo(folder)


@app.command()
@_reports_errors
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture: png, svg or pdf.")] = Path(
        "loss.png"
    ),
) -> None:
    """Draw the loss curves of runs in one picture."""
    from llavit.train.plot import plot_losses

    typer.echo(plot_losses(runs, output))


@app.command()
@_reports_errors
def recipes() -> None:
    """List the recipes that come with the package."""
    from llavit.train.recipe import RECIPES, shipped_recipes

    shipped = shipped_recipes()
    width = max(len(recipe.name) for recipe in shipped)
    for recipe in shipped:
        typer.echo(f"{recipe.name:<{width}}  {recipe.about}")
    typer.echo(f"They are files in {RECIPES}: copy one, or write your own with `extends: NAME`.", err=True)


@app.command()
@_reports_errors
def merge(
    model: Annotated[Path, typer.Argument(help="A folder with LoRA adapters.")],
    output: Annotated[Path, typer.Argument(help="Folder for the whole model; must not be there yet.")],
) -> None:
    """Merge LoRA adapters into the model that they adapt: a folder that needs no other."""
    from llavit.merge import merge as run

    typer.echo(run(model, output))


@app.command()
@_reports_errors
def ask(
    model: Annotated[str, typer.Argument(help="A model's folder, or its id on the hub.")],
    image: Annotated[Path, typer.Argument(help="An image file.")],
    question: Annotated[str, typer.Argument(help="What to ask, in quotes.")],
    max_new_tokens: Annotated[int, typer.Option(help="Greatest length of the answer.")] = 256,
) -> None:
    """Ask one question about one image."""
    if not image.is_file():
        raise FileNotFoundError(f"no such image: {image}")
    with status(f"{model}: starting"):
        from llavit.ask import Chat

        talk = Chat.load(model, max_new_tokens=max_new_tokens, progress=True)
    for piece in talk.ask(question, [image]):
        typer.echo(piece, nl=False)
    typer.echo()


@app.command()
@_reports_errors
def chat(
    model: Annotated[str, typer.Argument(help="A model's folder, or its id on the hub.")],
    image: Annotated[Path | None, typer.Argument(help="An image file to talk about.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Greatest length of an answer.")] = 256,
) -> None:
    """Talk with a model; /image PATH shows it another image."""
    if image is not None and not image.is_file():
        raise FileNotFoundError(f"no such image: {image}")
    with status(f"{model}: starting"):
        from llavit.ask import HELP, Chat, converse

        talk = Chat.load(model, max_new_tokens=max_new_tokens, progress=True)
    typer.echo(HELP)
    converse(talk, _typed(), functools.partial(typer.echo, nl=False), [image] if image is not None else [])


def _typed() -> Iterator[str]:
    """Give the lines that a user types, until the end of input."""
    import readline  # noqa: F401  (gives input() its line editing)

    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


@starter_app.command()
@_reports_errors
def build(
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the data; runs/starter-data, with --full runs/starter-full."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures in each of the two training sets; 10,000 if not given."),
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the pictures, in pixels.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other pictures.")] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="The large corpus, of npm and Debian packages as well; asks first.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --full: do not ask.")] = False,
) -> None:
    """Build the starter's pictures and weights; what is there already is reused."""
    if full:
        from llavit.cli.full import build_full

        if size is not None:
            raise ValueError(
                f"--size {size} beside --full: the numbers of the large corpus are fixed, leave it out"
            )
        return build_full(output or Path("runs/starter-full"), image_size, seed, yes)
    output, size = output or Path("runs/starter-data"), 10_000 if size is None else size
    from llavit.progress import progress_bar
    from llavit.starter.corpus import build_corpus
    from llavit.starter.weights import starter_llm, starter_tower

    options: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
    with progress_bar("drawing") as progress:
        corpus = build_corpus(
            output,
            pretrain=size,
            instruct=size,
            val=max(1, size // 10),
            test=max(1, size // 5),
            seed=seed,
            progress=progress,
            **options,
        )
    typer.echo(
        f"data   {corpus.root}  " + ", ".join(f"{name} {count:,}" for name, count in corpus.counts.items())
    )
    typer.echo(f"LLM    {starter_llm()}")
    typer.echo(f"tower  {starter_tower()}")


@app.command()
@_reports_errors
def demo(
    output: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("runs/demo"),
    minutes: Annotated[
        float | None,
        typer.Option(
            min=1, help="Minutes of training, more or less; if not given ten, and up to forty on a slow CPU."
        ),
    ] = None,
) -> None:
    """Build, train and test a small LLaViT from beginning to end, on 2 CPU cores; the same command resumes."""
    from llavit.demo import run_demo

    with ends_when_stopped():
        run_demo(output, minutes=minutes)
