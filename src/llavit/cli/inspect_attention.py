"""`llavit inspect attention`: where the words of an answer and the patches of an image look."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llavit.cli.choices import Dtype
from llavit.cli.errors import reports_errors
from llavit.cli.inspect import (
    OUTPUT,
    DtypeOption,
    ImageOption,
    LayersOption,
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
)


@inspect_app.command()
@reports_errors
def attention(
    models: Models,
    image: ImageOption = None,
    question: QuestionOption = None,
    messages: MessagesOption = None,
    answer: Annotated[
        str | None,
        typer.Option(
            help="What is said to the question; if not given, what --messages end with, else each model's own answer."
        ),
    ] = None,
    word: Annotated[
        str | None,
        typer.Option(
            help="Of the answer, to look at head by head; if not given, the one that looks at the image most."
        ),
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(help="ROW,COLUMN from 0, to look at head by head; if not given, the word's strongest."),
    ] = None,
    layers: LayersOption = None,
    keep_all: Annotated[
        bool,
        typer.Option(
            "--keep-all", help="Keep the weights between all tokens as well: layers x heads x l x l."
        ),
    ] = False,
    dtype: DtypeOption = Dtype.auto,
    output: Output = OUTPUT,
) -> None:
    """Show where an answer's words look in the image, and where patches look: by layer and head, and rolled out."""
    conversation, chosen = messages_of(image, question, messages), numbers(layers)
    place = _place(patch)
    from llavit.inspect.maps import attention_maps

    def look(model: Any, processor: Any, name: str) -> Any:
        return attention_maps(
            model,
            processor,
            conversation,
            answer,
            word=word,
            patch=place,
            layers=chosen,
            keep_all=keep_all,
            name=name,
        )

    results = look_at(models, look, dtype)
    for found in results:
        shares = found.word_maps.sum((2, 3))
        print_table(
            f"{found.model}: share of attention on the image",
            ["word", "mean over layers", "most in layer", "rolled out"],
            [
                [
                    text,
                    f"{share.mean():.1%}",
                    f"{found.layers[share.argmax()]} ({share.max():.1%})",
                    f"{rolled[-1].sum():.1%}",
                ]
                for text, share, rolled in zip(found.words, shares, found.word_rollout, strict=True)
            ],
        )
    finish(results, output)


def _place(text: str | None) -> tuple[int, int] | None:
    """Read "ROW,COLUMN".

    Raises:
        ValueError: something else.

    Example:
        >>> _place("2,3")
        (2, 3)
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"patch {text!r}: expected ROW,COLUMN, such as 2,3")
    return int(parts[0]), int(parts[1])
