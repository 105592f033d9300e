"""How wide a projector, and what rank of adapters, cost as many parameters as visual QKV."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llavit.model.adapters import lora_targets
from llavit.train.flops import meta_model
from llavit.train.model_config import model_config
from llavit.train.parts import parameters_by_part
from llavit.train.recipe import ModelSpec


def matched_width(spec: ModelSpec, layer: int) -> int:
    """Give the inner width of a LLaVA's projector that has visual QKV's number of parameters on top of its own.

    Args:
        spec: the recipe's model; only its parts matter.
        layer: the one tower layer that LLaVA reads.

    Example:
        >>> spec = ModelSpec(vision="openai/clip-vit-large-patch14-336", llm="lmsys/vicuna-7b-v1.5")
        >>> round(matched_width(spec, -2) / 4096)
        78
    """
    model = _model(replace(spec, visual_qkv=True, vision_feature_layer=layer, projector_width=None))
    parts = {name: sum(p.numel() for p in part.values()) for name, part in parameters_by_part(model).items()}
    projector = model.model.multi_modal_projector
    biased = projector.linear_1.bias is not None
    each = projector.linear_1.in_features + projector.linear_2.out_features + biased
    fixed = projector.linear_2.out_features if biased else 0
    return max(1, round((parts["projector"] + parts["visual_qkv"] - fixed) / each))


def matched_rank(spec: ModelSpec) -> int:
    """Give the rank of adapters on all of the LLM's linear layers that have visual QKV's number of parameters.

    Example:
        >>> matched_rank(ModelSpec(vision="openai/clip-vit-large-patch14-336", llm="lmsys/vicuna-7b-v1.5"))
        645
    """
    model = _model(replace(spec, visual_qkv=True, projector_width=None))
    visual = sum(p.numel() for p in parameters_by_part(model)["visual_qkv"].values())
    layers = len(model.get_decoder().layers)
    first = model.get_decoder().layers[0]
    rank_1 = 0
    for name in lora_targets(model):
        linear: Any = first.get_submodule(name.removeprefix("layers.*."))
        rank_1 += layers * (linear.in_features + linear.out_features)
    return max(1, round(visual / rank_1))


def _model(spec: ModelSpec) -> Any:
    return meta_model(model_config(spec))
