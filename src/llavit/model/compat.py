"""What differs between the supported versions of transformers, in one place.

5.24 renamed the argument and the output `past_key_values` to `cache`, and returns the vision tower's whole output
(`image_outputs`) where earlier versions return the projected features (`image_hidden_states`). LLaViT takes both names
of the cache in every version, and gives what the installed version gives. 5.23 renamed gradient checkpointing to
activation checkpointing.
"""

import dataclasses
import inspect
from typing import Any

import torch
from transformers import LlavaModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaModelOutputWithPast

LOCATION = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
"""Arguments of `from_pretrained` that say where something lies, and how it is fetched."""

CACHE = "cache" if "cache" in inspect.signature(LlavaModel.forward).parameters else "past_key_values"
"""The name by which the installed transformers calls the cache of keys and values."""

_HAS_TOWER_OUTPUT = "image_outputs" in {field.name for field in dataclasses.fields(LlavaModelOutputWithPast)}


def given_cache(past_key_values: Any, cache: Any) -> Any:
    """Return the cache that came under either name, or None.

    Raises:
        ValueError: if both came.

    Example:
        >>> given_cache(None, "a cache")
        'a cache'
    """
    if past_key_values is not None and cache is not None:
        raise ValueError("expected the cache as `cache` or as `past_key_values`, got both")
    return cache if cache is not None else past_key_values


def cache_argument(cache: Any) -> dict[str, Any]:
    """Return a cache as the keyword argument that the installed transformers expects.

    Example:
        >>> cache_argument(None) in ({"cache": None}, {"past_key_values": None})
        True
    """
    return {CACHE: cache}


def output_cache(outputs: Any) -> Any:
    """Return the cache out of a model's output, or None."""
    return outputs.get(CACHE)


def image_fields(features: list[torch.Tensor] | None) -> dict[str, Any]:
    """Return the projected features of the images as the field of an output that the installed transformers has.

    Args:
        features: (v, d) of each image, or None without images.

    Example:
        >>> len(image_fields([torch.zeros(4, 8)]))
        1
    """
    if not _HAS_TOWER_OUTPUT:
        return {"image_hidden_states": torch.cat(features) if features is not None else None}
    output: Any = BaseModelOutputWithPooling  # holds a list of tensors here, as transformers' LLaVA does
    return {"image_outputs": output(pooler_output=features) if features is not None else None}


def same_image_fields(outputs: Any) -> dict[str, Any]:
    """Return the field of `image_fields` out of another output."""
    name = "image_outputs" if _HAS_TOWER_OUTPUT else "image_hidden_states"
    return {name: getattr(outputs, name)}


def recompute_activations(model: Any, **options: Any) -> None:
    """Let a model compute activations again in the backward pass instead of keeping them (gradient checkpointing).

    Args:
        model: of transformers.
        **options: of `torch.utils.checkpoint.checkpoint`, such as `use_reentrant`.

    Example:
        ```python
        recompute_activations(model, use_reentrant=False)
        ```
    """
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options or None)
