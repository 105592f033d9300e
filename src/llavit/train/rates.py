"""What of a model trains, and how fast: a learning rate for each part, and adapters."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rate of each part of the model; 0 freezes it.

    Attributes:
        vision_tower: the image encoder.
        projector: the MLP between tower and LLM.
        visual_qkv: the visual tokens' own q, k and v projections in the LLM.
        llm: everything else in the LLM, embeddings and output head included.
        text_qkv: of that, the q, k and v projections; `llm` decides for them too if this is not given.
    """

    vision_tower: float = 0.0
    projector: float = 0.0
    visual_qkv: float = 0.0
    llm: float = 0.0
    text_qkv: float | None = None

    def by_part(self) -> dict[str, float]:
        """Give the rate of each part; `text_qkv` is one where it has a rate of its own.

        Example:
            >>> LearningRates(projector=1e-3).by_part()
            {'vision_tower': 0.0, 'projector': 0.001, 'visual_qkv': 0.0, 'llm': 0.0}
        """
        rates = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: rate for name, rate in rates.items() if rate is not None}

    def __post_init__(self) -> None:
        rates = self.by_part()
        for name, rate in rates.items():
            if rate < 0:
                raise ValueError(f"{name}: expected 0 or more, got {rate}")
        if not any(rates.values()):
            raise ValueError(
                f"every part is frozen, expected a learning rate above 0 for one of {', '.join(rates)}"
            )


@dataclass(frozen=True)
class LoraSpec:
    """Adapters on the LLM's linear layers, which train instead of its own weights (LoRA; extra `lora`).

    The visual QKV and the projector have no adapters: like everywhere, their learning rates decide, and they
    train in full. Embeddings, norms and the output head of the LLM stay frozen. The defaults are LLaVA-1.5's.

    Attributes:
        rank: inner width of an adapter.
        alpha: an adapter's output is scaled by alpha / rank.
        dropout: share of an adapter's inputs that is dropped.
        targets: "auto" for all linear layers, or the names of some, like `[q_proj, v_proj]`.
        quantize: hold the LLM's own layers in 4 bits (QLoRA; extra `qlora`), or not.
    """

    rank: int = 128
    alpha: float = 256.0
    dropout: float = 0.05
    targets: Literal["auto"] | tuple[str, ...] = "auto"
    quantize: Literal["none", "nf4"] = "none"

    def __post_init__(self) -> None:
        require_positive(self, "rank", "alpha")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 <= dropout < 1, got {self.dropout}")
        if not self.targets:
            raise ValueError("targets: expected auto or names of linear layers, got an empty list")


def require_positive(spec: Any, *names: str) -> None:
    """Check that values, where given, are above 0.

    Raises:
        ValueError: one is not; names it.

    Example:
        >>> require_positive(LoraSpec(), "rank", "alpha")
    """
    for name in names:
        value = getattr(spec, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name}: expected more than 0, got {value}")
