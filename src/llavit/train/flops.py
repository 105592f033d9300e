"""How many floating point operations a training sample takes: from a configuration, without weights.

Counted are matrix products (of an n x k with a k x m matrix: 2nkm), as `torch.utils.flop_counter` and model FLOPs
utilisation (MFU) do; everything else in a transformer is small beside them. Per linear layer and token:

    2 x weights    forward
    2 x weights    backward, to its input: where something before it trains
    2 x weights    backward, to its weights: where it trains itself

Attention within a sample of l tokens takes 4 l^2 x (heads x head dimension) per layer forward, twice that backward: the
mask is general, so the whole square counts, as in PaLM's MFU. Samples that are packed into one row do not see each
other, so what a row computes between them is no part of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from llavit.model.configuration import LlavitConfig
from llavit.model.families import FAMILIES, Family
from llavit.model.modeling import LlavitForConditionalGeneration
from llavit.model.routing import RoutedLinear


@dataclass(frozen=True)
class MatmulSizes:
    """What of a model is multiplied by tokens; weights are counted as numbers.

    Attributes:
        tower: weights per patch token of the tower.
        patches: weights of the patch embedding, per patch.
        tower_tokens: tokens in the tower per image, CLS included.
        tower_attention: layers x width of the tower.
        tower_depth: share of the tower's layers up to the deepest one whose features are read.
        projector_in: weights of the projector's first layer.
        projector_out: weights of the projector's second layer.
        qkv: weights of the QKV projections that one token goes through, all layers.
        first_qkv: those of the first layer.
        layers: the other weights of the LLM's layers.
        last: of those, the last product of each layer: a second run stops before it, having all that it needs.
        llm_attention: layers x heads x head dimension of the LLM.
        head: weights of the output head.
        lora: weights of rank-1 adapters on the LLM's layers.
        lora_qkv: of those, on text QKV.
    """

    tower: int
    patches: int
    tower_tokens: int
    tower_attention: int
    tower_depth: float
    projector_in: int
    projector_out: int
    qkv: int
    first_qkv: int
    layers: int
    last: int
    llm_attention: int
    head: int
    lora: int
    lora_qkv: int


def matmul_sizes(config: LlavitConfig) -> MatmulSizes:
    """Measure a model by building it without weights (on torch's meta device).

    Example:
        >>> from transformers import CLIPVisionConfig, LlamaConfig
        >>> config = LlavitConfig(vision_config=CLIPVisionConfig(), text_config=LlamaConfig(num_hidden_layers=2))
        >>> matmul_sizes(config).head == 4096 * 32000
        True
    """
    return _matmul_sizes(config.to_json_string(use_diff=False))


@lru_cache(maxsize=8)
def _matmul_sizes(json_text: str) -> MatmulSizes:
    config = LlavitConfig.from_dict(json.loads(json_text))
    model = meta_model(config)
    tower, llm = model.model.vision_tower, model.model.language_model
    patch = sum(m.weight.numel() for m in tower.modules() if isinstance(m, nn.Conv2d))
    routed = {n: m for n, m in llm.named_modules() if isinstance(m, RoutedLinear)}
    text = {f"{name}.text" for name in routed} or _projection_names(config, llm)
    visual = {f"{name}.visual" for name in routed}
    linears = {n: m for n, m in llm.named_modules() if isinstance(m, nn.Linear) and n not in visual}
    qkv = {name: module.weight.numel() for name, module in linears.items() if name in text}
    last = {name.split(".")[1]: module.weight.numel() for name, module in linears.items()}  # of each layer
    extra = 1 if config.vision_feature_select_strategy == "default" else 0
    heads = config.llm.num_attention_heads
    head_dim = getattr(config.llm, "head_dim", None) or config.llm.hidden_size // heads
    rank_1 = {name: module.in_features + module.out_features for name, module in linears.items()}
    projector = model.model.multi_modal_projector
    return MatmulSizes(
        tower=sum(
            m.weight.numel() for n, m in tower.named_modules() if isinstance(m, nn.Linear) and _in_layer(n)
        ),
        patches=patch,
        tower_tokens=config.image_seq_length + extra,
        tower_attention=config.tower.num_hidden_layers * config.tower.hidden_size,
        tower_depth=_deepest_layer(config) / config.tower.num_hidden_layers,
        projector_in=projector.linear_1.weight.numel(),
        projector_out=projector.linear_2.weight.numel(),
        qkv=sum(qkv.values()),
        first_qkv=sum(count for name, count in qkv.items() if name.startswith("layers.0.")),
        layers=sum(module.weight.numel() for module in linears.values()) - sum(qkv.values()),
        last=sum(last.values()),
        llm_attention=config.llm.num_hidden_layers * heads * head_dim,
        head=model.lm_head.weight.numel(),
        lora=sum(rank_1.values()),
        lora_qkv=sum(size for name, size in rank_1.items() if name in text),
    )


def meta_model(config: LlavitConfig) -> Any:
    """Build a model whose tensors have shapes and no storage.

    Example:
        >>> meta_model(LlavitConfig()).lm_head.weight.is_meta
        True
    """
    with torch.device("meta"):
        return LlavitForConditionalGeneration(config)


def training_flops(
    config: LlavitConfig,
    rates: Mapping[str, float],
    text_tokens: float,
    visual_tokens: float,
    supervised_tokens: float,
    images: float,
    *,
    token_pairs: float | None = None,
    lora_rank: int = 0,
    gradient_checkpointing: bool = False,
) -> float:
    """Count the floating point operations of forward and backward pass over one sample, or over a batch.

    Args:
        config: of the model.
        rates: learning rate of each part (`llavit.train.parts.PARTS`); a part without one is frozen, `text_qkv`
            goes with `llm`.
        text_tokens: tokens that are words, without padding; of all samples together.
        visual_tokens: tokens that are patches, of all samples together.
        supervised_tokens: tokens with a label: only these have logits (`supervised_logits_only`).
        images: number of images.
        token_pairs: for attention, the squares of the samples' lengths, added up; as of a single sample if not given.
        lora_rank: of the adapters that train instead of the LLM's own weights; 0 for none.
        gradient_checkpointing: count the second forward pass through the LLM's layers. Leave it off for MFU,
            which counts what the model needs, not what a memory trade repeats.

    Returns:
        FLOPs. Divided by the seconds they took and by the hardware's peak, that is the MFU.

    Example:
        >>> from transformers import CLIPVisionConfig, LlamaConfig
        >>> config = LlavitConfig(vision_config=CLIPVisionConfig(), text_config=LlamaConfig(num_hidden_layers=2))
        >>> frozen = training_flops(config, {"projector": 1e-3}, 100, 576, 50, 1)
        >>> full = training_flops(config, {"projector": 2e-5, "llm": 2e-5}, 100, 576, 50, 1)
        >>> 1.2 < full / frozen < 1.5
        True
    """
    size = matmul_sizes(config)
    trains = {part for part, rate in rates.items() if rate > 0}
    tokens = text_tokens + visual_tokens
    pairs = tokens**2 if token_pairs is None else token_pairs
    total = _tower_flops(size, images, trained="vision_tower" in trains)

    # Projector: one token for each patch.
    total += 2 * visual_tokens * (size.projector_in + size.projector_out)
    if trains & {"projector", "vision_tower"}:
        total += 2 * visual_tokens * size.projector_out
    if "vision_tower" in trains:
        total += 2 * visual_tokens * size.projector_in
    if "projector" in trains:
        total += 2 * visual_tokens * (size.projector_in + size.projector_out)

    # LLM: forward, and backward to its inputs: whatever trains, something at or before its first layer does.
    forward = 2 * tokens * (size.qkv + size.layers) + 4 * size.llm_attention * pairs
    total += forward
    if gradient_checkpointing:
        total += forward - (0 if lora_rank else 2 * tokens * size.last)
    total += 2 * tokens * (size.qkv + size.layers) + 8 * size.llm_attention * pairs
    if not trains & {"projector", "vision_tower"} and ("llm" not in trains or lora_rank):
        total -= 2 * tokens * size.first_qkv  # nothing before the first layer's QKV trains
    total += 2 * 2 * supervised_tokens * size.head

    # LLM: backward to its weights.
    by_text = text_tokens if config.visual_qkv else tokens
    if config.visual_qkv and "visual_qkv" in trains:
        total += 2 * visual_tokens * size.qkv
    if "llm" in trains and lora_rank:
        adapters = lora_rank * (tokens * (size.lora - size.lora_qkv) + by_text * size.lora_qkv)
        total += 2 * adapters * (4 if gradient_checkpointing else 3)
    elif "llm" in trains:
        total += 2 * (tokens * size.layers + supervised_tokens * size.head)
    if not lora_rank and rates.get("text_qkv", rates.get("llm", 0.0)) > 0:
        total += 2 * by_text * size.qkv
    return float(total)


def _tower_flops(size: MatmulSizes, images: float, trained: bool) -> float:
    """Count the vision tower: all layers forward; if it trains, backward from the deepest layer that is read."""
    layers = 2 * size.tower_tokens * size.tower + 4 * size.tower_attention * size.tower_tokens**2
    embedding = 2 * size.tower_tokens * size.patches
    backward = 2 * layers * size.tower_depth + embedding if trained else 0  # to the pixels nothing flows
    return images * (layers + embedding + backward)


def _deepest_layer(config: LlavitConfig) -> int:
    """Give the deepest tower layer whose features are read; 0 is the embedding."""
    layers, count = config.vision_feature_layer, config.tower.num_hidden_layers
    return max(layer % (count + 1) for layer in ([layers] if isinstance(layers, int) else layers))


def _in_layer(name: str) -> bool:
    """Say whether a module stands in one of the numbered layers (and not in a pooling head)."""
    return any(word.isdigit() for word in name.split("."))


def _projection_names(config: LlavitConfig, llm: nn.Module) -> set[str]:
    """Name the QKV projections of an LLM without routing."""
    family = FAMILIES.get(config.llm.model_type, Family())
    return {name for name, _ in llm.named_modules() if name.split(".")[-1] in family.projections}
