"""The attention weights of chosen rows, exact under any attention implementation, without keeping the others.

`output_attentions` needs eager attention and keeps (layers, heads, l, l) numbers. Here the model runs as it always
does (sdpa stays sdpa), and beside it the weights of the rows that are asked for are computed anew from the same
queries, keys and mask. For this pass the LLM's attention implementation is replaced by one of ours, which does both:
it sees what the model's own would see, after rotary positions and norms, with the visual mask, in every LLM family.

Shapes: l sequence, h heads, g heads of keys, e width of a head, q queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from llavit.inspect.running import batch_of, uncompiled


@dataclass
class _Recorder:
    """What to keep, and what was kept: (h, q, l) by layer."""

    queries_q: torch.Tensor
    layers: frozenset[int]
    kept: dict[int, torch.Tensor] = field(default_factory=dict)


_recorder: ContextVar[_Recorder] = ContextVar("llavit_attention_recorder")


@torch.no_grad()
def attention_weights(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    queries: Sequence[int],
    layers: Sequence[int] | None = None,
) -> torch.Tensor:
    """Return how much each of the chosen tokens attends to every token, in each layer and head.

    Args:
        model: a LLaVA or LLaViT of this package, with any attention implementation.
        inputs: of one conversation, as `LlavitProcessor.encode` gives them, without labels.
        queries: positions of the tokens that look; negative ones count from the end.
        layers: of the LLM, from 0; negative ones count from the end. All if not given.

    Returns:
        (layers, heads, queries, l) float32 on the CPU; each row sums to 1.

    Raises:
        ValueError: a layer or a position that there is not, or attention that is more than a softmax over keys.

    Example:
        ```python
        encoded = processor.encode(messages, add_generation_prompt=True)
        weights = attention_weights(model, encoded, queries=[-1], layers=[0, -1])
        ```
    """
    length = len(inputs["input_ids"])
    rows = [_index(query, length, "query", "tokens") for query in queries]
    chosen = chosen_layers(model, layers)
    recorder = _Recorder(torch.tensor(rows, device=model.device), frozenset(chosen))
    token = _recorder.set(recorder)
    try:
        with _recording(model), uncompiled(model):
            model.model(**batch_of(model, inputs), use_cache=False)
    finally:
        _recorder.reset(token)
    return torch.stack([recorder.kept[layer] for layer in chosen])


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


@contextmanager
def _recording(model: Any) -> Iterator[None]:
    """Let the LLM's attention record; the configuration is as before afterwards."""
    config = model.model.language_model.config
    before = config._attn_implementation
    # flex_attention's mask is a program, so its layers run eagerly for this pass: the same numbers.
    name = _ours("sdpa" if before == "sdpa" else "eager")
    config._attn_implementation_internal = name
    try:
        yield
    finally:
        config._attn_implementation_internal = before


def _ours(base: str) -> str:
    """Register the recording attention over an implementation, once; give its name."""
    name = f"llavit_recording_{base}"
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
        AttentionInterface.register(name, _record_beside_sdpa if base == "sdpa" else _record_eagerly)
    return name


def _record_beside_sdpa(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    recorder = _recorder.get(None)
    if recorder is not None and module.layer_idx in recorder.layers:
        rows = recorder.queries_q
        recorder.kept[module.layer_idx] = _softmax(query, key, mask, rows, **kwargs)[0].cpu()
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)


def _record_eagerly(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    recorder = _recorder.get(None)
    weights = _softmax(query, key, mask, torch.arange(query.shape[2], device=query.device), **kwargs)
    if recorder is not None and module.layer_idx in recorder.layers:
        recorder.kept[module.layer_idx] = weights[0, :, recorder.queries_q].cpu()
    weights = weights.to(value.dtype)
    seen = weights @ value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    return seen.transpose(1, 2).contiguous(), weights


def _softmax(
    query_hle: torch.Tensor,
    key_gle: torch.Tensor,
    mask: torch.Tensor | None,
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
    if mask is None:  # transformers leaves a purely causal mask to sdpa
        hidden = torch.arange(length, device=rows_q.device)[None] > rows_q[:, None]
        scores = scores.masked_fill(hidden, float("-inf"))
    elif mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask[:, :, rows_q, :length], float("-inf"))
    else:
        scores = scores + mask[:, :, rows_q, :length].float()
    return scores.softmax(-1)
