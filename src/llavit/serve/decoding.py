"""The decode step as one compiled graph.

A token of one conversation costs little arithmetic: what it takes is reading all weights once, and what stands in the
way is everything around that. Three things are done about it, and none changes what is computed:

- all layers are one graph, so that norms, rotary embeddings and residuals are fused into few kernels;
- on a CPU the graph holds weights in the order in which the matrix unit reads them (inductor's freezing), a copy;
- query heads that share keys are rows of one attention problem, so that keys and values are read as they lie.

One graph serves any number of rows and any number of positions to look at, as making it takes a minute or two.

Legend: b rows, h heads, g query heads of a kv head, w positions that are looked at, d head width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llavit.model.compat import cache_argument
from llavit.serve.runner import decode_masks
from llavit.serve.slots import SlotCache

PACKED = "llavit_packed_heads"
"""Name of `packed_attention` among transformers' attention implementations."""

MOST_COPIED = 4 << 30
"""Bytes of weights above which a CPU's graphs read them where they are, instead of holding a copy in another order."""

_COPYING = {
    "freezing": True,
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
    "cpp.enable_grouped_gemm_template": True,  # q, k, v in one pass, gate and up in another
}


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from one token a row, as transformers' sdpa does; heads that share keys are rows of one problem.

    Args:
        module: the attention layer; not read.
        query: (b, h, 1, d).
        key: (b, h / g, w, d).
        value: (b, h / g, w, d).
        attention_mask: (b, 1, 1, w) boolean.
        scaling: of the scores.
        dropout: none in decoding.
        **kwargs: of other implementations; not read, as by sdpa.

    Returns:
        (b, 1, h, d), and no attention weights.

    Example:
        >>> query, key = torch.rand(1, 4, 1, 8), torch.rand(1, 2, 3, 8)
        >>> packed_attention(torch.nn.Module(), query, key, key, torch.ones(1, 1, 1, 3).bool())[0].shape
        torch.Size([1, 1, 4, 8])
    """
    b, h, _, d = query.shape
    packed = query.view(b, key.shape[1], h // key.shape[1], d)
    out = torch.nn.functional.scaled_dot_product_attention(
        packed, key, value, attn_mask=attention_mask, scale=scaling
    )
    return out.reshape(b, 1, h, value.shape[-1]), None


ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)


class _Rows:
    """The first b slots as a cache, inside the graph: tensors only."""

    is_compileable = True

    def __init__(
        self, keys: list[torch.Tensor], values: list[torch.Tensor], positions_b: torch.Tensor, w: int
    ):
        self.keys, self.values, self.positions_b, self.w = keys, values, positions_b, w
        self.rows = torch.arange(len(positions_b), device=positions_b.device)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a token's keys and values (b, h, 1, d); return what the rows may see, (b, h, w, d)."""
        keys, values, rows = self.keys[layer_idx], self.values[layer_idx], len(self.rows)
        keys[self.rows, :, self.positions_b] = key[:, :, 0]
        values[self.rows, :, self.positions_b] = value[:, :, 0]
        return keys[:rows, :, : self.w], values[:rows, :, : self.w]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class CompiledDecode:
    """A decode step of the engine (`runner.DecodeStep`), compiled.

    Args:
        model: a LLaViT or LLaVA, in evaluation mode.
        kinds: of its layers, see `runner.layer_kinds`.
        slots: keys and values.

    Example:
        step = CompiledDecode(model, kinds, slots)
        logits = step(tokens, positions, window=64)
    """

    def __init__(self, model: Any, kinds: tuple[str, ...] | None, slots: SlotCache):
        self.llm, self.head, self.kinds = model.get_decoder(), model.lm_head, kinds
        self.slots, self.dtype = slots, model.dtype
        self.columns = torch.arange(slots.length, device=model.device)
        weights = [*self.llm.parameters(), *self.head.parameters()]
        self.copies = (
            model.device.type == "cpu"
            and sum(w.nbytes for w in weights) <= MOST_COPIED
            and all(w.is_floating_point() for w in weights)  # int8 ones are read as they are
        )
        self.packs_heads = self.llm.config._attn_implementation == "sdpa"
        self._step = torch.compile(self._forward, dynamic=False)

    def __call__(self, tokens_b: torch.Tensor, positions_b: torch.Tensor, window: int) -> torch.Tensor:
        """Give logits (b, v) for one token of each of the first b rows."""
        rows = len(tokens_b)
        if rows == 1 and len(self.slots.rows) > 1:
            # A graph for one row could do nothing else. The second row is free: what is written to its first
            # position is overwritten by who comes next.
            tokens_b = torch.nn.functional.pad(tokens_b, (0, 1))
            positions_b = torch.nn.functional.pad(positions_b, (0, 1))
        columns_w = self.columns[:window]
        for tensor in (tokens_b, positions_b, columns_w):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        with self._settings():
            return self._step(tokens_b, positions_b, columns_w, self.slots.keys, self.slots.values)[:rows]

    def warm_up(self) -> None:
        """Make the graph now; the slots must be free."""
        most = len(self.slots.rows)
        # One graph, unless weights in int8 have a kernel of their own for few rows.
        for rows in sorted({min(2, most), most}):
            # Two tensors: a graph made with one in both places holds only for that.
            zeros = torch.zeros(rows, dtype=torch.long, device=self.columns.device)
            self(zeros, zeros.clone(), min(64, self.slots.length))

    def _forward(
        self,
        tokens_b: torch.Tensor,
        positions_b: torch.Tensor,
        columns_w: torch.Tensor,
        keys: list[torch.Tensor],
        values: list[torch.Tensor],
    ) -> torch.Tensor:
        hidden = self.llm(
            input_ids=tokens_b[:, None],
            attention_mask=decode_masks(self.llm.config, self.kinds, columns_w, positions_b, self.dtype),
            position_ids=positions_b[:, None],
            use_cache=True,
            **cache_argument(_Rows(keys, values, positions_b, len(columns_w))),
        ).last_hidden_state
        return self.head(hidden[:, -1])

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """What holds while the graph is made and run."""
        config, before = self.llm.config, self.llm.config._attn_implementation
        if self.packs_heads:
            config._attn_implementation = PACKED
        try:
            if self.copies:
                with torch._inductor.config.patch(_COPYING):
                    yield
            else:
                yield
        finally:
            config._attn_implementation = before
