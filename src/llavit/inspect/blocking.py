"""Knock-outs: blocking attention between kinds of tokens, or a modality's own projections, while a context lasts.

The mask is changed right before a layer's attention, whatever made it: prompts and cached decoding, padding, sdpa and
eager attention, masks by layer type. Which keys are visual travels with the cache, as one more layer of it, so that
rows may be chosen, copied and cut as the cache's owner likes.

Shapes: b batch, q present tokens, k keys (earlier tokens and present ones).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from llavit.inspect.running import around_attention
from llavit.inspect.weights import chosen_layers
from llavit.model.compat import given_cache, output_cache
from llavit.model.documents import IMPLEMENTATION
from llavit.model.encoding import in_this_thread, uncompiled
from llavit.model.families import FAMILIES, Family
from llavit.model.routing import RoutedLinear

ATTENTION = {
    "visual_to_visual": "visual to visual",
    "bidirectional": "visual to later visual",
    "text_to_visual": "text to visual",
}
"""Kinds of attention that can be blocked, as tables call them.

visual_to_visual: a visual token sees itself and text only. bidirectional: it sees no later visual token, as in a LLaVA.
text_to_visual: text sees text only; what visual tokens see stays.
"""

PROJECTIONS = {
    "visual_q": "visual Q by text Q",
    "visual_k": "visual K by text K",
    "visual_v": "visual V by text V",
    "visual_qkv": "visual QKV by text QKV",
}
"""Projections of visual tokens that can be replaced by those of text, as tables call them."""


@dataclass(frozen=True)
class Block:
    """What is knocked out, and where.

    Attributes:
        what: a key of `ATTENTION` or `PROJECTIONS`.
        layers: of the LLM, from 0, negative ones from the end; all if None.

    Raises:
        ValueError: another kind.

    Example:
        >>> Block("visual_to_visual", range(10, 20)).name
        'visual to visual, layers 10-19'
        >>> Block("visual_v").name
        'visual V by text V'
    """

    what: str
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        known = [*ATTENTION, *PROJECTIONS]
        if self.what not in known:
            raise ValueError(f"block {self.what!r}: expected one of {', '.join(known)}")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))

    @property
    def name(self) -> str:
        """How tables call it."""
        what = (ATTENTION | PROJECTIONS)[self.what]
        if self.layers is None:
            return what
        return f"{what}, layer{'s' if len(self.layers) > 1 else ''} {spans(self.layers)}"


def spans(numbers: Sequence[int]) -> str:
    """Write numbers as ranges.

    Example:
        >>> spans([0, 1, 2, 5, 7, 8])
        '0-2,5,7-8'
    """
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def why_not(model: Any, block: Block) -> str | None:
    """Return why there is nothing to knock out in a model, or None where there is.

    Example:
        ```python
        why_not(llava, Block("visual_v"))  # 'visual tokens have no projections of their own'
        ```
    """
    if block.what in PROJECTIONS and not any(isinstance(module, RoutedLinear) for module in model.modules()):
        return "visual tokens have no projections of their own"
    bidirectional = getattr(model.config, "bidirectional_visual_attention", False)
    if block.what == "bidirectional" and not bidirectional:
        return "visual tokens do not see later ones"
    return None


@contextmanager
def knockout(model: Any, *blocks: Block) -> Iterator[None]:
    """Knock parts out of a model in this thread while the context lasts; several at once.

    Works for prompts and for decoding with a cache that was begun inside, in batches with padding, with `generate` and
    with the evaluation's `Asker`; contexts may lie in each other. Attention is blocked in this thread only: another
    one, also if it is started inside, runs with all of it. Replaced projections are replaced in all threads.

    Args:
        model: a LLaVA or LLaViT of this package, under sdpa or eager attention.
        *blocks: what to knock out.

    Raises:
        ValueError: on entering: no block, a layer that there is not, or a block with nothing to block in this model.
            Inside, when the model runs: another attention implementation, a cache of fixed size or begun outside.

    Example:
        ```python
        with knockout(model, Block("visual_to_visual", range(10, 20))):
            answers = asker.generate(items, pictures, max_new_tokens=8)
        ```
    """
    if not blocks:
        raise ValueError("knockout: expected at least one block, got none")
    plan: dict[int, frozenset[str]] = {}
    swaps: list[tuple[RoutedLinear, Any]] = []
    for block in blocks:
        reason = why_not(model, block)
        if reason:
            raise ValueError(
                f"block {block.name!r}: {reason} in this model, so there is nothing to knock out"
            )
        for layer in chosen_layers(model, block.layers):
            if block.what in ATTENTION:
                plan[layer] = plan.get(layer, frozenset()) | {block.what}
            else:
                swaps += _replacements(model, layer, block.what.removeprefix("visual_"))
    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        for linear, replacement in swaps:
            stack.callback(setattr, linear, "visual", linear.visual)
            linear.visual = replacement(linear)
        if plan:
            stack.enter_context(_Blocking(model, plan).active())
        yield


class _VisualKeys(DynamicLayer):
    """A layer of a cache that holds which of its tokens are visual, (b, 1, k, 1), and goes where the cache goes."""

    def flags(self) -> torch.Tensor:
        """Return (b, k) bool."""
        assert self.keys is not None
        return self.keys[:, 0, :, 0]


@dataclass
class _Pass:
    """What is known of the present forward pass.

    Attributes:
        queries_bq: which present tokens are visual.
        keys_bk: which of all tokens are.
        came: layers whose attention was changed, or had nothing to change.
        masks: those made, by the mask that they were made of and what is blocked in it.
    """

    queries_bq: torch.Tensor
    keys_bk: torch.Tensor
    came: set[int] = field(default_factory=set)
    masks: dict[Any, tuple[Any, Any]] = field(default_factory=dict)


class _Blocking:
    """Changes masks of chosen layers of one model."""

    def __init__(self, model: Any, plan: Mapping[int, frozenset[str]]):
        self.model, self.plan = model.model, plan
        self.signature = inspect.signature(type(model.model).forward)
        attention = FAMILIES.get(model.config.llm.model_type, Family()).attention
        layers = model.model.language_model.layers
        self.layer_of = {id(getattr(layer, attention)): number for number, layer in enumerate(layers)}
        self.present: _Pass | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        hooks = [
            self.model.register_forward_pre_hook(in_this_thread(self._before), with_kwargs=True),
            self.model.register_forward_hook(in_this_thread(self._after), with_kwargs=True, always_call=True),
        ]
        try:
            with around_attention(self._attend):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _before(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """See which tokens are visual, before the model runs."""
        given = self.signature.bind_partial(module, *args, **kwargs).arguments
        ids, image_ids = given.get("input_ids"), given.get("image_ids")
        if image_ids is not None:
            visual = image_ids >= 0
        elif ids is not None:
            visual = ids == module.config.image_token_id
        else:
            embeds = given["inputs_embeds"]
            visual = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        cache = given_cache(given.get("past_key_values"), given.get("cache"))
        past = 0 if cache is None else int(cache.get_seq_length())
        if cache is not None and not all(isinstance(layer, DynamicLayer) for layer in cache.layers):
            raise ValueError(
                "knockout: expected a cache that grows (DynamicCache), got one with layers of fixed size; do not ask "
                "for a static cache while parts are knocked out"
            )
        keys = visual
        if past:
            earlier = _visual_keys(cache)
            if earlier is None or earlier.get_seq_length() != past:
                raise ValueError(
                    f"knockout: the cache holds {past} tokens that were read outside of this context, so which of "
                    "them are visual is not known; begin the cache inside"
                )
            keys = torch.cat([earlier.flags().to(visual.device), visual], dim=1)
        self.present = _Pass(visual, keys)

    def _after(self, module: Any, args: tuple, kwargs: dict[str, Any], outputs: Any) -> None:
        """Forget the pass; let the cache remember which tokens are visual; check that every layer came by."""
        present, self.present = self.present, None
        if present is None or outputs is None:  # it ended with an exception, as that of `encode_image` does
            return
        missing = sorted(self.plan.keys() - present.came)
        if missing:
            raise RuntimeError(f"knockout: attention of layers {spans(missing)} did not come by: not blocked")
        cache = output_cache(outputs)
        if cache is None:
            return
        keys = _visual_keys(cache)
        if keys is None:
            keys = _VisualKeys()
            cache.layers.append(keys)
        if keys.get_seq_length() < int(cache.get_seq_length()):  # an outer knock-out may have written it
            flags = present.queries_bq[:, None, :, None]
            keys.update(flags, flags)

    def _attend(
        self, base: Any, backend: str, module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any
    ) -> Any:
        layer = self.layer_of.get(id(module))
        if layer is not None and layer in self.plan:
            if self.present is None:
                raise ValueError(
                    "knockout: run the whole model, not its LLM alone: it knows the visual tokens"
                )
            if kwargs.get("documents") is not None:
                raise ValueError("knockout: expected sdpa or eager attention, got training on documents")
            mask = self._mask(self.plan[layer], mask, backend, query.shape[2], key.shape[2])
            self.present.came.add(layer)
        return base(module, query, key, value, mask, **kwargs)

    def _mask(self, kinds: frozenset[str], mask: Any, backend: str, queries: int, keys: int) -> Any:
        """Return the mask of the layer, changed; made once for all layers that share it."""
        present = self.present
        assert present is not None
        name = (id(mask), kinds, keys)
        if name not in present.masks:
            blocked = blocked_pairs(kinds, present.queries_bq, present.keys_bk[:, -keys:])
            present.masks[name] = (mask, _with_blocked(mask, blocked, backend))
        return present.masks[name][1]


def blocked_pairs(
    kinds: frozenset[str] | set[str], queries_bq: torch.Tensor, keys_bk: torch.Tensor
) -> torch.Tensor:
    """Say which query may not see which key.

    Args:
        kinds: keys of `ATTENTION`.
        queries_bq: (b, q) bool, true at visual tokens.
        keys_bk: (b, k) bool, alike; the last q keys are the queries' own tokens.

    Returns:
        (b, 1, q, k) bool.

    Example:
        >>> tokens = torch.tensor([[False, True, True, False]])
        >>> blocked_pairs({"visual_to_visual"}, tokens, tokens)[0, 0].int().tolist()
        [[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
        >>> blocked_pairs({"bidirectional"}, tokens, tokens)[0, 0].int().tolist()
        [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
        >>> blocked_pairs({"text_to_visual"}, tokens, tokens)[0, 0].int().tolist()
        [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]
    """
    q, k = queries_bq.shape[1], keys_bk.shape[1]
    place_k = torch.arange(k, device=keys_bk.device)
    place_q1 = place_k[k - q :, None]
    queries_bq1, keys_b1k = queries_bq[:, :, None], keys_bk[:, None, :]
    blocked = torch.zeros_like(queries_bq1 & keys_b1k)
    if "visual_to_visual" in kinds:
        blocked |= queries_bq1 & keys_b1k & (place_k != place_q1)
    if "bidirectional" in kinds:
        blocked |= queries_bq1 & keys_b1k & (place_k > place_q1)
    if "text_to_visual" in kinds:
        blocked |= ~queries_bq1 & keys_b1k
    return blocked[:, None]


def _with_blocked(mask: Any, blocked: torch.Tensor, backend: str) -> Any:
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise ValueError(
            f"knockout: the attention implementation {backend!r} takes a mask that cannot be changed here; load the "
            "model with attn_implementation='sdpa' or 'eager'"
        )
    if mask is None and "sdpa" not in backend and backend != IMPLEMENTATION:
        raise ValueError(f"knockout: expected sdpa or eager attention, got {backend!r}, which takes no mask")
    if not bool(blocked.any()):
        return mask
    if mask is None:  # transformers leaves a purely causal mask to sdpa
        q, k = blocked.shape[-2:]
        places = torch.arange(k, device=blocked.device)
        return (places <= places[k - q :, None]) & ~blocked
    if mask.shape[-1] != blocked.shape[-1]:
        raise ValueError(f"knockout: a mask over {mask.shape[-1]} keys, expected {blocked.shape[-1]}")
    blocked = blocked.to(mask.device)
    if mask.dtype == torch.bool:
        return mask & ~blocked
    return mask.masked_fill(blocked, torch.finfo(mask.dtype).min)


def _visual_keys(cache: Any) -> _VisualKeys | None:
    return next((layer for layer in cache.layers if isinstance(layer, _VisualKeys)), None)


class _PartOfText(torch.nn.Module):
    """A fused projection of visual tokens, some of whose outputs are those of the text projection."""

    def __init__(self, linear: RoutedLinear, part: slice):
        super().__init__()
        self.text, self.visual, self.part = linear.text, linear.visual, part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.visual(x).clone()
        y[..., self.part] = self.text(x)[..., self.part]
        return y


def _replacements(model: Any, layer: int, letters: str) -> list[tuple[RoutedLinear, Any]]:
    """Give the routed projections of a layer to change, each with what makes its new visual projection."""
    config = model.config.llm
    family = FAMILIES[config.model_type]
    attention = getattr(model.model.language_model.layers[layer], family.attention)
    if len(family.projections) == 3:
        routed = [getattr(attention, name) for name in family.projections if name[0] in letters]
        return [(linear, lambda linear: linear.text) for linear in routed]
    (fused,) = family.projections
    width = attention.head_dim
    sizes = [config.num_attention_heads * width, *[config.num_key_value_heads * width] * 2]
    ends = [sum(sizes[: number + 1]) for number in range(3)]
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return [
        (getattr(attention, fused), lambda linear, part=part: _PartOfText(linear, part))
        for letter, part in zip("qkv", parts, strict=True)
        if letter in letters
    ]
