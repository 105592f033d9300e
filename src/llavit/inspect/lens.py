"""The vocabulary lens: visual tokens read as words, at the input and behind every layer.

The paper reads visual tokens through the vocabulary to ask whether the LLM treats an image as if it were text: at the
input by the nearest word embeddings, at the output by the LLM's own head.

Shapes: n views (the input, or behind a layer), v visual tokens, k words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from llavit.inspect.attention import as_seen
from llavit.inspect.lens_page import lens_figure, lens_html, shown
from llavit.inspect.report import Analysis
from llavit.inspect.running import batch_of, hidden_states
from llavit.inspect.vocabulary import Vocabulary
from llavit.inspect.weights import chosen_layers
from llavit.model.images import load_image, message_images

INPUT = "input"
"""The view before the first layer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lens(Analysis):
    """The nearest words of every visual token of a conversation.

    Attributes:
        views: "input" or "layer 0", "layer 1", ...: where it was looked.
        ids_nvk: (n, v, k) token ids, nearest first.
        scores_nvk: (n, v, k) cosines at the input, probabilities behind layers.
        image_v: (v,) number of the image that each token belongs to.
        text: what each of the tokens writes, by id.
        grids: rows and columns of patches of each image; a CLS token before them is a token but no patch.
        pictures: each image as the model sees it.
        find: words that are looked for.
        found_nvk: (n, v, k) whether a word is one of them.
    """

    NAME = "lens"
    TITLE = "Vocabulary lens"
    ABOUT = (
        "The nearest word of each visual token. At the input: the word embedding of the largest cosine. Behind a "
        "layer: the likeliest word by the LLM's own final norm and head. Hold the pointer over a patch for more words."
    )

    views: tuple[str, ...]
    ids_nvk: np.ndarray
    scores_nvk: np.ndarray
    image_v: np.ndarray
    text: dict[int, str]
    grids: tuple[tuple[int, int], ...]
    pictures: tuple[Image.Image, ...] = ()
    find: tuple[str, ...] = ()
    found_nvk: np.ndarray

    def words(self, view: str, image: int = 0) -> list[list[list[str]]]:
        """Return rows of patches, each with its words as they are written, nearest first.

        Raises:
            ValueError: there is no such view or image.

        Example:
            ```python
            lens.words("layer 20")[0][3]  # of the fourth patch of the first row
            ```
        """
        number = self._number(view)
        if not 0 <= image < len(self.grids):
            raise ValueError(f"image {image}: there are {len(self.grids)}")
        rows, columns = self.grids[image]
        ids_hwk = self.patches(self.ids_nvk, image)[number].reshape(rows, columns, -1)
        return [[[self.text[int(i)] for i in words] for words in row] for row in ids_hwk]

    def common(self, view: str, count: int = 8, image: int | None = None) -> list[tuple[str, int]]:
        """Return the words that are nearest to most patches, with how many.

        Args:
            view: one of `views`.
            count: how many words.
            image: of which image; of all if not given.

        Raises:
            ValueError: there is no such view.

        Example:
            ```python
            lens.common("input")  # [("the", 12), ...]
            ```
        """
        images = range(len(self.grids)) if image is None else [image]
        ids = np.concatenate([self.patches(self.ids_nvk, each)[self._number(view), :, 0] for each in images])
        return Counter(shown(self.text[int(i)]) for i in ids).most_common(count)

    def _number(self, view: str) -> int:
        if view not in self.views:
            raise ValueError(f"view {view!r}: expected one of {', '.join(self.views)}")
        return self.views.index(view)

    def patches(self, values_nv: np.ndarray, image: int) -> np.ndarray:
        """Take the patches of an image, without a CLS token: (n, patches, ...)."""
        rows, columns = self.grids[image]
        return values_nv[:, np.flatnonzero(self.image_v == image)[-rows * columns :]]

    def figure(self) -> Any:
        """Draw the first image with the words on it, at the input and behind up to four layers, spread evenly."""
        return lens_figure(self)

    def body(self) -> str:
        """Return each image with a word on every patch and a slider over views."""
        return lens_html(self)

    def facts(self) -> dict[str, Any]:
        """Return what `Analysis.facts` does, without the pictures, which the page shows."""
        return {key: value for key, value in super().facts().items() if key != "pictures"}


def vocabulary_lens(
    model: Any,
    processor: Any,
    messages: list[dict[str, Any]],
    *,
    layers: Sequence[int] | None = None,
    at_input: bool = True,
    k: int = 5,
    whole_words: bool = True,
    find: Iterable[str] = (),
    name: str = "model",
) -> Lens:
    """Read every visual token of a conversation as words.

    Words behind an image change nothing, as no visual token sees them; words before it may.

    Args:
        model: a LLaVA or LLaViT of this package, of any LLM family, with tied or untied head.
        processor: that of the model.
        messages: a conversation with images, as pictures or paths.
        layers: of the LLM, from 0, negative ones from the end; all if not given.
        at_input: look at the input as well.
        k: how many words.
        whole_words: admit only tokens of letters; else every token that is not special, spaces and signs too.
        find: words to look for: patches whose k words hold one of them are marked. A word that is no token is found by
            the token with which it begins (`Vocabulary.naming`); `settings["found as"]` and the page say by which.
        name: what to call the model.

    Returns:
        views x visual tokens x k words, with scores.

    Raises:
        ValueError: no image in the conversation, no such layer, nowhere to look, or a k that is not 1 or more.

    Example:
        ```python
        lens = vocabulary_lens(model, processor, one_image("cat.jpg"), k=5)
        print(lens.common("layer 20"))
        lens.save("runs/inspect")
        ```
    """
    pictures = [load_image(image, "conversation") for image in message_images(messages, "conversation")]
    if not pictures:
        raise ValueError(
            "expected a conversation with at least one image, got none: there are no visual tokens to read"
        )
    chosen = [] if layers is not None and not len(layers) else chosen_layers(model, layers)
    encoded = processor.encode(messages, add_generation_prompt=True)
    words = Vocabulary(model, processor, whole_words)
    views, (ids_nvk,), (scores_nvk,) = read_words(model, words, [encoded], chosen, at_input, k)
    looked_for = tuple(find)
    naming = words.naming({word: [word] for word in looked_for})
    image_ids = encoded["image_ids"]
    height, width = (side // processor.patch_size for side in encoded["pixel_values"].shape[-2:])
    for image in range(len(pictures)):
        extra = int((image_ids == image).sum()) - height * width
        if extra not in (0, 1):
            raise ValueError(f"image {image}: expected {height} x {width} visual tokens, got {extra} more")
    return Lens(
        model=name,
        settings={
            "k": k,
            "whole words": whole_words,
            "dtype": str(model.dtype),
            "prompt": processor.render(messages),
            "found as": {word: sorted({words.text[i] for i in ids}) for word, ids in naming.items()},
        },
        views=views,
        ids_nvk=ids_nvk,
        scores_nvk=scores_nvk,
        image_v=image_ids[image_ids >= 0].numpy(),
        text={int(i): words.text[int(i)] for i in np.unique(ids_nvk)},
        grids=((height, width),) * len(pictures),
        pictures=tuple(as_seen(picture, processor) for picture in pictures),
        find=looked_for,
        found_nvk=np.isin(ids_nvk, [i for ids in naming.values() for i in ids]),
    )


def read_words(
    model: Any,
    words: Vocabulary,
    encoded: Sequence[Mapping[str, torch.Tensor]],
    layers: Sequence[int],
    at_input: bool,
    k: int,
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Read the visual tokens of conversations that are equally long and have their images in the same places.

    Text behind the last visual token is left out: no visual token sees it.

    Args:
        model: see `vocabulary_lens`.
        words: its vocabulary.
        encoded: b conversations, as `LlavitProcessor.encode` gives them.
        layers: numbers from 0.
        at_input: look at the input as well.
        k: how many words.

    Returns:
        the names of n views; (b, n, v, k) token ids, and (b, n, v, k) scores.

    Raises:
        ValueError: nowhere to look.
    """
    if not layers and not at_input:
        raise ValueError("layers: expected at least one, or the input, got neither")
    visual_l = encoded[0]["image_ids"] >= 0
    end = int(visual_l.nonzero()[-1]) + 1
    cut = [{key: v[:end] if key.endswith("_ids") else v for key, v in each.items()} for each in encoded]
    at_start, behind = hidden_states(model, batch_of(model, *cut), layers)
    places = visual_l[:end].to(at_start.device)
    looks = [words.nearest_embeddings(at_start[:, places].flatten(0, 1), k)] if at_input else []
    looks += [words.nearest_outputs(state[:, places].flatten(0, 1), k) for state in behind]
    views = ((INPUT,) if at_input else ()) + tuple(f"layer {layer}" for layer in layers)
    ids, scores = (
        np.stack([part.reshape(len(encoded), -1, k) for part in parts], 1)
        for parts in zip(*looks, strict=True)
    )
    return views, ids, scores
