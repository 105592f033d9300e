"""Attention rollout: which input tokens a token's state is made of, if attention and residual stream mix states evenly.

    R_0 = 1,   R_n = (A_n + 1) / 2  R_(n-1)          A_n: mean over the heads of layer n

(Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, arXiv 2005.00928, section 3.) One layer's
attention says where states are read; what these states hold has itself been mixed by the layers below, which the
product takes into account. It knows nothing of values and MLPs.

Shapes: n layers, l sequence, h heads, q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llavit.inspect.weights import chosen_layers, watch_attention


class Rollout:
    """The product so far; takes up the layers of `watch_attention` from the first on.

    Args:
        length: of the sequence.

    Attributes:
        product_ll: (l, l) float32; each row sums to 1.

    Example:
        >>> rollout = Rollout(2)
        >>> rollout.add(torch.tensor([0, 1]), torch.tensor([[[1.0, 0.0], [0.5, 0.5]]]))
        True
        >>> rollout.product_ll.tolist()
        [[1.0, 0.0], [0.25, 0.75]]
    """

    def __init__(self, length: int, device: Any = None):
        self.product_ll = torch.eye(length, device=device)
        self._mean_ll = torch.zeros(length, length, device=device)
        self._seen = 0

    def add(self, rows_q: torch.Tensor, weights_hql: torch.Tensor) -> bool:
        """Take up a piece of a layer's rows; say whether it completed the layer."""
        self._mean_ll[rows_q] = weights_hql.mean(0)
        self._seen += len(rows_q)
        if self._seen < len(self._mean_ll):
            return False
        self.product_ll = (self._mean_ll @ self.product_ll + self.product_ll) / 2
        self._seen = 0
        return True


def attention_rollout(
    model: Any, inputs: Mapping[str, torch.Tensor], layers: Sequence[int] | None = None
) -> torch.Tensor:
    """Return how much each input token weighs in each token's state behind layers, by attention rollout.

    Args:
        model: a LLaVA or LLaViT of this package, with any attention implementation.
        inputs: of one conversation, as `LlavitProcessor.encode` gives them, without labels.
        layers: up to and with which the product goes, from 0, negative ones from the end; the last if not given.

    Returns:
        (n, l, l) float32 on the CPU: of tokens (rows), in input tokens (columns); each row sums to 1.

    Raises:
        ValueError: as `watch_attention`.

    Example:
        ```python
        encoded = processor.encode(messages, add_generation_prompt=True)
        rolled_ll = attention_rollout(model, encoded)[0]
        share_of_image = rolled_ll[-1, encoded["image_ids"] >= 0].sum()
        ```
    """
    chosen = chosen_layers(model, [-1] if layers is None else layers)
    rollout, kept = Rollout(len(inputs["input_ids"]), model.device), {}

    def look(layer: int, rows_q: torch.Tensor, weights_hql: torch.Tensor) -> None:
        if rollout.add(rows_q, weights_hql) and layer in chosen:
            kept[layer] = rollout.product_ll.cpu()

    watch_attention(model, inputs, look, layers=range(max(chosen) + 1))
    return torch.stack([kept[layer] for layer in chosen])
