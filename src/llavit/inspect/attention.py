"""From a word of an answer to the patches that the LLM looked at when it wrote it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from llavit.inspect.inputs import before_answer
from llavit.inspect.weights import attention_weights
from llavit.model.masks import TEXT

# A run of letters and digits, with what ties a word together; a letter of a script without spaces; or a sign.
_WORD = re.compile(
    "[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
    "|[^\\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+(?:['’.-][^\\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+)*"
    "|[^\\w\\s]"
)


@dataclass(frozen=True)
class Word:
    """A word of an answer.

    Attributes:
        text: the word.
        start: of its first character in the answer.
        tokens: numbers of its tokens in the answer.
    """

    text: str
    start: int
    tokens: range


def answer_words(tokenizer: Any, token_ids: Sequence[int]) -> tuple[str, list[Word]]:
    """Return an answer's text and its words, each with the tokens that write it.

    Args:
        tokenizer: of the model.
        token_ids: of the answer, as generated; special tokens write nothing.

    Example:
        >>> class Bytes:
        ...     def decode(self, ids, skip_special_tokens):
        ...         return bytes(ids).decode(errors="replace")
        >>> text, words = answer_words(Bytes(), list("A café.".encode()))
        >>> [(word.text, word.start, word.tokens) for word in words]
        [('A', 0, range(0, 1)), ('café', 2, range(2, 7)), ('.', 6, range(7, 8))]
    """
    ends, text = [], ""
    for count in range(1, len(token_ids) + 1):
        decoded = tokenizer.decode(list(token_ids[:count]), skip_special_tokens=True)
        # A character over several tokens shows as U+FFFD until it is whole.
        text = decoded if count == len(token_ids) or not decoded.endswith("\ufffd") else text
        ends.append(len(text))
    words = []
    for match in _WORD.finditer(text):
        first = next(i for i, end in enumerate(ends) if end > match.start())
        last = next(i for i, end in enumerate(ends) if end >= match.end())
        tokens = range(_first_of_character(ends, first), last + 1)
        words.append(Word(match.group(), match.start(), tokens))
    return text, words


def _first_of_character(ends: list[int], token: int) -> int:
    """Go back over tokens that wrote nothing yet of the character that `token` completes."""
    while token and ends[token - 1] == (ends[token - 2] if token > 1 else 0):
        token -= 1
    return token


def answer_attention(
    model: Any,
    processor: Any,
    messages: list[dict[str, Any]],
    answer: str | Sequence[int],
    *,
    token: int | Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    average: bool = True,
    position: Literal["predicting", "token"] = "predicting",
) -> list[np.ndarray]:
    """Return how much a token of an answer attends to each patch of each image.

    The weights are those of the softmax, exact under any attention implementation; over all tokens, text included, they
    sum to 1, so that a map's sum says what share of its attention the token gave to the image.

    Args:
        model: a LLaVA or LLaViT of this package.
        processor: that of the model.
        messages: the conversation up to the answer; images in it as pictures or paths.
        answer: its token ids as generated; or its text, which is tokenised anew.
        token: number of the token in the answer; several are averaged; all of them if not given.
        layers: of the LLM, from 0, negative ones from the end; all if not given.
        average: over layers and heads.
        position: "predicting" looks from the position before the token, where the model decided on it; "token" from
            the token itself, when it was read.

    Returns:
        for each image in reading order a float32 array: (h, w) patches, or (layers, heads, h, w) without `average`.

    Raises:
        ValueError: no image in the conversation, or it has an answer already; an empty answer; a token or layer that
            there is not; visual tokens that are no grid of patches.

    Example:
        ```python
        (patches_hw,) = answer_attention(model, processor, messages, "A red car.", token=1, layers=range(10, 20))
        ```
    """
    if before_answer(messages)[1] is not None:
        raise ValueError(
            "expected a conversation up to the answer, got one that ends with the assistant's turn: leave that out"
        )
    encoded = processor.encode(messages, add_generation_prompt=True, name="conversation")
    if "pixel_values" not in encoded:
        raise ValueError(
            "expected a conversation with at least one image, got none: there are no patches to look at"
        )
    ids = _answer_ids(processor, answer)
    tokens = [token] if isinstance(token, int) else list(range(len(ids)) if token is None else token)
    for number in tokens:
        if not 0 <= number < len(ids):
            raise ValueError(
                f"token {number}: the answer has {len(ids)} tokens, expected 0 to {len(ids) - 1}"
            )
    if not tokens:
        raise ValueError("token: expected at least one, got none")
    prompt = len(encoded["input_ids"])
    rows = [prompt + number - (position == "predicting") for number in tokens]
    end = max(rows) + 1  # what comes later changes nothing
    written = torch.tensor(ids, dtype=encoded["input_ids"].dtype)
    inputs = {
        "input_ids": torch.cat([encoded["input_ids"], written])[:end],
        "image_ids": torch.nn.functional.pad(encoded["image_ids"], (0, len(ids)), value=TEXT)[:end],
        "pixel_values": encoded["pixel_values"],
    }
    weights_nhl = attention_weights(model, inputs, rows, layers).mean(2)
    if average:
        weights_nhl = weights_nhl.mean((0, 1))
    patch = processor.patch_size
    grid = [side // patch for side in encoded["pixel_values"].shape[-2:]]
    images = range(len(encoded["pixel_values"]))
    return [_on_grid(weights_nhl[..., inputs["image_ids"] == image], grid, image) for image in images]


def seen_box(
    image_processor: Any, width: int, height: int, patch_size: int | None = None
) -> tuple[float, float, float, float]:
    """Return which part of a picture a model sees: (left, top, right, bottom) in shares of its width and height.

    An image processor that cuts out the middle leaves the margins unseen; one that pads, also to a square first as
    LLaVA-1.5 does, reaches beyond 0 and 1. A tower whose patches do not divide the image, as SigLIP's of 14 pixels do
    not divide 384, leaves the rest at the right and at the bottom unseen.

    Args:
        image_processor: of the model.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        patch_size: of the tower, in pixels: the patches of `answer_attention` then divide the box. If not given, the
            box is all that the image processor passes on.

    Example:
        >>> from transformers import CLIPImageProcessorPil
        >>> crops = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
        >>> seen_box(crops, width=200, height=100)
        (0.25, 0.0, 0.75, 1.0)
    """
    size = image_processor.size
    if getattr(image_processor, "do_pad", False) and hasattr(image_processor, "pad_to_square"):
        side = max(width, height)
        left, top = (side - width) // 2, (side - height) // 2
        box = _seen_of_whole(image_processor, size, side, side, patch_size)
        return (
            (box[0] * side - left) / width,
            (box[1] * side - top) / height,
            (box[2] * side - left) / width,
            (box[3] * side - top) / height,
        )
    return _seen_of_whole(image_processor, size, width, height, patch_size)


def _seen_of_whole(
    image_processor: Any, size: Any, width: int, height: int, patch_size: int | None
) -> tuple[float, float, float, float]:
    """Return what resizing, cutting out the middle and whole patches leave of a picture."""
    shown_w, shown_h = float(width), float(height)
    if getattr(image_processor, "do_resize", True):
        shortest = size.get("shortest_edge")
        if shortest:
            scale = shortest / min(width, height)
            shown_w, shown_h = width * scale, height * scale
        elif size.get("height") and size.get("width"):
            shown_w, shown_h = float(size["width"]), float(size["height"])
    given_w, given_h = shown_w, shown_h
    if getattr(image_processor, "do_center_crop", False):
        given_w, given_h = image_processor.crop_size["width"], image_processor.crop_size["height"]
    left, top = 0.5 - given_w / shown_w / 2, 0.5 - given_h / shown_h / 2
    if patch_size is not None:
        given_w, given_h = (patch_size * int((side + 1e-6) // patch_size) for side in (given_w, given_h))
    return left, top, left + given_w / shown_w, top + given_h / shown_h


def as_seen(picture: Image.Image, processor: Any) -> Image.Image:
    """Cut out what a model sees of a picture (`seen_box`), 448 pixels at its longer side; patches divide it evenly.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import CLIPImageProcessorPil
        >>> crops = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
        >>> as_seen(Image.new("RGB", (200, 100)), SimpleNamespace(image_processor=crops, patch_size=4)).size
        (448, 448)
    """
    left, top, right, bottom = seen_box(processor.image_processor, *picture.size, processor.patch_size)
    width, height = picture.size
    seen = picture.crop(
        (round(left * width), round(top * height), round(right * width), round(bottom * height))
    )
    scale = 448 / max(seen.size)
    return seen.resize([max(1, round(scale * side)) for side in seen.size], Image.Resampling.BICUBIC)


def _answer_ids(processor: Any, answer: str | Sequence[int]) -> list[int]:
    ids = (
        processor.tokenizer.encode(answer, add_special_tokens=False)
        if isinstance(answer, str)
        else list(answer)
    )
    if not ids:
        raise ValueError("answer: expected at least one token, got none")
    return ids


def _on_grid(weights_v: torch.Tensor, grid: list[int], image: int) -> np.ndarray:
    """Lay (..., v) weights on the patches; a CLS token before them is left out."""
    height, width = grid
    extra = weights_v.shape[-1] - height * width
    if extra not in (0, 1):
        raise ValueError(
            f"image {image}: expected {height} x {width} visual tokens, one for each patch, got {weights_v.shape[-1]}"
        )
    return weights_v[..., extra:].unflatten(-1, (height, width)).numpy()
