"""How far visual and text projections are apart after training, layer by layer.

Visual projections start as copies of the text projections; both are trained. What a LLaVA has to compare is another
model: the LLM that it was trained from, given as a reference.

Shapes: p pairs that are compared, n layers; the last axis is q, k, v.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from llavit.inspect.drift_charts import drift_figure
from llavit.inspect.report import Analysis, escape
from llavit.inspect.tokens import TokenStatistics
from llavit.model.encoding import evaluating
from llavit.model.families import FAMILIES, Family
from llavit.model.routing import RoutedLinear

QKV = ("q", "k", "v")


@dataclass(frozen=True, kw_only=True, eq=False)
class Drift(Analysis):
    """Distances between projections, and what tokens of either kind do.

    Attributes:
        relative: (p, n, 3) Frobenius norm of the difference, over that of the second of the pair.
        cosine: (p, n, 3) of the two, as vectors of all their numbers.
        pairs: (p) names, such as "visual to text", "text to reference"; none where there is nothing to compare.
        note: what could not be compared, and why; "" if nothing.
        tokens: attention entropy and norms of visual and text tokens, if conversations were looked at.
    """

    NAME: ClassVar[str] = "drift"
    TITLE: ClassVar[str] = "Drift: visual and text tokens apart"
    ABOUT: ClassVar[str] = (
        "How far projections are apart in each layer: the Frobenius norm of their difference over that of the second, "
        "and their cosine (0 and 1 for equal ones). With conversations: how many bits of entropy the attention of text "
        "and of visual tokens has, beside the most it could have, and how long their vectors are."
    )

    relative: np.ndarray
    cosine: np.ndarray
    pairs: list[str]
    note: str = ""
    tokens: TokenStatistics | None = None

    def figure(self) -> Any:
        """Distances by layer; entropy and norms beside them."""
        return drift_figure(self)

    def body(self) -> str:
        """Return the figure, and what could not be compared."""
        return (f"<p>{escape(self.note)}</p>" if self.note else "") + super().body()

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the distances, and of tokens `entropy`, `ceiling` and `norms`."""
        return {**super().arrays(), **({} if self.tokens is None else self.tokens.arrays())}

    def facts(self) -> dict[str, Any]:
        """Return settings and means over layers."""
        means = {
            pair: {
                f"{what} of {name}": round(float(values[number, :, column].mean()), 4)
                for what, values in (("relative distance", self.relative), ("cosine", self.cosine))
                for column, name in enumerate(QKV)
            }
            for number, pair in enumerate(self.pairs)
        }
        tokens = {} if self.tokens is None else {"tokens": self.tokens.facts()}
        return {**super().facts(), "means over layers": means, **tokens}


@torch.no_grad()
def qkv_drift(
    model: Any,
    reference: Any | None = None,
    *,
    name: str = "model",
    reference_name: str = "reference",
    tokens: TokenStatistics | None = None,
) -> Drift:
    """Compare the QKV projections of visual and text tokens, and both with a reference.

    Weights count as they were loaded: bfloat16 moves each by some 0.2 %, which beside a reference in float32 is a
    distance, so load a model in float32 (`load_model(..., dtype="float32")`) that training has moved little. Biases,
    where the LLM has them, count as one more column. Fused projections are compared part by part. Adapters and
    quantised weights count as what they do together.

    Args:
        model: a LLaVA or LLaViT of this package.
        reference: an LLM, LLaVA or LLaViT with the same shapes, such as the LLM that the model was trained from; of a
            LLaViT its text projections. None compares visual with text projections only.
        name: of the model in reports.
        reference_name: of the reference in reports.
        tokens: of `token_statistics`, to be shown beside.

    Raises:
        ValueError: a reference of other shapes.

    Example:
        >>> from transformers import CLIPVisionConfig, LlamaConfig
        >>> from llavit import LlavitConfig, LlavitForConditionalGeneration
        >>> vision = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        ...     num_attention_heads=2, image_size=4, patch_size=2)
        >>> text = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, num_key_value_heads=1)
        >>> model = LlavitForConditionalGeneration(LlavitConfig(
        ...     vision_config=vision, text_config=text, image_token_index=15))
        >>> model.copy_text_to_visual()
        >>> found = qkv_drift(model)
        >>> found.pairs, found.relative.tolist()
        (['visual to text'], [[[0.0, 0.0, 0.0]]])
    """
    mine = qkv_weights(model)
    theirs = None if reference is None else qkv_weights(reference)["text"]
    compared: list[tuple[str, Any, Any]] = []
    if "visual" in mine:
        compared.append(("visual to text", mine["visual"], mine["text"]))
    if theirs is not None:
        compared += [(f"{kind} to reference", mine[kind], theirs) for kind in mine]
    count = len(mine["text"])
    relative, cosine = np.zeros((2, len(compared), count, len(QKV)))
    for number, (pair, ones, others) in enumerate(compared):
        if len(ones) != len(others):
            raise ValueError(f"{pair}: expected {len(ones)} layers in {reference_name}, got {len(others)}")
        for layer, (one, other) in enumerate(zip(ones, others, strict=True)):
            for column, letter in enumerate(QKV):
                relative[number, layer, column], cosine[number, layer, column] = _apart(
                    one[letter], other[letter], f"{pair}, layer {layer}, {letter}"
                )
    return Drift(
        model=name,
        settings={
            "reference": None if reference is None else reference_name,
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        relative=relative,
        cosine=cosine,
        pairs=[pair for pair, _, _ in compared],
        note=_note("visual" in mine, reference is not None),
        tokens=tokens,
    )


def load_reference(pretrained: str | Path) -> Any:
    """Load what a model is compared with: an LLM, a LLaVA or a LLaViT, in float32.

    Raises:
        ValueError: no such folder.
        OSError: no such model.

    Example:
        ```python
        drift = qkv_drift(model, load_reference("HuggingFaceTB/SmolLM2-135M-Instruct"))
        ```
    """
    from transformers import AutoModelForCausalLM, PreTrainedConfig

    from llavit.loading import load_model, require_source

    require_source(pretrained)
    stated, _ = PreTrainedConfig.get_config_dict(pretrained)
    if stated.get("model_type") in ("llava", "llavit"):
        return load_model(pretrained, dtype="float32", device="cpu")[0]
    return AutoModelForCausalLM.from_pretrained(pretrained, dtype=torch.float32)


@torch.no_grad()
def qkv_weights(model: Any) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Return the projections of each layer as matrices, in float32 on the CPU.

    Args:
        model: an LLM, or a LLaVA or LLaViT of this package.

    Returns:
        "text", and of a LLaViT "visual": a list by layer of q, k and v, (out, in), with a bias (out, in + 1).

    Raises:
        ValueError: projections are not where the family has them.

    Example:
        ```python
        change = qkv_weights(model)["visual"][0]["v"] - qkv_weights(model)["text"][0]["v"]
        ```
    """
    decoder = _decoder(model)
    family = FAMILIES.get(decoder.config.model_type, Family())
    found: dict[str, list[dict[str, torch.Tensor]]] = {"text": []}
    for layer in decoder.layers:
        attention = getattr(layer, family.attention, None)
        parts: dict[str, list[torch.Tensor]] = {}
        for name in family.projections:
            projection = getattr(attention, name, None)
            if projection is None:
                raise ValueError(
                    f"LLM family {decoder.config.model_type!r}: no {family.attention}.{name} in its layers; add it to "
                    "FAMILIES in src/llavit/model/families.py"
                )
            routed = isinstance(projection, RoutedLinear)
            kinds = {"text": projection.text, "visual": projection.visual} if routed else {"text": projection}
            for kind, module in kinds.items():
                with evaluating(module):  # adapters may have dropout
                    parts.setdefault(kind, []).append(_matrix(module))
        for kind, matrices in parts.items():
            found.setdefault(kind, []).append(dict(zip(QKV, _split(matrices, decoder.config), strict=True)))
    return found


def _decoder(model: Any) -> Any:
    """Find the part with the layers."""
    for path in ("model.language_model", "language_model", "model", ""):
        part = model
        for name in path.split(".") if path else ():
            part = getattr(part, name, None)
        if hasattr(part, "layers"):
            return part
    raise ValueError(
        f"expected an LLM, a LLaVA or a LLaViT, whose decoder has layers; got {type(model).__name__}"
    )


def _matrix(module: nn.Module) -> torch.Tensor:
    """Return what a linear layer does as a matrix, its bias as the last column."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not (type(module) is nn.Linear and isinstance(weight, torch.Tensor)):
        # Adapters, quantised weights: what comes out for nothing, and for each direction of the input.
        width = module.in_features
        some = next(p for p in [*module.parameters(), *module.buffers()] if p.is_floating_point())
        blank = torch.zeros(1, int(width), dtype=some.dtype, device=some.device)  # type: ignore[arg-type]
        offset = module(blank)[0].float()
        eye = torch.eye(int(width), dtype=some.dtype, device=some.device)  # type: ignore[arg-type]
        weight, bias = (module(eye).float() - offset).T, offset if offset.any() else None
    columns = [weight.detach().float().cpu()]
    if bias is not None:
        columns.append(bias.detach().float().cpu()[:, None])
    return torch.cat(columns, 1)


def _split(matrices: list[torch.Tensor], config: Any) -> list[torch.Tensor]:
    """Cut a fused projection into q, k and v."""
    if len(matrices) == len(QKV):
        return matrices
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = config.num_key_value_heads or heads
    return list(matrices[0].split([heads * width, groups * width, groups * width]))


def _apart(one: torch.Tensor, other: torch.Tensor, where: str) -> tuple[float, float]:
    if one.shape != other.shape:
        raise ValueError(
            f"{where}: expected a reference with the same shape {tuple(one.shape)}, got {tuple(other.shape)}"
        )
    a, b = one.double().flatten(), other.double().flatten()
    length, other_length = float(a.norm()), float(b.norm())
    return float((a - b).norm()) / other_length, float(a @ b) / (length * other_length)


def _note(visual: bool, reference: bool) -> str:
    if visual or reference:
        return ""
    return (
        "Not applicable: this model has no separate QKV for visual tokens. A reference, such as the LLM that it was "
        "trained from (--reference), says how far its projections have moved."
    )
