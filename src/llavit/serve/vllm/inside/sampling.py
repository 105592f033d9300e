"""The image token is never generated, as `generation_config.suppress_tokens` says to transformers."""

from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor as ForFirstRunner
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as ForSecondRunner


class NoImageToken(ForFirstRunner, ForSecondRunner):
    """Takes the image token out of what is sampled; log-probabilities that a client asks for stay the model's own.

    vLLM has two model runners, each with an interface of its own; which of them runs is decided late.
    """

    def __init__(self, vllm_config: Any, *runner: Any):
        self.token = vllm_config.model_config.hf_config.image_token_id

    def apply(self, logits: torch.Tensor, context: Any = None) -> torch.Tensor:
        """Suppress in place; logits are (requests, vocabulary)."""
        logits[:, self.token] = -torch.inf
        return logits

    def is_argmax_invariant(self) -> bool:
        """Whether greedy sampling can do without it (first runner)."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Keep nothing: all requests are alike (first runner)."""
