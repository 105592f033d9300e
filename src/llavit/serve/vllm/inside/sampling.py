"""The image token is never generated, as `generation_config.suppress_tokens` says to transformers."""

from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor


class NoImageToken(LogitsProcessor):
    """Takes the image token out of what is sampled; log-probabilities that a client asks for stay the model's own."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
        self.token = vllm_config.model_config.hf_config.image_token_id

    def is_argmax_invariant(self) -> bool:
        """Whether greedy sampling can do without it."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Keep nothing: all requests are alike."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Suppress in place; logits are (requests, vocabulary)."""
        logits[:, self.token] = -torch.inf
        return logits
