"""Where keys and values of running requests live: one row (slot) each, in tensors that never move.

    keys[layer], values[layer]: (slot, kv head, position, head width)

Each is a tensor of its own: a compiled graph takes them all and writes into them.

`SlotCache` shows it to transformers' own attention layers as an ordinary cache. Rows of a batch are neighbouring slots
and see the same stretch of positions, so that what a layer reads is a view and not a copy.

Legend: b rows, h kv heads, l tokens, w positions that are looked at, d head width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class _SlotLayer(CacheLayerMixin):
    """One layer's view of the slots."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, cache: SlotCache):
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self.cache = cache

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the present tokens' keys and values (b, h, l, d); return all that the rows may see (b, h, w, d)."""
        cache, keys, values = self.cache, self.keys, self.values
        assert keys is not None and values is not None
        if cache.positions is None:
            start, end = cache.past, cache.past + key_states.shape[2]
            row = slice(cache.first, cache.first + len(key_states))
            keys[row, :, start:end] = key_states
            values[row, :, start:end] = value_states
            return keys[row, :, :end], values[row, :, :end]
        rows = len(cache.positions)
        keys[cache.rows[:rows], :, cache.positions] = key_states[:, :, 0]
        values[cache.rows[:rows], :, cache.positions] = value_states[:, :, 0]
        return keys[:rows, :, : cache.window], values[:rows, :, : cache.window]

    def get_seq_length(self) -> int:
        return self.cache.past

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.past + query_length, 0

    def get_max_length(self) -> int:
        return self.cache.length

    get_max_cache_shape = get_max_length

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the slots are there from the start."""


class SlotCache(Cache):
    """Keys and values of up to `slots` requests, and the place where the present forward pass writes.

    Args:
        text_config: the LLM's configuration.
        slots: number of rows.
        length: positions of each.
        dtype: of keys and values.
        device: where they are. On a CPU a page of memory is taken when it is first written to.

    Attributes:
        keys: of each layer, (slots, h, length, d).
        values: of each layer, the same.
        length: positions of each row.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=3)
        >>> slots = SlotCache(config, slots=4, length=16, dtype=torch.float32, device="cpu")
        >>> len(slots.keys), slots.keys[0].shape
        (3, torch.Size([4, 1, 16, 4]))
    """

    def __init__(self, text_config: Any, *, slots: int, length: int, dtype: torch.dtype, device: Any):
        heads = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
        width = getattr(text_config, "head_dim", None) or (
            text_config.hidden_size // text_config.num_attention_heads
        )
        shape, layers = (slots, heads, length, width), range(text_config.num_hidden_layers)
        self.length = length
        self.keys = [_zeros(shape, dtype, torch.device(device)) for _ in layers]
        self.values = [_zeros(shape, dtype, torch.device(device)) for _ in layers]
        self.rows = torch.arange(slots, device=device)
        self.first = self.past = self.window = 0
        self.positions: torch.Tensor | None = None
        super().__init__(layers=[_SlotLayer(k, v, self) for k, v in zip(self.keys, self.values, strict=True)])

    def prefill_at(self, slot: int, past: int) -> None:
        """Let the next forward pass write the tokens of this row and those after it from position `past` on."""
        self.first, self.past, self.positions = slot, past, None

    def decode_at(self, positions_b: torch.Tensor, window: int) -> None:
        """Let the next forward pass write one token of each of the first b rows, and look at `window` positions."""
        self.first, self.past, self.positions, self.window = 0, window - 1, positions_b, window

    def read(self, slot: int, start: int, end: int) -> torch.Tensor:
        """Copy keys and values of a row's positions, (2, layers, h, end - start, d)."""
        rows = [each[slot, :, start:end] for each in (*self.keys, *self.values)]
        return torch.stack(rows).view(2, len(self.keys), *rows[0].shape)

    def write(self, slot: int, start: int, kv: torch.Tensor) -> None:
        """Put what `read` gave into a row."""
        for each, saved in zip((*self.keys, *self.values), kv.flatten(0, 1), strict=True):
            each[slot, :, start : start + kv.shape[-2]] = saved

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first positions of one row into another."""
        for each in (*self.keys, *self.values):
            each[target, :, :length] = each[source, :, :length]

    def clear(self, slot: int, length: int) -> None:
        """Forget the first positions of a row that may not be finite: masked ones would still turn sums into NaN."""
        for each in (*self.keys, *self.values):
            each[slot, :, :length].zero_()


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy's zeros take memory when they are written to; torch's are written at once.
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)
