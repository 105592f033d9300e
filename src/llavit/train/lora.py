"""What a stage does to parts before it trains: adapters on the LLM, and frozen weights at less than float32."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llavit.model.adapters import add_lora, is_adapter, require_peft
from llavit.precision import resolve_frozen_dtype
from llavit.train.distributed import is_first_process
from llavit.train.recipe import Recipe, Stage

BASE = "base"
"""Folder, within that of a first stage with adapters, of the model that they adapt."""

_BLOCK = 64
"""Weights that share a scale in 4 bits, in bitsandbytes."""


def check_lora_and_dtype(stage: Stage, computes_in: torch.dtype) -> None:
    """Find what `adapt` and `hold_frozen` would stop a stage for, before the stages ahead of it train for days.

    Raises:
        ImportError: adapters need a package that is missing.
        ValueError: frozen parts cannot be held in what the stage asks for.

    Example:
        check_lora_and_dtype(stage, torch.bfloat16)
    """
    if stage.lora is not None:
        require_peft()
        if stage.lora.quantize == "nf4":
            _require_bitsandbytes()
    frozen = resolve_frozen_dtype(stage.frozen_dtype, computes_in)
    if frozen is not torch.float32:
        _require_same(frozen, computes_in)


def adapt(model: Any, recipe: Recipe, stage: Stage, work: Path, device: torch.device) -> None:
    """Add the adapters that a stage asks for; with `quantize`, hold what they adapt in 4 bits.

    Args:
        model: a LLaViT without adapters; keeps its device, but for what is held in 4 bits.
        recipe: the whole recipe; says what the adapters will refer to as their base.
        stage: one with `lora`.
        work: the stage's working folder; a model that a first stage put together from parts is kept there.
        device: that the stage trains on.

    Raises:
        ImportError: peft, or bitsandbytes for 4 bits, is missing.
        ValueError: a target that the LLM does not have.
    """
    spec = stage.lora
    assert spec is not None
    base = base_before(recipe, recipe.stages.index(stage))
    if base == BASE and is_first_process():
        _keep_base(model, work)
    if spec.quantize == "nf4":
        quantize_llm(model, device)
    # peft asks the model this before it adapts 4-bit layers; nobody else needs to know.
    model.is_loaded_in_4bit = spec.quantize == "nf4"
    targets = None if spec.targets == "auto" else spec.targets
    add_lora(model, base=base, rank=spec.rank, alpha=spec.alpha, dropout=spec.dropout, targets=targets)
    del model.is_loaded_in_4bit
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.data = parameter.data.float()


def base_before(recipe: Recipe, index: int) -> str:
    """Say where the model before a stage is, seen from the stage's folder.

    Args:
        recipe: the whole recipe.
        index: which stage.

    Returns:
        the folder of the stage before; for the first stage the checkpoint that it starts from, or `BASE`, a
        folder within its own, where it starts from parts.
    """
    if index:
        return f"../{recipe.stages[index - 1].name}"
    checkpoint = recipe.model.checkpoint
    if checkpoint is None:
        return BASE
    return str(Path(checkpoint).absolute()) if Path(checkpoint).is_dir() else checkpoint


def _keep_base(model: Any, work: Path) -> None:
    """Save a model for its adapters to refer to: once, whole or not at all."""
    if not (work / BASE).is_dir():
        unfinished = work / f"{BASE}.unfinished"
        model.save_pretrained(unfinished)
        os.replace(unfinished, work / BASE)


def move_base(work: Path, result: Path) -> None:
    """Put the base that `adapt` kept, if any, beside its adapters."""
    if (work / BASE).is_dir():
        os.replace(work / BASE, result / BASE)


def quantize_llm(model: Any, device: torch.device) -> None:
    """Hold the linear layers of the LLM in 4-bit NormalFloat (QLoRA, arXiv 2305.14314), in place.

    Visual projections, embeddings and the head are left as they are. The 4-bit layers can be adapted but not
    trained or saved themselves; what is saved refers to the weights before.

    Args:
        model: on any device.
        device: that it will train on. They are quantised there, a layer at a time, and stay there.

    Raises:
        ImportError: bitsandbytes is missing.
        ValueError: on a CPU, a layer that bitsandbytes would read back wrongly there: its inputs are no multiple of
            the 64 weights that share a scale (measured with 0.50.2: errors as large as the weights).
    """
    bnb = _require_bitsandbytes()
    decoder = model.get_decoder()
    for name, linear in list(decoder.named_modules()):
        if not isinstance(linear, nn.Linear) or "visual" in name.split(".") or not name.startswith("layers."):
            continue
        if device.type == "cpu" and linear.in_features % _BLOCK:
            raise ValueError(
                f"quantize: nf4 on a CPU needs layers whose inputs are a multiple of {_BLOCK}, {name} has "
                f"{linear.in_features}: bitsandbytes would compute it wrongly. Use a GPU, or leave quantize out"
            )
        small = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=torch.bfloat16,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        small.weight = bnb.nn.Params4bit(
            linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=small
        )
        small.bias = linear.bias
        parent, _, child = name.rpartition(".")
        setattr(decoder.get_submodule(parent), child, small.to(device))  # the move is what quantises


def hold_frozen(model: Any, dtype: torch.dtype, computes_in: torch.dtype) -> None:
    """Hold the matrices of frozen linear layers, convolutions and word embeddings in another dtype, in place.

    Norms and other vectors stay float32, and so does what comes out of the embeddings: a run that computes in
    bfloat16 rounds matrices to it in any case, so that only the frozen embeddings of a float32 checkpoint lose
    digits. Nothing at all changes for weights that were released in bfloat16.

    Args:
        model: with its parts frozen already (`llavit.train.parts.freeze`).
        dtype: to hold them in.
        computes_in: dtype of the run.

    Raises:
        ValueError: the run computes in float32, which cannot multiply with bfloat16 weights.
    """
    if dtype is torch.float32:
        return
    _require_same(dtype, computes_in)
    embeddings = model.get_input_embeddings()
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) and module is not embeddings:
            continue
        weight: Any = module.weight
        if weight.requires_grad or not weight.is_floating_point():
            continue
        weight.data = weight.data.to(dtype)
        if module is embeddings:
            module.register_forward_hook(_to_float32)


def _require_same(dtype: torch.dtype, computes_in: torch.dtype) -> None:
    if computes_in is not dtype:
        raise ValueError(
            f"frozen_dtype {_name(dtype)} needs a run that computes in {_name(dtype)}, this one computes in "
            f"{_name(computes_in)}; set dtype: {_name(dtype)}, or frozen_dtype: auto"
        )


def _require_bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError("QLoRA needs bitsandbytes: pip install 'llavit[qlora]'") from error
    return bitsandbytes


def _to_float32(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output.float()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
