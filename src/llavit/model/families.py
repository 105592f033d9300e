"""The LLM families that LLaViT knows: where their attention layers keep the QKV projections.

To add a family, add one line to `FAMILIES` and a tiny configuration to `tests/model/families.py`; the
conformance suite then runs over it. A family qualifies when

- its decoder layers pass unknown keyword arguments on to `self_attn` (that is how the route reaches it),
- its model takes a ready-made 4-D mask, or a dict of masks by layer type, as `attention_mask`.
"""

from dataclasses import dataclass

from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Family:
    """Where an LLM keeps its QKV projections.

    Attributes:
        projections: names of the linear layers inside the attention module that make q, k and v
            (three of them, or one fused layer).
        attention: name of the attention module inside a decoder layer.
    """

    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    attention: str = "self_attn"


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "mistral": Family(),
    "phi3": Family(projections=("qkv_proj",)),
    "gemma2": Family(),
    "gemma3_text": Family(),
    "smollm3": Family(),
    "olmo2": Family(),
}
"""By `model_type` of the LLM's configuration."""


def family_of(text_config: PreTrainedConfig) -> Family:
    """Return the family of an LLM.

    Args:
        text_config: the LLM's own configuration (not that of the vision-language model).

    Raises:
        ValueError: if the family is not in `FAMILIES`; the message names this file.

    Example:
        >>> from transformers import LlamaConfig
        >>> family_of(LlamaConfig()).projections
        ('q_proj', 'k_proj', 'v_proj')
    """
    family = FAMILIES.get(text_config.model_type)
    if family is None:
        raise ValueError(
            f"LLM family {text_config.model_type!r} is not supported with visual QKV or bidirectional visual "
            f"attention; supported: {', '.join(sorted(FAMILIES))}. To add it, extend FAMILIES in "
            "src/llavit/model/families.py and its conformance test in tests/model/families.py."
        )
    return family
