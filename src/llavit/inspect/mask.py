"""Which token may see which: from the mask that reaches the attention function, and from what that does with it.

A configuration says what is wanted. Here the model runs, and in each layer two things are noted: the mask as the
attention function receives it (none, a tensor, flex_attention's BlockMask), and what the function makes of it. For
that it is called once more with the same mask on queries and keys of zeros, whose weights are equal over all visible
tokens, and with values that are unit vectors: the result is the table of who sees whom. A backend that drops a mask
in silence is found this way.

Shapes: l sequence, m distinct masks; h heads, g heads of keys, e width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llavit.inspect.mask_page import drawing, mask_figure, mask_html
from llavit.inspect.mask_words import describe, verdict
from llavit.inspect.report import Analysis
from llavit.inspect.running import around_attention, batch_of
from llavit.model.encoding import evaluating, uncompiled
from llavit.model.masks import TEXT

_CAUSAL_WITHOUT_MASK = ("sdpa", "documents", "flash")
"""Backends that are causal if they get no mask; eager and flex_attention then hide nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask(Analysis):
    """Who sees whom in a conversation, in each layer of the LLM.

    Attributes:
        backend: the attention implementation that ran.
        tokens: what each of the l tokens writes.
        image_l: (l,) number of the image that a token belongs to, -1 for text.
        sees_mll: (m, l, l) bool: row sees column; the distinct ones of the layers.
        said_mll: (m, l, l) bool: what the mask says that the attention function was given.
        layers: of each distinct mask, numbers from 0.
        kinds: layer types of each, as the LLM's configuration calls them.
        forms: what the attention function was given in each: "no mask", "bool tensor (1, 1, 60, 60)", "BlockMask".
        configured: whether the model's configuration asks for bidirectional visual attention.
    """

    NAME = "mask"
    TITLE = "Which token sees which"
    ABOUT = (
        "Rows see columns. Recorded while the model ran, in its attention function; no setting is believed. Blue: "
        "text, and visual tokens that look at text. Orange: visual tokens of one image, dark to a later one."
    )

    backend: str
    tokens: tuple[str, ...]
    image_l: np.ndarray
    sees_mll: np.ndarray
    said_mll: np.ndarray
    layers: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]
    forms: tuple[str, ...]
    configured: bool

    @property
    def bidirectional(self) -> bool | None:
        """Whether all visual tokens of an image see each other in every layer; None without an image of two tokens."""
        states = {verdict(sees, self.image_l) for sees in self.sees_mll}
        return None if states == {"none"} else states == {"on"}

    def sentences(self) -> list[str]:
        """Say it in words.

        Example:
            ```python
            print("\\n".join(attention_mask(model, processor, messages).sentences()))
            ```
        """
        return describe(self)

    def drawing(self, number: int = 0, width: int = 100) -> str:
        """Draw one of the distinct masks in letters and blocks; token by token where that is no wider than `width`."""
        return drawing(self, number, width)

    def facts(self) -> dict[str, Any]:
        """Return settings and findings, the sentences among them."""
        return {**super().facts(), "bidirectional": self.bidirectional, "sentences": self.sentences()}

    def figure(self) -> Any:
        """Draw each distinct mask."""
        return mask_figure(self)

    def body(self) -> str:
        """Return sentences and drawings."""
        return mask_html(self)


@torch.no_grad()
def attention_mask(
    model: Any, processor: Any, messages: list[dict[str, Any]], *, name: str = "model"
) -> Mask:
    """Record who sees whom while a model reads a conversation.

    Args:
        model: a LLaVA or LLaViT of this package, with any attention implementation.
        processor: that of the model.
        messages: a conversation, with images or without, as pictures or paths.
        name: what to call the model.

    Raises:
        ValueError: the LLM has an attention layer that transformers' attention functions do not run.

    Example:
        ```python
        mask = attention_mask(model, processor, one_image("cat.jpg"))
        print(mask.bidirectional, mask.backend)
        print(mask.drawing())
        ```
    """
    asks = not messages or messages[-1]["role"] != "assistant"
    encoded = processor.encode(messages, add_generation_prompt=asks)
    seen = recorded_masks(model, encoded)
    ids = encoded["input_ids"]
    config = model.config.llm  # without types of its own, all its layers have the window, if there is one
    kind = "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
    kinds = getattr(config, "layer_types", None) or [kind] * len(seen)
    groups: dict[Any, list[int]] = {}
    for layer, found in enumerate(seen):
        key = (found.sees.tobytes(), found.said.tobytes(), found.form, kinds[layer])
        groups.setdefault(key, []).append(layer)
    firsts = [seen[layers[0]] for layers in groups.values()]
    return Mask(
        model=name,
        settings={"dtype": str(model.dtype), "prompt": processor.render(messages, asks)},
        backend=seen[0].backend,
        tokens=tuple(processor.tokenizer.batch_decode([[i] for i in ids.tolist()])),
        image_l=encoded["image_ids"].numpy() if "image_ids" in encoded else np.full(len(ids), TEXT),
        sees_mll=np.stack([found.sees for found in firsts]),
        said_mll=np.stack([found.said for found in firsts]),
        layers=tuple(tuple(layers) for layers in groups.values()),
        kinds=tuple(key[3] for key in groups),
        forms=tuple(found.form for found in firsts),
        configured=bool(getattr(model.config, "bidirectional_visual_attention", False)),
    )


@dataclass(frozen=True)
class Recorded:
    """What one layer's attention function was given and did: (l, l) bool, row sees column."""

    backend: str
    form: str
    said: np.ndarray
    sees: np.ndarray


@torch.no_grad()
def recorded_masks(model: Any, encoded: Mapping[str, torch.Tensor]) -> list[Recorded]:
    """Record each layer of the LLM in one pass over a conversation.

    Args:
        model: see `attention_mask`.
        encoded: as `LlavitProcessor.encode` gives it.

    Raises:
        ValueError: see `attention_mask`.

    Example:
        ```python
        recorded_masks(model, processor.encode(messages))[0].sees.any()
        ```
    """
    llm = model.model.language_model
    ours = {id(module) for module in llm.modules()}
    found: dict[int, Recorded] = {}

    def record(
        base: Callable[..., Any], backend: str, module: Any, q: Any, k: Any, v: Any, mask: Any, **kwargs: Any
    ) -> Any:
        if id(module) in ours:
            length = q.shape[2]
            causal = kwargs.get("is_causal", getattr(module, "is_causal", True))
            said = read_mask(mask, length, backend, causal, kwargs.get("sliding_window"))
            sees = _probe(base, module, q, k, v, mask, **kwargs)
            found[module.layer_idx] = Recorded(backend, _form(mask), said, sees)
        return base(module, q, k, v, mask, **kwargs)

    with around_attention(record), evaluating(model), uncompiled(model):
        model.model(**batch_of(model, encoded), use_cache=False)
    missing = [layer for layer in range(len(llm.layers)) if layer not in found]
    if missing:
        raise ValueError(
            f"layers {missing}: their attention is not run by an attention function of transformers"
        )
    return [found[layer] for layer in range(len(llm.layers))]


def read_mask(
    mask: Any,
    length: int,
    backend: str = "sdpa",
    is_causal: bool | None = True,
    sliding_window: int | None = None,
) -> np.ndarray:
    """Return what a mask says: (l, l) bool, row sees column.

    Args:
        mask: as an attention function gets it: None, a bool or additive tensor (1, 1, l, l), a padding mask (1, l), or
            flex_attention's BlockMask.
        length: of the sequence.
        backend: name of the implementation, which says what None means.
        is_causal: of the attention module.
        sliding_window: what a layer tells its attention function; flash attention makes its mask of it, for the others
            it is in the mask.

    Raises:
        ValueError: something else.

    Example:
        >>> read_mask(None, 2, "sdpa").tolist(), read_mask(None, 2, "eager").tolist()
        ([[True, False], [True, True]], [[True, True], [True, True]])
    """
    if mask is not None and not isinstance(mask, torch.Tensor) and hasattr(mask, "mask_mod"):
        from torch.nn.attention.flex_attention import create_mask

        device = mask.kv_num_blocks.device
        return create_mask(mask.mask_mod, 1, 1, length, length, device=device)[0, 0].cpu().numpy()
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise ValueError(f"attention mask: expected None, a tensor or a BlockMask, got {type(mask).__name__}")
    implied = np.ones((length, length), bool)
    if is_causal is not False and any(word in backend for word in _CAUSAL_WITHOUT_MASK):
        implied = np.tril(implied)
        if sliding_window is not None and "flash" in backend:
            implied = np.triu(implied, 1 - sliding_window)
    if mask is None:
        return implied
    if mask.ndim == 2:  # which tokens are no padding, as flash attention takes it
        return implied & mask[:1, :length].bool().cpu().numpy()
    if mask.ndim != 4:
        raise ValueError(f"attention mask: expected 2 or 4 dimensions, got shape {tuple(mask.shape)}")
    shown = mask[0, 0, :length, :length]
    seen = shown if shown.dtype == torch.bool else shown > torch.finfo(shown.dtype).min / 2
    return seen.cpu().numpy()


def _form(mask: Any) -> str:
    if mask is None:
        return "no mask"
    if isinstance(mask, torch.Tensor):
        return f"{str(mask.dtype).removeprefix('torch.')} tensor {tuple(mask.shape)}"
    return type(mask).__name__


def _probe(
    base: Callable[..., Any],
    module: Any,
    query_hle: torch.Tensor,
    key_gle: torch.Tensor,
    value_gle: torch.Tensor,
    mask: Any,
    **kwargs: Any,
) -> np.ndarray:
    """Ask an attention function itself: equal scores, unit vectors as values; as many tokens at a time as they hold."""
    zeros, (length, width) = (torch.zeros_like(query_hle), torch.zeros_like(key_gle)), value_gle.shape[2:]
    columns = []
    for start in range(0, length, width):
        units = torch.zeros_like(value_gle)
        places = torch.arange(start, min(start + width, length), device=units.device)
        units[:, :, places, places - start] = 1
        weights = base(module, *zeros, units, mask, **kwargs)[0]  # (1, l, h, e)
        columns.append((weights[0].float().amax(1) > 0)[:, : len(places)])
    return torch.cat(columns, 1).cpu().numpy()
