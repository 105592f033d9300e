"""Shows records as the model will see them: images, tokens, and in colour those that are learned."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from llavit.data.dataset import Style
from llavit.data.readers import Reader
from llavit.model.images import load_image

_THUMBNAIL = 320  # pixels
_CONTEXT = 6  # tokens decoded together with the next one: some tokenizers write a space only between two
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
"""Control characters to their pictures: a record must not steer the terminal."""
_REPLACEMENT = "\ufffd"  # what a decoder gives for a part of a character


@dataclass(frozen=True)
class Piece:
    """A stretch of what the model reads: mostly one token, all tokens of an image, or those of one character.

    Attributes:
        text: as the tokenizer decodes it; `<image>` for an image.
        ids: of its tokens.
        learned: whether they have labels.
        image: number of the image in the record, if it is one.
    """

    text: str
    ids: tuple[int, ...]
    learned: bool
    image: int | None = None


@dataclass(frozen=True)
class Preview:
    """One record as the model will see it, or why it cannot.

    Attributes:
        name: of the record.
        pieces: what the model reads, in order.
        pictures: the images, made small.
        sizes: (width, height) of the images, in pixels, upright.
        error: what is wrong with the record, if it is bad.
    """

    name: str
    pieces: list[Piece] = field(default_factory=list)
    pictures: list[Image.Image] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    error: str | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the record has."""
        return sum(len(piece.ids) for piece in self.pieces)

    @property
    def learned(self) -> int:
        """How many of them are learned."""
        return sum(len(piece.ids) for piece in self.pieces if piece.learned)

    @property
    def prompt(self) -> str:
        """The rendered conversation, `<image>` standing for each image."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def data_urls(self) -> list[str]:
        """The small pictures as `data:` URLs."""
        urls = []
        for picture in self.pictures:
            out = io.BytesIO()
            picture.save(out, "JPEG", quality=85)
            urls.append("data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode())
        return urls


def preview_records(
    reader: Reader,
    processor: Any,
    indices: Iterable[int],
    *,
    max_length: int | None = None,
    style: Style = "chat",
) -> Iterator[Preview]:
    """Encode records as training does, and keep what there is to see.

    Args:
        reader: of `open_reader`.
        processor: a `LlavitProcessor`.
        indices: which records.
        max_length: where training cuts, in tokens.
        style: how training renders.

    Example:
        for shown in preview_records(reader, processor, range(8)):
            print(shown.name, shown.learned, "of", shown.tokens, "tokens are learned")
    """
    for index in indices:
        name = reader.name(index)
        try:
            sample = reader.sample(index)
            pictures = [load_image(image, name) for image in sample.images]
            encoded = processor.encode(
                sample.messages, return_labels=True, max_length=max_length, style=style, name=name
            )
        except (ValueError, OSError) as error:
            yield Preview(name, error=str(error))
            continue
        sizes = [picture.size for picture in pictures]
        for picture in pictures:
            picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        yield Preview(name, pieces(processor, encoded), pictures, sizes)


def pieces(processor: Any, encoded: dict[str, torch.Tensor]) -> list[Piece]:
    """Cut encoded tokens into pieces that can be read.

    Args:
        processor: whose `encode` made them.
        encoded: `input_ids`, `image_ids` and `labels`, each (l,).

    Returns:
        pieces whose tokens, joined, are the input.

    """
    ids = encoded["input_ids"].tolist()
    image_ids = encoded["image_ids"].tolist()
    learned = [label >= 0 for label in encoded["labels"].tolist()]
    found: list[Piece] = []
    start = 0
    while start < len(ids):
        stop = start + 1
        if image_ids[start] >= 0:
            while stop < len(ids) and image_ids[stop] == image_ids[start]:
                stop += 1
            found.append(
                Piece(processor.image_token, tuple(ids[start:stop]), learned[start], image_ids[start])
            )
        else:
            text = _decoded(processor.tokenizer, ids, image_ids, start, stop)
            # Tokens of bytes: up to four make a character.
            while (
                _REPLACEMENT in text
                and stop < min(len(ids), start + 4)
                and image_ids[stop] < 0
                and learned[stop] == learned[start]
            ):
                stop += 1
                text = _decoded(processor.tokenizer, ids, image_ids, start, stop)
            found.append(Piece(text, tuple(ids[start:stop]), learned[start]))
        start = stop
    return found


def _decoded(tokenizer: Any, ids: list[int], image_ids: list[int], start: int, stop: int) -> str:
    """Decode tokens where they stand."""
    first = max(0, start - _CONTEXT)
    first = next((i + 1 for i in range(start - 1, first - 1, -1) if image_ids[i] >= 0), first)
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(ids[first:start], **options) if first < start else ""
    whole = tokenizer.decode(ids[first:stop], **options)
    return (
        whole.removeprefix(before)
        if whole.startswith(before)
        else tokenizer.decode(ids[start:stop], **options)
    )


def preview_page(shown: Iterable[Preview], title: str) -> str:
    """Make one HTML page that needs no other file.

    Args:
        shown: of `preview_records`.
        title: heading.

    Example:
        >>> bad = Preview("17 (#0)", error="cannot read <b>cat.jpg</b>")
        >>> "cannot read &lt;b&gt;cat.jpg" in preview_page([bad], "data.json")
        True
    """
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template("preview.html.j2").render(title=title, shown=list(shown))


def preview_text(shown: Preview) -> Panel:
    """Make a panel for a terminal, for `rich.print`: what is learned is green.

    Example:
        >>> print(preview_text(Preview("17 (#0)", error="cannot read cat.jpg")).title)
        17 (#0)
    """
    if shown.error is not None:
        return Panel(Text(shown.error, style="red"), title=Text(shown.name), title_align="left")
    text = Text()
    for piece in shown.pieces:
        if piece.image is not None:
            text.append(f"[image {piece.image + 1}: {len(piece.ids)} tokens]", style="cyan")
        else:
            text.append(piece.text.translate(_VISIBLE), style="bold green" if piece.learned else "")
    sizes = "".join(f", image {i} {w} x {h}" for i, (w, h) in enumerate(shown.sizes, start=1))
    about = Text(f"{shown.tokens} tokens, {shown.learned} learned (green){sizes}", style="dim")
    return Panel(Group(text, about), title=Text(shown.name), title_align="left")
