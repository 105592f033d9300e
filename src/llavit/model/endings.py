"""What a model's `generation_config` says of each answer: the tokens that end it and those that it never has."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig


def end_tokens(config: GenerationConfig) -> list[int]:
    """Give the tokens that end an answer, in ascending order; none where only its length does.

    Example:
        >>> end_tokens(GenerationConfig(eos_token_id=[7, 2])), end_tokens(GenerationConfig(eos_token_id=2))
        ([2, 7], [2])
        >>> end_tokens(GenerationConfig())
        []
    """
    ends = config.eos_token_id
    if ends is None:
        return []
    return sorted(ends) if isinstance(ends, list | tuple) else [int(ends)]


def never_generated(model: Any) -> list[int]:
    """Give the tokens that no answer of a LLaViT has, in ascending order: the image token and those suppressed.

    Args:
        model: with `config` and `generation_config`.

    Example:
        suppressed = torch.tensor(never_generated(model), device=model.device)
    """
    return sorted({model.config.image_token_id, *(model.generation_config.suppress_tokens or ())})
