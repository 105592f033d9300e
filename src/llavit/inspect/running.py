"""Running a model to look inside: one batch, hidden states of every layer, and a hand around the attention function.

Shapes: b batch, l sequence, d LLM width, n layers.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llavit.model.encoding import evaluating, in_this_thread, uncompiled


def batch_of(model: Any, *inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make a batch of conversations of equal length, on the model's device.

    Args:
        model: a LLaVA or LLaViT of this package.
        *inputs: of one conversation each, as `LlavitProcessor.encode` gives them, without labels.

    Raises:
        ValueError: conversations of different lengths, which would take padding, or some with images and some without.

    Example:
        ```python
        batch = batch_of(model, processor.encode(messages, add_generation_prompt=True))
        hidden = hidden_states(model, batch)
        ```
    """
    lengths = sorted({len(each["input_ids"]) for each in inputs})
    keys = {frozenset(each) - {"labels"} for each in inputs}
    if len(lengths) != 1 or len(keys) != 1:
        raise ValueError(
            f"expected conversations of one length, all with images or none, got lengths {lengths}"
            + ("" if len(keys) == 1 else " and different fields")
        )
    stacked = {
        key: torch.stack([each[key] for each in inputs])
        for key in ("input_ids", "image_ids")
        if key in inputs[0]
    }
    batch = {key: value.to(model.device) for key, value in stacked.items()}
    for key in ("pixel_values", "image_features"):
        if key in inputs[0]:
            batch[key] = torch.cat([each[key] for each in inputs]).to(model.device, model.dtype)
    if "pixel_values" not in batch and "image_features" not in batch:
        batch.pop("image_ids", None)
    return batch


@torch.no_grad()
def hidden_states(
    model: Any, batch: Mapping[str, torch.Tensor], layers: Sequence[int] | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return what the LLM's first layer reads, and what layers write: the residual stream, before any final norm.

    The model runs as in evaluation, also one that is being trained: without dropout, every token in its place.

    Args:
        model: a LLaVA or LLaViT of this package.
        batch: of `batch_of`.
        layers: of the LLM, numbers from 0, in this order; all if not given.

    Returns:
        (b, l, d) of the input, and (b, l, d) for each layer; in the model's dtype, on its device.

    Example:
        ```python
        at_input, after_layer = hidden_states(model, batch)
        logits = model.lm_head(model.model.language_model.norm(after_layer[-1]))  # those of the model
        ```
    """
    llm = model.model.language_model
    chosen = range(len(llm.layers)) if layers is None else layers
    read: dict[int, torch.Tensor] = {}
    written: dict[int, torch.Tensor] = {}

    def before(module: Any, args: Any, kwargs: Any) -> None:
        read[0] = args[0] if args else kwargs["hidden_states"]

    def after(number: int, module: Any, args: Any, output: Any) -> None:
        written[number] = output[0] if isinstance(output, tuple) else output

    hooks = [llm.layers[0].register_forward_pre_hook(in_this_thread(before), with_kwargs=True)]
    hooks += [
        llm.layers[n].register_forward_hook(in_this_thread(functools.partial(after, n)))
        for n in sorted(set(chosen))
    ]
    try:
        with evaluating(model), uncompiled(model):
            model.model(**batch, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return read[0], [written[number] for number in chosen]


Around = Callable[..., Any]
"""Called as (base, backend, module, query, key, value, mask, **kwargs) in place of the attention function `base`, whose
name is `backend`; returns what that returns."""

_around: ContextVar[tuple[Around, ...]] = ContextVar("llavit_around_attention", default=())
_installing = threading.Lock()
_installed = 0


@contextmanager
def around_attention(function: Around) -> Iterator[None]:
    """Call a function in place of every attention function of transformers, in this thread, while the context lasts.

    The implementation keeps its name, so that the model makes exactly the mask that it always makes; eager attention is
    reached as well. The vision tower's attention comes by too: look at `module`. Contexts may lie in each other: the
    outer one's function then has the inner one's as `base`, so that the inner sees what reaches the attention function.

    Example:
        ```python
        def count(base, backend, module, query, key, value, mask, **kwargs):
            seen.append((backend, None if mask is None else mask.shape))
            return base(module, query, key, value, mask, **kwargs)

        with around_attention(count), uncompiled(model):
            model(**batch)
        ```
    """
    global _installed
    interface = ALL_ATTENTION_FUNCTIONS
    with _installing:
        if not _installed:  # over the class's method, for this one object that all models ask
            ours = functools.partial(_get_interface, type(interface).get_interface, interface)
            vars(interface)["get_interface"] = ours
        _installed += 1
    token = _around.set((*_around.get(), function))
    try:
        yield
    finally:
        _around.reset(token)
        with _installing:
            _installed -= 1
            if not _installed:
                del vars(interface)["get_interface"]


def _get_interface(
    original: Any, interface: Any, attn_implementation: str, default: Callable[..., Any]
) -> Any:
    base = original(interface, attn_implementation, default)
    for function in reversed(_around.get()):
        base = functools.partial(function, base, attn_implementation)
    return base
