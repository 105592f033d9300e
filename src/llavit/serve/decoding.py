"""The decode step as one compiled graph.

A token of one conversation costs little arithmetic: what it takes is reading all weights once, and what stands in the
way is everything around that: hence the graph (`graph.py`), and an attention in which query heads that share keys are
rows of one problem, so that keys and values are read as they lie. None of it changes what is computed.

One graph serves any number of rows and any number of positions to look at, as making it takes minutes. On a CPU without
a matrix unit there is another for one row, which reads the weights faster (`one_row.py`).

Legend: b rows, h heads, g query heads of a kv head, w positions that are looked at, d head width, v vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llavit.model.compat import cache_argument
from llavit.serve.graph import Graph, Rows, has_matrix_unit
from llavit.serve.masks import decode_masks
from llavit.serve.slots import SlotCache

PACKED = "llavit_packed_heads"
"""Name of `packed_attention` among transformers' attention implementations."""


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


class CompiledDecode:
    """A decode step of the engine (`runner.DecodeStep`), compiled.

    Args:
        model: a LLaViT or LLaVA, in evaluation mode.
        kinds: of its layers, see `masks.layer_kinds`.
        slots: keys and values.

    Example:
        step = CompiledDecode(model, kinds, slots)
        logits = step(tokens, positions, window=64)
    """

    def __init__(self, model: Any, kinds: tuple[str, ...] | None, slots: SlotCache):
        self.kinds, self.slots = kinds, slots
        self.columns = torch.arange(slots.length, device=model.device)
        self._graph = Graph(model, self._forward, PACKED)
        self._one: Graph | None = None
        if self._graph.plain and not has_matrix_unit(model.dtype):
            self._one = Graph(model, self._forward, PACKED, one_row=True)

    def __call__(self, tokens_b: torch.Tensor, positions_b: torch.Tensor, window: int) -> torch.Tensor:
        """Give logits (b, v) for one token of each of the first b rows."""
        rows, columns_w = len(tokens_b), self.columns[:window]
        if rows == 1 and self._one is not None:
            return self._one.run(
                [columns_w], tokens_b, positions_b, columns_w, self.slots.keys, self.slots.values
            )
        if rows == 1 and len(self.slots.rows) > 1:
            # A graph for one row could do nothing else. The second row is free: what is written to its first
            # position is overwritten by who comes next.
            tokens_b = torch.nn.functional.pad(tokens_b, (0, 1))
            positions_b = torch.nn.functional.pad(positions_b, (0, 1))
        inputs = [tokens_b, positions_b, columns_w]
        return self._graph.run(inputs, *inputs, self.slots.keys, self.slots.values)[:rows]

    def warm_up(self) -> None:
        """Make the graph now; the slots must be free."""
        most = len(self.slots.rows)
        # One graph for any number of rows, unless weights in int8 have a kernel of their own for few; and one for one.
        for rows in sorted({1, min(2, most), most}):
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
        graph, rows = self._graph, torch.arange(len(positions_b), device=positions_b.device)

        def write(slots: torch.Tensor, new: torch.Tensor) -> None:
            slots[rows, :, positions_b] = new[:, :, 0]

        hidden = graph.llm(
            input_ids=tokens_b[:, None],
            attention_mask=decode_masks(graph.llm.config, self.kinds, columns_w, positions_b, graph.dtype),
            position_ids=positions_b[:, None],
            use_cache=True,
            **cache_argument(Rows(keys, values, write, len(columns_w))),
        ).last_hidden_state
        return graph.head(hidden[:, -1])
