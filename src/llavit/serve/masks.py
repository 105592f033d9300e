"""Which positions of its slot a token sees, as the engine's forward passes take it.

Legend: b rows, n tokens, w positions that are looked at.
"""

from __future__ import annotations

from typing import Any

import torch


def layer_kinds(text_config: Any) -> tuple[str, ...] | None:
    """Return the kinds of layers of an LLM that takes a mask for each kind; None for one that takes a single mask.

    Raises:
        ValueError: a kind that does not keep keys and values of each token.
    """
    backend = text_config._attn_implementation
    if backend not in ("sdpa", "eager"):
        raise ValueError(
            f"attention implementation {backend!r}: the engine makes masks for 'sdpa' and 'eager'; load the model with "
            "attn_implementation='sdpa'"
        )
    if not hasattr(text_config, "layer_types"):
        return None
    kinds = tuple(sorted(set(text_config.layer_types)))
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ValueError(
            f"layer_types: expected full_attention and sliding_attention, got {', '.join(sorted(unknown))}"
        )
    return kinds


def decode_masks(
    text_config: Any,
    kinds: tuple[str, ...] | None,
    columns_w: torch.Tensor,
    positions_b: torch.Tensor,
    dtype: torch.dtype,
) -> Any:
    """Make the masks of a decoding step: a row sees what stands at its own position and before.

    Args:
        text_config: the LLM's configuration.
        kinds: of `layer_kinds`.
        columns_w: the positions that are looked at, 0 to w-1.
        positions_b: where each row's token stands.
        dtype: the model's.

    Returns:
        (b, 1, 1, w), boolean for sdpa and additive for eager attention, or a dict of them by kind of layer.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(attn_implementation="sdpa")
        >>> decode_masks(config, None, torch.arange(4), torch.tensor([1, 2]), torch.float32).int().squeeze().tolist()
        [[1, 1, 0, 0], [1, 1, 1, 0]]
    """
    return _by_kind(text_config, kinds, columns_w, positions_b[:, None, None, None], None, dtype)


def prefill_masks(
    text_config: Any,
    kinds: tuple[str, ...] | None,
    columns_w: torch.Tensor,
    positions_n: torch.Tensor,
    together_nw: torch.Tensor | None,
    dtype: torch.dtype,
) -> Any:
    """Make the masks of a prompt's tokens, in any order: each sees what stands before it, and what is said beside.

    Args:
        text_config: the LLM's configuration.
        kinds: of `layer_kinds`.
        columns_w: the positions that are looked at, 0 to w-1.
        positions_n: where each token stands.
        together_nw: (n, w) true where a token and a position belong to one image, in both directions; or None.
        dtype: the model's.

    Returns:
        (1, 1, n, w), or a dict of them, as `decode_masks`.

    Example:
        >>> from transformers import LlamaConfig
        >>> config, positions = LlamaConfig(attn_implementation="sdpa"), torch.tensor([2, 0])
        >>> prefill_masks(config, None, torch.arange(3), positions, None, torch.float32).int().squeeze().tolist()
        [[1, 1, 1], [1, 0, 0]]
    """
    return _by_kind(text_config, kinds, columns_w, positions_n[:, None], together_nw, dtype)


def _by_kind(
    text_config: Any,
    kinds: tuple[str, ...] | None,
    columns_w: torch.Tensor,
    positions: torch.Tensor,
    together: torch.Tensor | None,
    dtype: torch.dtype,
) -> Any:
    seen = columns_w <= positions
    size: Any = getattr(text_config, "sliding_window", None)

    def made(kind: str) -> torch.Tensor:
        mask = seen if kind == "full_attention" else seen & (columns_w > positions - size)
        if together is not None:
            mask = mask | together
        if mask.ndim == 2:
            mask = mask[None, None]
        if text_config._attn_implementation == "eager":
            return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)
        return mask

    if kinds is not None:
        return {kind: made(kind) for kind in kinds}
    return made("full_attention" if size is None else "sliding_attention")
