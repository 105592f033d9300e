"""The attention weights of chosen rows, exact under any attention implementation, without keeping the others.

`output_attentions` needs eager attention and keeps (layers, heads, l, l) numbers. Here the model runs as it always
does (sdpa stays sdpa), and beside it the weights of the rows that are asked for are computed anew from the same
queries, keys and mask: those that reach the attention function, after rotary positions and norms, with the visual
mask, in every LLM family.

`watch_attention` gives the weights piece by piece as the layers run; `attention_weights` keeps some of them.

Shapes: l sequence, h heads, g heads of keys, e width of a head, q queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from llavit.inspect.mask import read_mask
from llavit.inspect.running import around_attention, batch_of
from llavit.model.encoding import evaluating, uncompiled

PIECE = 1 << 24
"""Weights that are computed at once: 64 MB."""

Look = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Called with (layer, positions (q,) of tokens that look, their weights (h, q, l) in float32 on the model's device)."""


@torch.no_grad()
def watch_attention(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    look: Look,
    queries: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
) -> None:
    """Run a model on one conversation and show the attention weights of each layer in turn; none are kept.

    Args:
        model: a LLaVA or LLaViT of this package, with any attention implementation.
        inputs: of one conversation, as `LlavitProcessor.encode` gives them, without labels.
        look: see `Look`; a layer's rows come in pieces, in the order of `queries`, so that long conversations fit.
        queries: positions of the tokens that look; negative ones count from the end. All if not given.
        layers: of the LLM, from 0; negative ones count from the end. All if not given.

    Raises:
        ValueError: a layer or a position that there is not, or attention that is more than a softmax over keys.

    Example:
        ```python
        def look(layer, rows_q, weights_hql):
            print(layer, weights_hql.mean(0).max())

        watch_attention(model, processor.encode(messages, add_generation_prompt=True), look)
        ```
    """
    length = len(inputs["input_ids"])
    rows = (
        range(length) if queries is None else [_index(query, length, "query", "tokens") for query in queries]
    )
    chosen = frozenset(chosen_layers(model, layers))
    rows_q = torch.tensor(rows, dtype=torch.long)
    ours = {id(module) for module in model.model.language_model.modules()}
    came: set[int] = set()

    def record(
        base: Callable[..., Any], backend: str, module: Any, q: Any, k: Any, v: Any, mask: Any, **kwargs: Any
    ) -> Any:
        if id(module) in ours and module.layer_idx in chosen:
            came.add(module.layer_idx)
            if not isinstance(mask, torch.Tensor) or mask.ndim != 4:
                causal = kwargs.get("is_causal", getattr(module, "is_causal", True))
                table = read_mask(mask, length, backend, causal, kwargs.get("sliding_window"))
                mask_11ll = torch.from_numpy(table).to(q.device)[None, None]
            else:
                mask_11ll = mask
            for part_q in rows_q.to(q.device).split(max(1, PIECE // (q.shape[1] * length))):
                look(module.layer_idx, part_q, _softmax(q, k, mask_11ll, part_q, **kwargs)[0])
        return base(module, q, k, v, mask, **kwargs)

    with around_attention(record), evaluating(model), uncompiled(model):
        model.model(**batch_of(model, inputs), use_cache=False)
    if missing := sorted(chosen - came):
        raise ValueError(
            f"layers {missing}: their attention is not run by an attention function of transformers"
        )


def attention_weights(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    queries: Sequence[int],
    layers: Sequence[int] | None = None,
    keys: Sequence[int] | None = None,
) -> torch.Tensor:
    """Return how much each of the chosen tokens attends to every token, in each layer and head.

    Args:
        model: as `watch_attention`.
        inputs: as there.
        queries: positions of the tokens that look; negative ones count from the end.
        layers: of the LLM, from 0; negative ones count from the end. All if not given.
        keys: positions of the tokens that are looked at, if only some are to be kept.

    Returns:
        (layers, heads, queries, l or keys) float32 on the CPU; each row sums to 1 over all l.

    Raises:
        ValueError: as `watch_attention`.

    Example:
        ```python
        encoded = processor.encode(messages, add_generation_prompt=True)
        weights = attention_weights(model, encoded, queries=[-1], layers=[0, -1])
        ```
    """
    length = len(inputs["input_ids"])
    columns = None if keys is None else [_index(key, length, "key", "tokens") for key in keys]
    kept: dict[int, list[torch.Tensor]] = {}

    def look(layer: int, rows_q: torch.Tensor, weights_hql: torch.Tensor) -> None:
        kept.setdefault(layer, []).append(
            (weights_hql if columns is None else weights_hql[..., columns]).cpu()
        )

    watch_attention(model, inputs, look, queries, layers)
    return torch.stack([torch.cat(kept[layer], 1) for layer in chosen_layers(model, layers)])


def chosen_layers(model: Any, layers: Sequence[int] | None) -> list[int]:
    """Return layers of the LLM as numbers from 0; None means all.

    Raises:
        ValueError: there is no such layer, or none is chosen.
    """
    count = model.config.llm.num_hidden_layers
    if layers is None:
        return list(range(count))
    if not len(layers):
        raise ValueError("layers: expected at least one, got none")
    return [_index(layer, count, "layer", "layers") for layer in layers]


def _index(value: int, count: int, what: str, of: str) -> int:
    if not -count <= value < count:
        raise ValueError(f"{what} {value}: there are {count} {of}, expected {-count} to {count - 1}")
    return value % count


def _softmax(
    query_hle: torch.Tensor,
    key_gle: torch.Tensor,
    mask_11ll: torch.Tensor,
    rows_q: torch.Tensor,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Compute the weights of some rows in float32: (1, h, l, e), (1, g, l, e) -> (1, h, q, l)."""
    unknown = [name for name in ("s_aux", "position_bias") if kwargs.get(name) is not None]
    if unknown:
        raise ValueError(
            f"this LLM's attention adds {' and '.join(unknown)} to the softmax over keys, which is not recomputed here"
        )
    heads, length = query_hle.shape[1], key_gle.shape[2]
    keys = key_gle.float().repeat_interleave(heads // key_gle.shape[1], dim=1)
    scores = query_hle[:, :, rows_q].float() @ keys.transpose(2, 3)
    scores = scores * (query_hle.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    mask_11ql = mask_11ll[:, :, rows_q, :length]
    if mask_11ql.dtype == torch.bool:
        scores = scores.masked_fill(~mask_11ql, float("-inf"))
    else:
        scores = scores + mask_11ql.float()
    return scores.softmax(-1)
