"""The configuration of the model that a recipe makes, from configurations alone: no weights, no tokenizer."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from llavit.model.build import count_extra_tokens
from llavit.model.configuration import LlavitConfig
from llavit.train.recipe import ModelSpec

KNOWN = Path(__file__).parent / "known_models.json"
_KINDS = ("llavit", "llava")


def model_config(spec: ModelSpec, config_dir: str | Path | None = None) -> LlavitConfig:
    """Give the configuration of the model that a recipe starts from.

    Args:
        spec: the recipe's `model`.
        config_dir: folder with `ORG/NAME/config.json` for models that are on the hub, where that is out of reach.

    Raises:
        ValueError: a model that is neither a folder nor known nor on a hub within reach.

    Example:
        >>> config = model_config(ModelSpec(vision="openai/clip-vit-large-patch14-336", llm="lmsys/vicuna-7b-v1.5"))
        >>> config.llm.num_hidden_layers, config.image_seq_length
        (32, 576)
    """
    if spec.checkpoint is not None:
        values = _read(spec.checkpoint, config_dir)
        if values.get("model_type") not in _KINDS:
            raise ValueError(
                f"{spec.checkpoint}: expected a model of type {' or '.join(_KINDS)}, got {values.get('model_type')!r}; "
                "an LLM becomes one in a recipe, beside a vision tower"
            )
        return LlavitConfig.from_dict(values | spec.switched_off | {"model_type": "llavit"})
    assert spec.vision is not None and spec.llm is not None  # ModelSpec checked
    vision, llm = _part(spec.vision, config_dir), _part(spec.llm, config_dir).get_text_config()
    vision = getattr(vision, "vision_config", vision)
    with torch.device("meta"):
        tower = AutoModel.from_config(vision)
    patches = ((spec.image_size or vision.image_size) // vision.patch_size) ** 2
    layers = spec.vision_feature_layer
    return LlavitConfig(
        vision_config=vision.to_dict(),
        text_config=llm.to_dict(),
        vision_feature_layer=layers if isinstance(layers, int) else list(layers),
        vision_feature_select_strategy="default" if count_extra_tokens(tower) else "full",
        image_token_index=llm.vocab_size - 1,
        image_seq_length=patches,
        visual_qkv=spec.visual_qkv,
        bidirectional_visual_attention=spec.bidirectional_visual_attention,
        vision_feature_norm=spec.vision_feature_norm,
        projector_width=spec.projector_width,
    )


def known_models() -> dict[str, Any]:
    """Give the configurations that come with the package, by hub id or `starter:` name.

    Example:
        >>> known_models()["Qwen/Qwen2.5-1.5B-Instruct"]["num_hidden_layers"]
        28
    """
    return _known()["models"]


def known_records(path: str) -> int | None:
    """Give the number of records of a data set that is known by the name of its file.

    Example:
        >>> known_records("data/llava_v1_5_mix665k.json")
        665298
    """
    return _known()["records"].get(Path(path).name)


def _part(source: str, config_dir: str | Path | None) -> PreTrainedConfig:
    values = _read(source, config_dir)
    return AutoConfig.for_model(**values)


def _read(source: str, config_dir: str | Path | None) -> dict[str, Any]:
    """Read a config.json: from a folder, the known ones, or the hub (that file only)."""
    folders = [Path(source)]
    if config_dir is not None:
        folders = [Path(config_dir) / source, Path(config_dir) / Path(source).name, *folders]
    for folder in folders:
        if (folder / "config.json").is_file():
            return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if source in known_models():
        return dict(known_models()[source])
    try:
        values, _ = PreTrainedConfig.get_config_dict(source)
    except OSError as error:
        raise ValueError(
            f"the configuration of {source!r} is out of reach: it is no folder, llavit does not know it, and the hub "
            f"did not give it. Put its config.json into DIR/{source}/ and say --config-dir DIR, or name a folder in "
            "the recipe"
        ) from error
    if not values:
        raise ValueError(f"the hub has no config.json for {source!r}")
    return values


@cache
def _known() -> dict[str, Any]:
    return json.loads(KNOWN.read_text(encoding="utf-8"))
