"""What a stage would stop at, found before the stages ahead of it train for days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from llavit.model.adapters import lora_targets
from llavit.train.arguments import micro_batches
from llavit.train.flops import meta_model
from llavit.train.lora import check_lora_and_dtype
from llavit.train.model_config import model_config
from llavit.train.parts import freeze
from llavit.train.recipe import ModelSpec, Stage
from llavit.train.weights import starter_part


def check_stages(spec: ModelSpec, stages: Sequence[Stage], computes_in: torch.dtype) -> None:
    """Check batches, packages and dtypes of stages, the targets of their adapters, and that something trains.

    Args:
        spec: the recipe's model. It is looked at, without weights, where a stage names targets or trains nothing but
            visual QKV; any other has something to train in every model.
        stages: those that are not finished.
        computes_in: dtype of the run.

    Raises:
        ImportError: adapters need a package that is missing.
        ValueError: the first thing that a stage would stop at.

    Example:
        check_stages(recipe.model, recipe.stages, torch.bfloat16)
    """
    for stage in stages:
        micro_batches(stage)
        check_lora_and_dtype(stage, computes_in)
    doubtful = [stage for stage in stages if _names_targets(stage) or _trains(stage) == {"visual_qkv"}]
    if not doubtful:
        return
    parts: dict[str, Any] = {
        name: str(starter_part(source)) for name in ("vision", "llm") if (source := getattr(spec, name))
    }
    model = meta_model(model_config(replace(spec, **parts)))
    for stage in doubtful:
        if stage.lora is not None:
            lora_targets(model, stage.lora.targets)
        else:
            freeze(model, stage.learning_rates.by_part())


def _names_targets(stage: Stage) -> bool:
    return stage.lora is not None and stage.lora.targets != "auto"


def _trains(stage: Stage) -> set[str]:
    return {part for part, rate in stage.learning_rates.by_part().items() if rate > 0}
