"""What a model is, as one number: a hash of weights, configuration and processor."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from llavit.model.endings import end_tokens, never_generated

# Where a model was loaded from, by which version and how it computes: not what it is.
_PASSING = ("_name_or_path", "transformers_version", "_attn_implementation", "attn_implementation")

SERVED = "served as "
"""Stands before the name of a model that was asked over HTTP, in place of a fingerprint."""


def model_fingerprint(model: Any, processor: Any) -> str:
    """Return the sha256 of a model's weights, its configuration, its chat template and its preprocessing.

    Weights count as they are loaded: in another dtype they are other numbers. Of the `generation_config` count the
    tokens that end an answer and those that are never generated; how tokens are chosen is up to who asks.

    Args:
        model: a LLaViT.
        processor: its processor.

    Example:
        fingerprint = model_fingerprint(model, processor)
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    about = {
        "config": _lasting(model.config.to_dict()),
        "chat_template": processor.chat_template,
        "preprocessing": _lasting(json.loads(processor.image_processor.to_json_string())),
        "tokens": len(processor.tokenizer),
        "ends": end_tokens(model.generation_config),
        "never": never_generated(model),
    }
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if key not in _PASSING}
    return value
