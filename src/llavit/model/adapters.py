"""LoRA adapters on the LLM: adding, saving, loading and merging them. Needs peft (extra `lora`).

A folder with adapters holds what training changed, and names the model that it changed:

    config.json, generation_config.json      of the whole model
    adapter/adapter_config.json              peft's; `base_model_name_or_path` is the base
    adapter/adapter_model.safetensors        peft's; the adapters
    trained.safetensors                      parts that trained in full: projector, visual QKV

The base is a hub id or a folder, relative to this one where both belong to one run. `from_pretrained` takes such a
folder like any other; `merge_adapters` makes an ordinary model of it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import cached_file

ADAPTER = "adapter"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TRAINED = "trained.safetensors"
_PEFT_PREFIX = "base_model.model."
_ADAPTER_KEY = re.compile(r"\.lora_[AB]\.")


def require_peft() -> Any:
    """Import peft.

    Raises:
        ImportError: it is not installed; names the extra.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'llavit[lora]'") from error
    return peft


def is_adapter(parameter: str) -> bool:
    """Say whether a parameter, by its name, is part of an adapter.

    Example:
        >>> is_adapter("model.language_model.layers.0.mlp.up_proj.lora_A.default.weight")
        True
    """
    return _ADAPTER_KEY.search(parameter) is not None


def has_adapters(model: nn.Module) -> bool:
    """Say whether a model has LoRA adapters."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def lora_targets(model: nn.Module, names: Iterable[str] | None = None) -> list[str]:
    """List the linear layers of the LLM that can have adapters: all but the visual projections and the head.

    Args:
        model: a LLaViT or LLaVA.
        names: take only layers of these names, e.g. `["q_proj", "v_proj"]`.

    Returns:
        names from the decoder on, with `*` for the number of the layer, e.g. `layers.*.self_attn.q_proj.text`.

    Raises:
        ValueError: a name that no layer has; says which there are.
    """
    decoder = model.get_decoder()  # type: ignore[operator]
    layers = {
        re.sub(r"\.\d+\.", ".*.", name, count=1)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear) and "visual" not in name.split(".") and name.startswith("layers.")
    }
    if names is None:
        return sorted(layers)
    words = {layer: set(layer.split(".")) - {"text", "layers", "*"} for layer in layers}
    for name in names:
        if not any(name in known for known in words.values()):
            valid = sorted({layer.removesuffix(".text").split(".")[-1] for layer in layers})
            raise ValueError(
                f"LoRA targets: the LLM has no linear layer {name!r}; it has {', '.join(valid)}. Visual "
                "projections take no adapters: they train in full, at learning_rates.visual_qkv"
            )
    return sorted(layer for layer in layers if words[layer] & set(names))


def add_lora(
    model: Any,
    *,
    base: str | Path,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Iterable[str] | None = None,
) -> None:
    """Add fresh LoRA adapters to the LLM's linear layers, in place. They start as no change at all.

    Args:
        model: without adapters.
        base: what the model was loaded from: a hub id, or a folder, absolute or relative to the one that the
            adapters will be saved in.
        rank: inner width.
        alpha: outputs are scaled by alpha / rank.
        dropout: share of the inputs that is dropped.
        targets: names of layers, see `lora_targets`; all of them if not given.

    Raises:
        ImportError: peft is missing.
        ValueError: the model has adapters already, or a target does not exist.
    """
    peft = require_peft()
    if has_adapters(model):
        raise ValueError("expected a model without adapters, got one that has some; merge_adapters first")
    layers = "|".join(
        re.escape(layer).replace(r"\*", r"\d+")
        for layer in lora_targets(model, None if targets is None else list(targets))
    )
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf"(?:.*\.)?language_model\.(?:{layers})",
    )
    _inject(model, config, base)


def _inject(model: Any, config: Any, base: str | Path) -> None:
    peft = require_peft()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config.base_model_name_or_path = str(base)
    # What transformers' `add_adapter` does too, but that one asks for the peft of its day: 5.24 refuses each peft that
    # was out when it was, of which nothing but this call is needed here.
    peft.inject_adapter_in_model(config, model)
    model._hf_peft_config_loaded = True  # transformers' own mark of a model with adapters
    for parameter in trained:  # peft froze them: what trains is not for it to say
        parameter.requires_grad_(True)


def adapter_state(model: Any, state: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Give what a folder with adapters has to hold: the adapters, and all that does not come from the base.

    That is the projector and the visual QKV, and any other parameter that trains.

    Args:
        model: with adapters.
        state: its state dict where that has been gathered already.
    """
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = model.state_dict() if state is None else state

    def own(name: str) -> bool:
        words = name.split(".")
        if "language_model" in words and "base_layer" in words:
            return False
        return is_adapter(name) or name in trains or "multi_modal_projector" in words or "visual" in words

    return {name: tensor.detach().contiguous().cpu() for name, tensor in state.items() if own(name)}


def save_adapters(model: Any, folder: str | Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write a folder as described at the top of this file.

    Args:
        model: with adapters.
        folder: made if need be.
        state: the model's state dict where that has been gathered already.
    """
    folder = Path(folder)
    (folder / ADAPTER).mkdir(parents=True, exist_ok=True)
    own = adapter_state(model, state)
    adapters = {
        _PEFT_PREFIX + name.replace(".default.", "."): tensor
        for name, tensor in own.items()
        if is_adapter(name)
    }
    trained = {name: tensor for name, tensor in own.items() if not is_adapter(name)}
    save_file(adapters, folder / ADAPTER / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    save_file(trained, folder / TRAINED, metadata={"format": "pt"})
    config = model.peft_config["default"]
    config.inference_mode, mode = True, config.inference_mode
    config.save_pretrained(folder / ADAPTER)
    config.inference_mode = mode


def load_adapter_weights(model: Any, folder: str | Path) -> None:
    """Load the weights of a folder with adapters into a model that has the same adapters.

    Raises:
        ValueError: the folder's adapters are not those of the model; names the first that differ.
    """
    folder = Path(folder)
    adapters = load_file(folder / ADAPTER / ADAPTER_WEIGHTS)
    state = {
        re.sub(r"\.(lora_[AB])\.", r".\1.default.", name.removeprefix(_PEFT_PREFIX)): tensor
        for name, tensor in adapters.items()
    }
    state |= load_file(folder / TRAINED)
    if not hasattr(model, "lm_head"):
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    mine = {name: tensor.shape for name, tensor in model.state_dict().items()}
    wrong = [name for name in state if mine.get(name) != state[name].shape]
    wrong += [name for name in mine if is_adapter(name) and name not in state]
    if wrong:
        raise ValueError(
            f"{folder}: its adapters and trained parts do not fit the model: {len(wrong)} tensors are missing, "
            f"unknown or of another shape, first {', '.join(sorted(wrong)[:3])}. Is the base, or a switch such as "
            "visual_qkv, another than in training?"
        )
    model.load_state_dict(state, strict=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in state)


def load_adapters(model: Any, folder: str | Path, base: str) -> None:
    """Add the adapters of a folder to its base, which is then what was saved.

    A base with adapters of its own has them merged first.

    Raises:
        ImportError: peft is missing.
        ValueError: they do not fit.
    """
    peft = require_peft()
    if has_adapters(model):
        merge_adapters(model)
    _inject(model, peft.PeftConfig.from_pretrained(str(Path(folder) / ADAPTER)), base)
    load_adapter_weights(model, folder)


def merge_adapters(model: Any) -> None:
    """Add the adapters to the weights that they adapt, in place; what is left is an ordinary model.

    Raises:
        ValueError: the model has no adapters, or its weights are quantised, where merging would round again.
    """
    if not has_adapters(model):
        raise ValueError("nothing to merge: the model has no adapters")
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in layers.items():
        if not layer.get_base_layer().weight.is_floating_point():  # type: ignore[operator]
            raise ValueError(f"{name} is quantised: load the folder without quantisation, then merge")
    for name, layer in layers.items():
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded = False
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)


def find_adapters(source: Any, **location: Any) -> Path | None:
    """Give the local folder of a model with adapters; None if `source`, a folder or hub id, has none.

    Args:
        source: a folder or hub id.
        **location: `revision`, `subfolder`, `token`, `cache_dir` and so on, as in `from_pretrained`.
    """
    if not isinstance(source, str | os.PathLike):
        return None
    if Path(source).is_dir():
        folder = Path(source, location.get("subfolder") or "")
        return folder if (folder / ADAPTER / ADAPTER_CONFIG).is_file() else None
    absent_is_fine = {
        "_raise_exceptions_for_gated_repo": False,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    config = cached_file(source, f"{ADAPTER}/{ADAPTER_CONFIG}", **location, **absent_is_fine)
    if config is None:
        return None
    for name in (f"{ADAPTER}/{ADAPTER_WEIGHTS}", TRAINED):
        cached_file(source, name, **location)
    return Path(config).parent.parent


def base_of(folder: Path) -> str:
    """Say where the base of a folder with adapters is: a folder that exists, or a hub id.

    Raises:
        FileNotFoundError: it is not where the folder says.
    """
    record = folder / ADAPTER / ADAPTER_CONFIG
    base = json.loads(record.read_text(encoding="utf-8"))["base_model_name_or_path"] or ""
    local = folder / base
    if base and local.is_dir():
        return os.path.normpath(local)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base):
        return base
    raise FileNotFoundError(
        f"{folder} holds adapters for the model {base!r}, and there is no such folder: {local.absolute()}. Move that "
        f"model back, or write where it is as base_model_name_or_path into {record}. (`llavit merge` makes a folder "
        "that needs no other.)"
    )
