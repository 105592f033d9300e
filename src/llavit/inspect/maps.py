"""Attention to look at: from an answer's words to patches and from patch to patch, by layer and head or rolled out.

Everything comes out of one pass over question and answer. Of weights, only those between what is shown are kept.

Shapes: n chosen layers, a heads, w words of the answer, v patches of the image = (rows, columns), l sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from llavit.inspect.attention import Word, answer_words, as_seen
from llavit.inspect.attention_page import maps_figure, maps_html
from llavit.inspect.inputs import before_answer, text_of
from llavit.inspect.report import Analysis
from llavit.inspect.rollout import Rollout
from llavit.inspect.running import batch_of
from llavit.inspect.weights import chosen_layers, watch_attention
from llavit.model.encoding import evaluating
from llavit.model.endings import end_tokens
from llavit.model.images import load_image, message_images
from llavit.model.masks import TEXT


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionMaps(Analysis):
    """Where an answer's words and the image's patches look.

    Weights are those of the softmax, over all tokens of the conversation, so that a map's sum says which share of its
    attention a token gives to the image. Words look from the positions at which the model decided on them.

    Attributes:
        answer: its text.
        words: of the answer.
        word: number of the word that is looked at closely.
        patch: number of the patch that is looked at closely, row by row.
        grid: (rows, columns) of patches.
        layers: numbers of the n layers.
        word_maps: (w, n, rows, columns) from each word to patches, mean over heads.
        word_heads: (n, a, rows, columns) the same of one word, head by head.
        word_rollout: (w, n, rows, columns) shares of patches in what each word was decided on, by attention rollout.
        patch_maps: (n, v, v) from patch (rows) to patch (columns), mean over heads.
        patch_looks: (n, a, rows, columns) from one patch to patches, head by head.
        patch_seen: (n, a, rows, columns) from patches to the one patch.
        patch_rollout: (n, rows, columns) shares of patches in the one patch's state behind each layer.
        full: (n, a, l, l) all weights, if they were asked for.
        tokens: the l tokens as text.
        picture: what the model sees of the image.
    """

    NAME: ClassVar[str] = "attention"
    TITLE: ClassVar[str] = "Attention"
    ABOUT: ClassVar[str] = (
        "Where the words of the answer look in the image when they are decided on, and where a patch looks. A layer's "
        "attention is the mean over its heads; the strongest patch of a map has full colour, and the percentage is "
        "the share of all attention that goes to the image. Rolled out: which patches a state is made of when all "
        "layers up to this one are taken together (Abnar and Zuidema 2020)."
    )

    answer: str
    words: list[str]
    word: int
    patch: int
    grid: tuple[int, int]
    layers: list[int]
    word_maps: np.ndarray
    word_heads: np.ndarray
    word_rollout: np.ndarray
    patch_maps: np.ndarray
    patch_looks: np.ndarray
    patch_seen: np.ndarray
    patch_rollout: np.ndarray
    full: np.ndarray | None = None
    tokens: list[str] = field(default_factory=list)
    picture: Image.Image

    def figure(self) -> Any:
        """Draw the word's and the patch's maps at up to five layers."""
        return maps_figure(self)

    def body(self) -> str:
        """Return words to choose, a slider over layers, heads, and a patch to choose."""
        return maps_html(self)


def attention_maps(
    model: Any,
    processor: Any,
    messages: list[dict[str, Any]],
    answer: str | Sequence[int] | None = None,
    *,
    word: int | str | None = None,
    patch: int | tuple[int, int] | None = None,
    image: int = 0,
    layers: Sequence[int] | None = None,
    keep_all: bool = False,
    max_new_tokens: int = 32,
    name: str = "model",
) -> AttentionMaps:
    """Look at the attention of one question about an image and its answer.

    Args:
        model: a LLaVA or LLaViT of this package, with any attention implementation.
        processor: its processor.
        messages: the conversation; images in it as pictures or paths.
        answer: text or token ids. If not given, that with which the conversation ends, as a record of training data
            does; if it ends with a question, the model's own, greedily decoded.
        word: number of a word of the answer, or the word; that which looks at the image most if not given.
        patch: number, or (row, column); that which the word looks at most (mean over layers) if not given.
        image: which of the conversation's images.
        layers: of the LLM, from 0, negative ones from the end; all if not given.
        keep_all: keep the weights between all tokens as well.
        max_new_tokens: greatest length of an answer of the model's own.
        name: of the model in tables.

    Raises:
        ValueError: no such image, word, patch or layer; an answer without words; visual tokens that are no grid.

    Example:
        ```python
        found = attention_maps(model, processor, one_image("cat.jpg", "What animal is this?"), word="cat")
        found.word_maps[found.word].sum((1, 2))  # share of attention that the image has, layer by layer
        ```
    """
    messages, said = before_answer(messages)
    answer = said if answer is None else answer
    pictures = message_images(messages, "conversation")
    if not -len(pictures) <= image < len(pictures):
        raise ValueError(f"image {image}: the conversation has {len(pictures)} images")
    encoded = processor.encode(messages, add_generation_prompt=True, name="conversation")
    ids = _answer_ids(model, processor, encoded, answer, max_new_tokens)
    text, words = answer_words(processor.tokenizer, ids)
    if not words:
        raise ValueError(f"answer {text!r}: expected at least one word")
    prompt, chosen = len(encoded["input_ids"]), chosen_layers(model, layers)
    inputs = {
        "input_ids": torch.cat([encoded["input_ids"], torch.tensor(ids, dtype=encoded["input_ids"].dtype)]),
        "image_ids": torch.nn.functional.pad(encoded["image_ids"], (0, len(ids)), value=TEXT),
        "pixel_values": encoded["pixel_values"],
    }
    rows, columns = (side // processor.patch_size for side in encoded["pixel_values"].shape[-2:])
    places_v = (inputs["image_ids"] == image % len(pictures)).nonzero().flatten()
    if len(places_v) - rows * columns not in (0, 1):
        raise ValueError(f"image {image}: expected {rows} x {columns} visual tokens, got {len(places_v)}")
    places_v = places_v[len(places_v) - rows * columns :]  # a CLS token before the patches is no patch
    looks = [[prompt + token - 1 for token in each.tokens] for each in words]
    gathered = _Gathered(
        len(inputs["input_ids"]), places_v.to(model.device), looks, chosen, keep_all, model.device
    )
    watch_attention(model, inputs, gathered.look)
    of_words, grid = gathered.words(), (rows, columns)  # (w, n, a, v)
    number = _word(words, word, of_words)
    at = _patch(patch, grid, of_words[number])
    rolled_words, rolled_patches = gathered.rolled()
    patch_looks, patch_seen = _of_patch(model, inputs, places_v.to(model.device), at, chosen)

    def on_grid(weights: np.ndarray) -> np.ndarray:
        return weights.reshape(*weights.shape[:-1], rows, columns)

    return AttentionMaps(
        model=name,
        settings={
            "question": text_of(messages[-1]),
            "attention_implementation": model.model.language_model.config._attn_implementation,
            "dtype": str(model.dtype).removeprefix("torch."),
            "answer_given": answer is not None,
        },
        answer=text,
        words=[each.text for each in words],
        word=number,
        patch=at,
        grid=grid,
        layers=chosen,
        word_maps=on_grid(of_words.mean(2)),
        word_heads=on_grid(of_words[number]),
        word_rollout=on_grid(rolled_words),
        patch_maps=gathered.patches(),
        patch_looks=on_grid(patch_looks),
        patch_seen=on_grid(patch_seen),
        patch_rollout=on_grid(rolled_patches[:, at]),
        full=gathered.full() if keep_all else None,
        tokens=[processor.tokenizer.decode([int(token)]) for token in inputs["input_ids"]],
        picture=as_seen(load_image(pictures[image], "conversation"), processor),
    )


class _Gathered:
    """What is kept of the weights and of the product over layers while the layers run."""

    def __init__(
        self,
        length: int,
        places_v: torch.Tensor,
        looks: list[list[int]],
        layers: list[int],
        keep_all: bool,
        device: Any,
    ):
        self.places_v, self.looks, self.layers, self.keep_all = places_v, looks, layers, keep_all
        self.rollout = Rollout(length, device)
        self._rows = sorted({row for of_word in looks for row in of_word})
        self._of_rows: dict[tuple[int, int], np.ndarray] = {}  # (a, v) by layer and row
        self._means: dict[int, torch.Tensor] = {}  # (l, v) by layer
        self._full: dict[int, list[np.ndarray]] = {}
        self._rolled: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def look(self, layer: int, rows_q: torch.Tensor, weights_hql: torch.Tensor) -> None:
        """Take up a piece of a layer's rows."""
        complete = self.rollout.add(rows_q, weights_hql)
        if layer not in self.layers:
            return
        to_patches_hqv = weights_hql[..., self.places_v]
        first = int(rows_q[0])  # all rows come, in order
        for row in self._rows:
            if first <= row < first + len(rows_q):
                self._of_rows[layer, row] = to_patches_hqv[:, row - first].cpu().numpy()
        means = self._means.setdefault(
            layer, torch.zeros(len(self.rollout.product_ll), len(self.places_v), device=self.places_v.device)
        )
        means[rows_q] = to_patches_hqv.mean(0)
        if self.keep_all:
            self._full.setdefault(layer, []).append(weights_hql.cpu().numpy())
        if complete:
            rolled_lv = self.rollout.product_ll[:, self.places_v]
            of_words = torch.stack([rolled_lv[of_word].mean(0) for of_word in self.looks])
            self._rolled[layer] = of_words.cpu().numpy(), rolled_lv[self.places_v].cpu().numpy()
            self._means[layer] = means[self.places_v].cpu()

    def words(self) -> np.ndarray:
        """Return (w, n, a, v), the mean over each word's tokens."""
        return np.stack(
            [
                [np.mean([self._of_rows[layer, row] for row in of_word], axis=0) for layer in self.layers]
                for of_word in self.looks
            ]
        )

    def rolled(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (w, n, v) of words and (n, v, v) of patches."""
        words, patches = zip(*(self._rolled[layer] for layer in self.layers), strict=True)
        return np.stack(words, 1), np.stack(patches)

    def patches(self) -> np.ndarray:
        """Return (n, v, v), the mean over heads."""
        return np.stack([self._means[layer].numpy() for layer in self.layers])

    def full(self) -> np.ndarray:
        """Return (n, a, l, l)."""
        return np.stack([np.concatenate(self._full[layer], 1) for layer in self.layers])


def _of_patch(
    model: Any, inputs: dict[str, torch.Tensor], places_v: torch.Tensor, patch: int, layers: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, a, v) from one patch to all, and from all to it."""
    place = int(places_v[patch])
    kept: dict[int, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    wanted = places_v.tolist()

    def look(layer: int, rows_q: torch.Tensor, weights_hql: torch.Tensor) -> None:
        looks, seen = kept.setdefault(layer, ([], []))
        looks += [
            weights_hql[:, i][:, places_v].cpu() for i, row in enumerate(rows_q.tolist()) if row == place
        ]
        seen.append(weights_hql[:, :, place].cpu())

    watch_attention(model, inputs, look, wanted, layers)
    looks = np.stack([kept[layer][0][0].numpy() for layer in layers])
    return looks, np.stack([torch.cat(kept[layer][1], 1).numpy() for layer in layers])


@torch.no_grad()
def _answer_ids(
    model: Any, processor: Any, encoded: Any, answer: str | Sequence[int] | None, max_new_tokens: int
) -> list[int]:
    if isinstance(answer, str):
        return processor.tokenizer.encode(answer, add_special_tokens=False)
    if answer is not None:
        return list(answer)
    batch = batch_of(model, encoded)
    with evaluating(model):
        written = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=torch.ones_like(batch["input_ids"]),
            pixel_values=batch["pixel_values"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=processor.tokenizer.pad_token_id,
        )[0, batch["input_ids"].shape[1] :].tolist()
    ends = end_tokens(model.generation_config)
    return [token for token in written if token not in ends]


def _word(words: list[Word], wanted: int | str | None, maps_wnav: np.ndarray) -> int:
    """Find the word that is to be looked at closely."""
    texts = [each.text for each in words]
    if wanted is None:
        share = maps_wnav.sum(-1).mean((1, 2))
        return max(range(len(words)), key=lambda k: (any(c.isalnum() for c in texts[k]), share[k]))
    if isinstance(wanted, str):
        found = [k for k, text in enumerate(texts) if text.lower() == wanted.lower()]
        if not found:
            raise ValueError(f"word {wanted!r}: the answer has {', '.join(texts)}")
        return found[0]
    if not 0 <= wanted < len(words):
        raise ValueError(f"word {wanted}: the answer has {len(words)} words, expected 0 to {len(words) - 1}")
    return wanted


def _patch(wanted: int | tuple[int, int] | None, grid: tuple[int, int], map_nav: np.ndarray) -> int:
    """Find the patch that is to be looked at closely."""
    rows, columns = grid
    if wanted is None:
        return int(map_nav.mean((0, 1)).argmax())
    row, column = divmod(wanted, columns) if isinstance(wanted, int) else wanted
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(f"patch {wanted}: there are {rows} rows of {columns} patches")
    return row * columns + column
