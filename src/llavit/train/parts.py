"""The four parts of a model that train or stay frozen, each with its own learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from torch import nn

from llavit.model.adapters import has_adapters, is_adapter
from llavit.model.families import FAMILIES

PARTS = ("vision_tower", "projector", "visual_qkv", "llm")
"""Names of the parts; a recipe's `learning_rates` has the same keys."""

TEXT_QKV = "text_qkv"
"""A part of its own, out of `llm`, where a recipe gives it a learning rate."""

_PROJECTIONS = {name for family in FAMILIES.values() for name in family.projections}


def part_of(parameter: str) -> str:
    """Say which part a parameter belongs to.

    [Contract] with the model: tower, projector and LLM are modules of these names, and the visual projections
    are called `visual` in each routed linear layer of the LLM.

    Raises:
        ValueError: a parameter of none of the parts; training must never decide about it by accident.

    Example:
        >>> part_of("model.language_model.layers.0.self_attn.q_proj.visual.weight")
        'visual_qkv'
    """
    words = parameter.split(".")
    if "vision_tower" in words:
        return "vision_tower"
    if "multi_modal_projector" in words:
        return "projector"
    if "language_model" in words:
        return "visual_qkv" if "visual" in words else "llm"
    if "lm_head" in words:
        return "llm"
    raise ValueError(f"parameter {parameter} belongs to none of the parts {', '.join(PARTS)}")


def parameters_by_part(model: nn.Module, text_qkv_apart: bool = False) -> dict[str, dict[str, nn.Parameter]]:
    """Group a model's parameters: part to name to parameter. Tied ones are counted once.

    Args:
        model: a LLaViT.
        text_qkv_apart: the LLM's text QKV are a part of their own, `text_qkv`, after the others.

    Example:
        >>> model = nn.ModuleDict({"multi_modal_projector": nn.Linear(2, 3, bias=False)})
        >>> sum(p.numel() for p in parameters_by_part(model)["projector"].values())
        6
    """
    names = (*PARTS, TEXT_QKV) if text_qkv_apart else PARTS
    parts: dict[str, dict[str, nn.Parameter]] = {part: {} for part in names}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        if text_qkv_apart and part == "llm" and _PROJECTIONS & set(name.split(".")):
            part = TEXT_QKV
        parts[part][name] = parameter
    return parts


def freeze(model: nn.Module, rates: Mapping[str, float]) -> None:
    """Let exactly those parts train that have a learning rate above 0; of an LLM with adapters, only these.

    Raises:
        ValueError: nothing is left to train.

    Example:
        >>> model = nn.ModuleDict({"multi_modal_projector": nn.Linear(2, 2), "lm_head": nn.Linear(2, 2)})
        >>> freeze(model, {"projector": 1e-3})
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['multi_modal_projector.weight', 'multi_modal_projector.bias']
    """
    adapted = has_adapters(model)
    trains = 0
    for part, parameters in parameters_by_part(model, TEXT_QKV in rates).items():
        for name, parameter in parameters.items():
            wanted = rates.get(part, 0.0) > 0 and (part != "llm" or not adapted or is_adapter(name))
            parameter.requires_grad_(wanted)
            trains += parameter.numel() if wanted else 0
    if not trains:
        given = ", ".join(part for part, rate in rates.items() if rate > 0) or "none"
        raise ValueError(
            f"nothing to train: parts with a learning rate are {given}, and this model has none of them"
        )


def optimizer_groups(
    model: nn.Module, rates: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Make the optimizer's parameter groups: one or two per part that trains.

    Weight decay is for matrices only: norms, biases and other vectors go without.

    Returns:
        groups with `params`, `lr`, `weight_decay` and `part`.

    Example:
        >>> model = nn.ModuleDict({"multi_modal_projector": nn.Linear(2, 3)})
        >>> [(group["part"], group["lr"], group["weight_decay"])
        ...  for group in optimizer_groups(model, {"projector": 1e-3}, weight_decay=0.1)]
        [('projector', 0.001, 0.1), ('projector', 0.001, 0.0)]
    """
    groups = []
    for part, parameters in parameters_by_part(model, TEXT_QKV in rates).items():
        training = [parameter for parameter in parameters.values() if parameter.requires_grad]
        matrices = [parameter for parameter in training if parameter.ndim >= 2]
        vectors = [parameter for parameter in training if parameter.ndim < 2]
        for members, decay in ((matrices, weight_decay), (vectors, 0.0)):
            if members:
                groups.append({"params": members, "lr": rates[part], "weight_decay": decay, "part": part})
    return groups


def parts_table(model: nn.Module, rates: Mapping[str, float], title: str) -> Table:
    """Draw what trains: a row per part with its parameters, whether it trains, and its learning rate.

    Example:
        >>> model = nn.ModuleDict({"multi_modal_projector": nn.Linear(2, 2), "lm_head": nn.Linear(2, 2)})
        >>> table = parts_table(model, {"projector": 1e-3}, "pretrain")
        >>> [list(column.cells) for column in table.columns][2]
        ['none in this model', 'trains', 'none in this model', 'frozen']
    """
    table = Table(title=title, title_justify="left", show_footer=True)
    parts = parameters_by_part(model, TEXT_QKV in rates)
    counts = {part: _count(parameters.values()) for part, parameters in parts.items()}
    training = {part: counts[part] if rates.get(part, 0.0) > 0 else 0 for part in parts}
    adapters = [parameter for name, parameter in parts["llm"].items() if is_adapter(name)]
    if adapters and training["llm"]:
        training["llm"] = _count(adapters)
    table.add_column("part", footer="total")
    table.add_column("parameters", justify="right", footer=f"{sum(counts.values()):,}")
    table.add_column("", footer=f"{sum(training.values()):,} train")
    table.add_column("learning rate", justify="right")
    for part, count in counts.items():
        state = "none in this model" if not count else "trains" if training[part] else "frozen"
        if 0 < training[part] < count:
            state = f"{training[part]:,} in adapters train"
        table.add_row(part, f"{count:,}", state, f"{rates[part]:g}" if training[part] else "")
    return table


def _count(parameters: Iterable[nn.Parameter]) -> int:
    """Count numbers; two 4-bit ones are kept in one byte."""
    return sum(p.numel() * (1 if p.is_floating_point() else 2) for p in parameters)
