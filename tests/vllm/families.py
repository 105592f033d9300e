"""Tiny configurations of the LLM families of the conformance suite (`tests/model/families.py`), for vLLM."""

from collections.abc import Callable

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from tests.tiny import tokenizer
from tests.vllm.parts import PATCHES, SIZES

_SIZES = {**SIZES, "vocab_size": len(tokenizer())}
_WINDOW = PATCHES  # vLLM's CPU backend takes none that is shorter than an image
_GEMMA = {**_SIZES, "sliding_window": _WINDOW, "query_pre_attn_scalar": 32}

LLMS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "qwen2": lambda: Qwen2Config(**_SIZES),
    "qwen2-sliding": lambda: Qwen2Config(
        **_SIZES, use_sliding_window=True, sliding_window=_WINDOW, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**_SIZES),
    "mistral": lambda: MistralConfig(**_SIZES, sliding_window=None),
    "mistral-sliding": lambda: MistralConfig(**_SIZES, sliding_window=_WINDOW),
    "phi3": lambda: Phi3Config(**_SIZES, sliding_window=None),
    "gemma2": lambda: Gemma2Config(**_GEMMA),
    "gemma3": lambda: Gemma3TextConfig(
        **_GEMMA,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "smollm3": lambda: SmolLM3Config(**{**_SIZES, "num_hidden_layers": 4}),
    "olmo2": lambda: Olmo2Config(**_SIZES),
}
