"""What visual and text tokens do in each layer: the entropy of their attention, and how long their vectors are.

Shapes: the first axis is text, visual; n layers, h heads, l sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llavit.inspect.inputs import before_answer
from llavit.inspect.running import batch_of, hidden_states
from llavit.inspect.weights import attention_weights

KINDS = ("text", "visual")
PERCENTILES = (10, 50, 90)
BYTES = 1 << 28
"""Attention weights that are held at a time."""


@dataclass(frozen=True)
class TokenStatistics:
    """Attention entropy and norms by kind of token.

    Attributes:
        entropy: (2, n, h) bits, mean over queries: of text, of visual tokens.
        ceiling: (2, n) bits of attention that is spread evenly over all that may be seen, mean over queries.
        norms: (2, n + 1, 3) Euclidean norm of hidden states, 10th, 50th and 90th percentile of tokens: at the input,
            then after each layer.
        tokens: how many of each kind.
        conversations: how many.
    """

    entropy: np.ndarray
    ceiling: np.ndarray
    norms: np.ndarray
    tokens: tuple[int, int]
    conversations: int

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name."""
        return {"entropy": self.entropy, "ceiling": self.ceiling, "norms": self.norms}

    def facts(self) -> dict[str, Any]:
        """Return counts and means as plain values."""
        return {
            "conversations": self.conversations,
            "tokens": dict(zip(KINDS, self.tokens, strict=True)),
            "mean entropy in bits": {
                kind: round(float(self.entropy[number].mean()), 3) for number, kind in enumerate(KINDS)
            },
        }


def token_statistics(
    model: Any, processor: Any, conversations: Sequence[list[dict[str, Any]]]
) -> TokenStatistics:
    """Measure attention entropy and norms in conversations, up to where the last answer begins or would begin.

    The attention weights are the exact ones, under any attention implementation (`attention_weights`).

    Args:
        model: a LLaVA or LLaViT of this package.
        processor: that of the model.
        conversations: lists of messages, each with an image.

    Raises:
        ValueError: no conversation, or one without an image.

    Example:
        ```python
        found = token_statistics(model, processor, [one_image("cat.jpg")])
        text, visual = found.entropy.mean(-1)  # bits by layer
        ```
    """
    if not len(conversations):
        raise ValueError("conversations: expected at least one, got none")
    count = model.config.llm.num_hidden_layers
    heads = model.config.llm.num_attention_heads
    entropy, ceiling = np.zeros((2, count, heads)), np.zeros((2, count))
    lengths: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for number, messages in enumerate(conversations):
        prompt, _ = before_answer(messages)
        encoded = processor.encode(prompt, add_generation_prompt=True, name=f"conversation {number}")
        if "pixel_values" not in encoded:
            raise ValueError(f"conversation {number}: expected an image, got none: it has no visual tokens")
        kinds = (encoded["image_ids"] < 0, encoded["image_ids"] >= 0)
        read, written = hidden_states(model, batch_of(model, encoded))
        norms_nl = torch.stack([each[0].float().norm(dim=-1) for each in [read, *written]]).cpu().numpy()
        for mine, mask in zip(lengths, kinds, strict=True):
            mine.append(norms_nl[:, mask.numpy()])
        for layers, bits_nhl, most_nl in _entropies(model, encoded, count, heads):
            for kind, mask in enumerate(kinds):
                entropy[kind, layers] += bits_nhl[..., mask].sum(-1).numpy()
                ceiling[kind, layers] += most_nl[..., mask].sum(-1).numpy()
    norms = [np.concatenate(each, 1) for each in lengths]
    tokens = norms[0].shape[1], norms[1].shape[1]
    each_kind = np.array(tokens)
    return TokenStatistics(
        entropy=entropy / each_kind[:, None, None],
        ceiling=ceiling / each_kind[:, None],
        norms=np.stack([np.percentile(each, PERCENTILES, axis=1).T for each in norms]),
        tokens=tokens,
        conversations=len(conversations),
    )


def entropy_bits(weights: torch.Tensor) -> torch.Tensor:
    """Return the entropy over the last axis, in bits.

    Example:
        >>> entropy_bits(torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])).tolist()
        [2.0, 0.0]
    """
    return torch.special.entr(weights).sum(-1) / np.log(2)


def _entropies(model: Any, encoded: Any, count: int, heads: int) -> Any:
    """Give entropies, some layers at a time, so that the weights of a long conversation fit into memory."""
    length = len(encoded["input_ids"])
    each = max(1, BYTES // (4 * heads * length**2))
    for start in range(0, count, each):
        layers = list(range(start, min(start + each, count)))
        weights_nhll = attention_weights(model, encoded, range(length), layers)
        seen = (weights_nhll > 0).any(1).sum(-1).double()  # what any head gives a weight to
        yield layers, entropy_bits(weights_nhll), seen.log2()
