"""Cross-entropy that keeps one copy of the logits, and that in their own dtype.

A large vocabulary takes its memory at the head: k supervised tokens have k*v logits, and transformers' loss holds up
to three copies of them in float32. 5,000 tokens of a batch with Qwen2.5's 152,000 words are 760 million numbers: 9.1 GB
in bfloat16 training there, and 1.5 GB here.

Shapes: k supervised tokens, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def floats_at_a_time(device_type: str) -> int:
    """Say how many logits are made float32 at once on a device: 8 MB stay in a CPU's cache, 256 MB keep a GPU busy.

    Args:
        device_type: of torch, as in `tensor.device.type`.

    Example:
        >>> floats_at_a_time("cpu") * 4 / 2**20
        8.0
    """
    return 2**21 if device_type == "cpu" else 2**26


def cross_entropy(
    logits_kv: torch.Tensor,
    targets_k: torch.Tensor,
    num_items: torch.Tensor | float | None = None,
    *,
    piece: int | None = None,
) -> torch.Tensor:
    """Give the loss of next tokens, as transformers' `ForCausalLMLoss` does, in less memory.

    A sixth in bfloat16, a third in float32, the logits themselves included. Everything is computed in float32, a few
    tokens at a time. The backward pass writes the gradient over the logits: they must not be used afterwards, and a
    second backward pass through the same graph is an error.

    Args:
        logits_kv: (k, v).
        targets_k: (k,) ids of the right tokens, each of them a word of the vocabulary.
        num_items: divides the sum; without it the loss is the mean over k.
        piece: logits to make float32 at once; what suits their device if not given.

    Returns:
        a number, in float32.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [0.0, 100.0]])
        >>> cross_entropy(logits, torch.tensor([0, 1]), num_items=2)
        tensor(0.3466)
    """
    if torch.compiler.is_compiling():  # a compiler fuses this by itself
        summed = torch.nn.functional.cross_entropy(logits_kv.float(), targets_k, reduction="sum")
    else:
        summed = _SummedCrossEntropy.apply(
            logits_kv, targets_k, piece or floats_at_a_time(logits_kv.device.type)
        )
    items = len(targets_k) if num_items is None else num_items
    return summed / (items.to(summed.device) if isinstance(items, torch.Tensor) else items)


class _SummedCrossEntropy(torch.autograd.Function):
    """The sum over k of -log softmax(logits)[target]; its gradient is (softmax(logits) - one_hot(target))."""

    @staticmethod
    def forward(ctx: Any, logits_kv: torch.Tensor, targets_k: torch.Tensor, piece: int) -> torch.Tensor:
        log_sum_k = torch.empty(len(targets_k), device=logits_kv.device)
        for rows in _pieces(logits_kv, piece):
            log_sum_k[rows] = logits_kv[rows].float().logsumexp(-1)
        ctx.save_for_backward(logits_kv, targets_k, log_sum_k)
        ctx.piece = piece
        return (log_sum_k - logits_kv.gather(1, targets_k[:, None]).squeeze(1).float()).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        logits_kv, targets_k, log_sum_k = ctx.saved_tensors
        for rows in _pieces(logits_kv, ctx.piece):
            gradient = (logits_kv[rows].float() - log_sum_k[rows, None]).exp_()
            gradient[torch.arange(len(gradient), device=grad.device), targets_k[rows]] -= 1
            logits_kv[rows] = gradient.mul_(grad)
            del gradient  # before the next one
        return logits_kv, None, None


def _pieces(logits_kv: torch.Tensor, piece: int) -> Iterator[slice]:
    """Cut the tokens into pieces of at most so many logits."""
    tokens, vocabulary = logits_kv.shape
    step = max(1, piece // vocabulary)
    return (slice(first, first + step) for first in range(0, tokens, step))
