"""`llavit inspect`: look inside models. A command loads, calls one function of `llavit.inspect`, saves and prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from llavit.cli.choices import Dtype
from llavit.cli.errors import reports_errors

Result = TypeVar("Result")

inspect_app = typer.Typer(
    help="Look inside models: what the LLM does with visual tokens. Several models are set side by side.",
    no_args_is_help=True,
)

Models = Annotated[list[str], typer.Argument(metavar="MODEL", help="Folders of models, or hub ids.")]
ImageOption = Annotated[Path | None, typer.Option(help="An image file to look at.")]
QuestionOption = Annotated[
    str | None,
    typer.Option(help="What is asked about the image; what is in it, if not given."),
]
MessagesOption = Annotated[
    Path | None, typer.Option(help="A JSON file with a conversation, instead of an image and a question.")
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        help="Of the LLM: numbers and ranges like 0,5,10-14; negative ones from the end. All if not given."
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for page, picture, arrays and facts.")]
DtypeOption = Annotated[Dtype, typer.Option(help="What the models compute in.")]

OUTPUT = Path("runs/inspect")
"""Where results go, if nothing else is said."""


@inspect_app.callback()
def _main() -> None:
    """Look inside models: what the LLM does with visual tokens. Several models are set side by side."""


def look_at(models: Sequence[str], look: Callable[..., Result], dtype: Dtype, **kwargs: Any) -> list[Result]:
    """Call `look(model, processor, name)` for one model after the other; only one is in memory at a time.

    Args:
        models: folders or hub ids.
        look: makes the result of one model.
        dtype: what they compute in.
        **kwargs: for `from_pretrained`.
    """
    from llavit.inspect.inputs import model_names
    from llavit.loading import load_model, require_source
    from llavit.progress import quiet_transformers, status

    for path in models:
        require_source(path)
    results = []
    for name, path in zip(model_names(models), models, strict=True):
        with quiet_transformers(), status(f"{name}: starting") as say:
            model, processor = load_model(path, dtype=dtype.value, progress=True, **kwargs)
            say(f"{name}: looking")
            results.append(look(model, processor, name))
        del model, processor
    return results


def messages_of(image: Path | None, question: str | None, messages: Path | None) -> list[dict[str, Any]]:
    """Return the conversation that the options name.

    Raises:
        ValueError: neither or both of an image and a file of messages; a question beside messages.
    """
    from llavit.inspect.inputs import QUESTION, one_image, read_messages

    if (image is None) == (messages is None):
        raise ValueError("expected one of --image FILE and --messages FILE")
    if messages is not None:
        refuse("beside --messages, which hold the question", question=question)
        return read_messages(messages)
    assert image is not None
    if not image.is_file():
        raise FileNotFoundError(f"no such image: {image}")
    return one_image(str(image), question or QUESTION)


def refuse(why: str, **options: Any) -> None:
    """Refuse options that would be left out of account.

    Args:
        why: where they have no meaning.
        **options: what each is; None if it was not given.

    Raises:
        ValueError: one was given.

    Example:
        >>> refuse("without --data", limit=None)
    """
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{' and '.join(given)}: no meaning {why}; leave it out")


def numbers(text: str | None) -> list[int] | None:
    """Read numbers and ranges: "0,5,10-12,-1" is 0, 5, 10, 11, 12 and -1; None stays None.

    Raises:
        ValueError: something else.

    Example:
        >>> numbers("0,10-12,-1")
        [0, 10, 11, 12, -1]
    """
    import re

    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise ValueError(f"layers {text!r}: expected numbers and ranges like 0,5,10-14, got {part!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if match[2] and first < 0:
            raise ValueError(
                f"layers {text!r}: expected single numbers from the end, such as -2,-1, got {part!r}"
            )
        if last < first:
            raise ValueError(f"layers {text!r}: expected the smaller number first, got {part!r}")
        found += range(first, last + 1)
    return found


def finish(results: Sequence[Any], output: Path, name: str | None = None, summary: str = "") -> None:
    """Save results, side by side if there are several, and print the page's path."""
    from llavit.inspect.report import save_all

    typer.echo(save_all(results, output, name, summary))


@inspect_app.command()
@reports_errors
def lens(
    models: Models,
    image: ImageOption = None,
    question: QuestionOption = None,
    messages: MessagesOption = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="A corpus of the starter, or a .json of pictures with scenes: how often words name what is there."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="With --data: splits of the corpus, separated by commas; val,test if not given."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="With --data: the first so many pictures only.")
    ] = None,
    layers: LayersOption = None,
    at_input: Annotated[bool, typer.Option("--input/--no-input", help="Look at the input as well.")] = True,
    k: Annotated[int, typer.Option("-k", min=1, help="How many words of each visual token.")] = 5,
    all_tokens: Annotated[
        bool,
        typer.Option("--all-tokens", help="Not only words of letters: spaces, signs and digits as well."),
    ] = False,
    find: Annotated[str | None, typer.Option(help="Words to mark, separated by commas.")] = None,
    dtype: DtypeOption = Dtype.auto,
    output: Output = OUTPUT,
) -> None:
    """Read visual tokens as words: the nearest words of each, at the input and behind every layer."""
    chosen = numbers(layers)
    if data is None:
        refuse("without --data", split=split, limit=limit)
    elif image is None and messages is None:
        refuse("without --image or --messages", find=find, question=question)
    options: dict[str, Any] = {"layers": chosen, "at_input": at_input, "k": k, "whole_words": not all_tokens}
    if data is None or image is not None or messages is not None:
        conversation = messages_of(image, question, messages)
        wanted = [word.strip() for word in (find or "").split(",") if word.strip()]
        _lens_of_image(models, conversation, {**options, "find": wanted}, dtype, output)
    if data is not None:
        from llavit.starter.truth import read_truth

        shown = read_truth(data, [name.strip() for name in (split or "val,test").split(",")])
        _lens_of_data(models, shown[:limit], options, dtype, output)


def _lens_of_image(
    models: Sequence[str],
    conversation: list[dict[str, Any]],
    options: dict[str, Any],
    dtype: Dtype,
    output: Path,
) -> None:
    from llavit.inspect.lens import vocabulary_lens

    results = look_at(
        models,
        lambda model, processor, name: vocabulary_lens(model, processor, conversation, name=name, **options),
        dtype,
    )
    columns = [(found.model, {view: found.common(view, 5) for view in found.views}) for found in results]
    print_table(
        "most often the nearest word",
        ["view", *(name for name, _ in columns)],
        [
            [view, *(", ".join(f"{word} x {n}" for word, n in common.get(view, [])) for _, common in columns)]
            for view in dict.fromkeys(view for found in results for view in found.views)
        ],
    )
    finish(results, output)


def _lens_of_data(
    models: Sequence[str], shown: Any, options: dict[str, Any], dtype: Dtype, output: Path
) -> None:
    from llavit.inspect.naming import naming_figure, naming_shares, percent
    from llavit.inspect.report import figure_html

    results = look_at(
        models,
        lambda model, processor, name: naming_shares(model, processor, shown, name=name, **options),
        dtype,
    )
    for found in results:
        print_table(
            f"{found.model}: % of patches of which one of {options['k']} words names the object",
            ["view", "at the patch", "chance", "in the picture", "chance"],
            [
                [
                    row["view"],
                    *(percent(row[key]) for key in ("patch", "patch_chance", "picture", "picture_chance")),
                ]
                for row in found.rows()
            ],
        )
    finish(
        results, output, summary=figure_html(naming_figure(results), "all models") if len(results) > 1 else ""
    )


@inspect_app.command()
@reports_errors
def mask(
    models: Models,
    messages: MessagesOption = None,
    image: ImageOption = None,
    question: QuestionOption = None,
    attention: Annotated[
        str | None,
        typer.Option(
            help="Attention implementation: sdpa, eager, flex_attention; the model's own if not given."
        ),
    ] = None,
    dtype: DtypeOption = Dtype.auto,
    output: Output = OUTPUT,
) -> None:
    """Show which token sees which, recorded in the attention function; say if visual attention is bidirectional."""
    conversation = messages_of(image, question, messages)
    from rich.console import Console

    from llavit.inspect.mask import attention_mask

    def look(model: Any, processor: Any, name: str) -> Any:
        return attention_mask(model, processor, conversation, name=name)

    options = {} if attention is None else {"attn_implementation": attention}
    results = look_at(models, look, dtype, **options)
    width = Console().width
    for found in results:
        typer.echo(f"{found.model}\n")
        for number in range(len(found.layers)):
            typer.echo(found.drawing(number, width) + "\n")
        typer.echo("\n".join(found.sentences()) + "\n")
    finish(results, output)


def print_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; what a model wrote in it steers neither terminal nor markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(Text(head))
    for row in rows:
        table.add_row(*(Text("".join(c if c.isprintable() else "\ufffd" for c in cell)) for cell in row))
    Console(highlight=False).print(table)
