"""Attention over documents, for training: the attention implementation `documents`.

The rest of the LLM sees one row of tokens (`documents.py`); here each document gets a row of its own, and the keys
are those of the document, whatever it was packed or padded with. Set by
`model.set_attn_implementation({"text_config": "documents"})`; a forward pass that is not training (with a cache,
say) runs as sdpa, or step by step where scores have a cap, which sdpa does not know (Gemma 2).

On a CPU, scores are made in pieces that stay in its caches, by matrix products that take all query heads of a
key's head at once, and made again in the backward pass: neither repeated keys nor probabilities are kept. Elsewhere
sdpa does it.

Shapes: n tokens, s documents, m tokens of the longest, h query heads, g key heads, r = h / g, d head width.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llavit.model.documents import IMPLEMENTATION, Documents, gather_heads, scatter_heads, zero_behind

PIECE = 1 << 20
"""Scores that are made at once: 2 MB in bfloat16."""


def documents_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Documents | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, as transformers calls it from a layer.

    Args:
        module: the attention module.
        query: (1, h, n, d), or (b, h, l, d) without `documents`.
        key: (1, g, n, d), alike.
        value: (1, g, n, d), alike.
        attention_mask: (s or 1, 1, m, m) bool, true where a query sees a key.
        dropout: of probabilities.
        scaling: of scores; by default 1 / sqrt(d).
        documents: of this forward pass; None for one on rows.
        softcap: of scores, as Gemma 2 has it.
        **kwargs: nothing more is used with documents.

    Returns:
        (1, n, h, d), and None in place of the probabilities.
    """
    device, scale = query.device.type, query.shape[-1] ** -0.5 if scaling is None else scaling
    if documents is None and softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scale, **kwargs
        )
    if documents is None:
        assert softcap is not None
        k, v = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        if attention_mask is None:  # transformers leaves a causal one to sdpa
            queries, keys = query.shape[2], key.shape[2]
            attention_mask = query.new_ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        out = _attend_capped(query, k, v, attention_mask, scale, dropout, softcap)
        return out.transpose(1, 2).contiguous(), None
    assert attention_mask is not None  # LlavitModel made it
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    q_nhd, k_ngd, v_ngd = (x.squeeze(0).transpose(0, 1).contiguous() for x in (query, key, value))
    if device == "cpu" and dropout == 0.0 and softcap is None:
        out = _attend(q_nhd, k_ngd, v_ngd, attention_mask, documents.places, documents.inverse, scale)
    else:
        out = attend_plainly(
            q_nhd, k_ngd, v_ngd, attention_mask, documents.places, documents.inverse, scale, dropout, softcap
        )
    return out.unsqueeze(0), None


def attend_plainly(
    q_nhd: torch.Tensor,
    k_ngd: torch.Tensor,
    v_ngd: torch.Tensor,
    mask_s1mm: torch.Tensor,
    places_sm: torch.Tensor,
    inverse_n: torch.Tensor,
    scale: float,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attend by sdpa, or step by step where scores have a cap; on any device.

    Returns:
        (n, h, d).
    """
    heads, groups, m = q_nhd.shape[1], k_ngd.shape[1], places_sm.shape[1]
    q = gather_heads(q_nhd, places_sm, heads)
    k, v = (gather_heads(x, places_sm, groups).repeat_interleave(heads // groups, 1) for x in (k_ngd, v_ngd))
    if softcap is None:
        out = functional.scaled_dot_product_attention(q, k, v, mask_s1mm, dropout_p=dropout, scale=scale)
    else:
        out = _attend_capped(q, k, v, mask_s1mm, scale, dropout, softcap)
    return scatter_heads(out, inverse_n, heads, m)


def _attend_capped(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    dropout: float,
    softcap: float,
) -> torch.Tensor:
    """Attend with a cap on scores, all (b or s, h, l or m, d)."""
    scores = torch.tanh(q @ k.transpose(-1, -2) * scale / softcap) * softcap
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    probabilities = functional.softmax(scores, -1, dtype=torch.float32).to(q.dtype)
    return functional.dropout(probabilities, dropout) @ v


def _scores(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """Give probabilities (c, g, r*m, m) of c documents."""
    c, g, rm, _ = q.shape
    m = k.shape[2]
    hidden = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    scores = hidden.expand(c, g * rm // m, m, m).reshape(c * g, rm, m)
    scores.baddbmm_(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=scale)
    return torch.softmax(scores, -1).view(c, g, rm, m)


def _pieces(q_sgd: torch.Tensor, mask: torch.Tensor) -> list[tuple[slice, torch.Tensor]]:
    """Cut documents into pieces with their masks."""
    s, g, rm, _ = q_sgd.shape
    each = max(1, PIECE // (g * rm * mask.shape[-1]))
    cuts = [slice(start, min(start + each, s)) for start in range(0, s, each)]
    return [(cut, mask[cut] if len(mask) == s else mask) for cut in cuts]


@torch.library.custom_op("llavit::attend", mutates_args=())
def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    places: torch.Tensor,
    inverse: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    heads, groups = q.shape[1], k.shape[1]
    q, k, v = (gather_heads(x, places, groups) for x in (q, k, v))
    out = torch.empty_like(q)
    for cut, mask_piece in _pieces(q, mask):
        p = _scores(q[cut], k[cut], mask_piece, scale)
        torch.bmm(p.flatten(0, 1), v[cut].flatten(0, 1), out=out[cut].flatten(0, 1))
    return scatter_heads(out, inverse, heads, places.shape[1])


@torch.library.custom_op("llavit::attend_backward", mutates_args=())
def _attend_backward(
    gradient: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    places: torch.Tensor,
    inverse: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads, groups, m = q.shape[1], k.shape[1], places.shape[1]
    q, k, v, g = (gather_heads(x, places, groups) for x in (q, k, v, gradient))
    zero_behind(g, places)
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for cut, mask_piece in _pieces(q, mask):
        qc, kc, vc, gc = (x[cut].flatten(0, 1) for x in (q, k, v, g))
        p = _scores(q[cut], k[cut], mask_piece, scale).flatten(0, 1)
        torch.bmm(p.transpose(1, 2), gc, out=dv[cut].flatten(0, 1))
        ds = torch._softmax_backward_data(torch.bmm(gc, vc.transpose(1, 2)), p, -1, p.dtype)
        torch.bmm(ds, kc, out=dq[cut].flatten(0, 1))
        torch.bmm(ds.transpose(1, 2), qc, out=dk[cut].flatten(0, 1))
    dq.mul_(scale)
    dk.mul_(scale)
    return (
        scatter_heads(dq, inverse, heads, m),
        scatter_heads(dk, inverse, groups, m),
        scatter_heads(dv, inverse, groups, m),
    )


@_attend.register_fake
def _(q, k, v, mask, places, inverse, scale):  # type: ignore[no-untyped-def]
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@_attend_backward.register_fake
def _(gradient, q, k, v, mask, places, inverse, scale):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    gradients = _attend_backward(gradient.contiguous(), *ctx.saved_tensors, ctx.scale)
    return (*gradients, None, None, None, None)


_attend.register_autograd(_differentiate, setup_context=_keep)

ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, documents_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, sdpa_mask)
