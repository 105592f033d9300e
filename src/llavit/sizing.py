"""What serving a model takes: bytes of weights, of keys and values, and how many chats fit beside each other.

Plain arithmetic on a configuration; no weights are read. With several devices the model is cut as vLLM's Transformers
backend cuts it (tensor parallel): matrices that the LLM's own plan names, embedding and head; each device has its share
of the KV heads. Tower, projector and norms are whole on each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llavit.model.configuration import LlavitConfig
from llavit.model.families import family_of
from llavit.model.quantize import install_int8
from llavit.train.flops import meta_model
from llavit.train.model_config import model_config
from llavit.train.parts import PARTS, parameters_by_part
from llavit.train.recipe import ModelSpec, load_recipe

BLOCK = 16
"""Tokens of a block: memory for keys and values is given out in blocks (vLLM's default)."""

GB = 1e9
_VOCABULARY = ("embed_tokens", "lm_head")
_PART_NAMES = dict(zip(PARTS, ("tower", "projector", "visual QKV", "LLM"), strict=True))
_DTYPES = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class ServingSize:
    """What a model takes on each device.

    Attributes:
        parameters: numbers in each part of the whole model.
        weights: bytes of weights on each device.
        token: bytes of one token's keys and values on each device, all layers.
        visual_tokens: of an image.
        devices: that share the model.
    """

    parameters: dict[str, int]
    weights: int
    token: int
    visual_tokens: int
    devices: int

    @property
    def image(self) -> int:
        """Bytes of an image's keys and values on each device."""
        return self.visual_tokens * self.token

    def chat(self, text_tokens: int, images: int = 1) -> int:
        """Give the bytes of a chat's keys and values on each device, in whole blocks.

        Args:
            text_tokens: of all its questions and answers, chat template included.
            images: in it.

        Example:
            >>> ServingSize({}, weights=0, token=1024, visual_tokens=576, devices=1).chat(100) // 1024
            688
        """
        tokens = text_tokens + images * self.visual_tokens
        return -(-tokens // BLOCK) * BLOCK * self.token

    def chats(
        self, memory: float, text_tokens: int, images: int = 1, *, share: float = 0.92, reserve: float = 2e9
    ) -> int:
        """Give how many chats of that length fit at once; 0 if the weights alone are too large.

        Args:
            memory: of each device, in bytes.
            text_tokens: see `chat`.
            images: see `chat`.
            share: of the memory that the server may take (vLLM's --gpu-memory-utilization).
            reserve: bytes of that for activations and graphs. It depends on how many tokens a step may have; vLLM
                measures it when it starts.

        Example:
            >>> size = ServingSize({}, weights=14_000_000_000, token=57_344, visual_tokens=576, devices=1)
            >>> size.chats(24e9, text_tokens=1024)
            66
        """
        room = memory * share - reserve - self.weights
        return max(0, int(room // self.chat(text_tokens, images)))


def serving_size(config: LlavitConfig, dtype: str = "bfloat16", devices: int = 1) -> ServingSize:
    """Count what serving a model takes.

    Layers with a sliding window count in full: at most, therefore.

    Args:
        config: of the model.
        dtype: of weights, keys and values: "float32", "float16", "bfloat16"; "int8" is `llavit serve --quantize int8`,
            with keys and values in bfloat16.
        devices: that share the model (tensor parallel).

    Raises:
        ValueError: another dtype, or what so many devices cannot share: heads, a fused visual QKV, int8 weights.

    Example:
        >>> vicuna = serving_config("llava15-llavit-vicuna-7b")
        >>> size = serving_size(vicuna)
        >>> size.token, size.image, size.parameters["visual_qkv"]
        (524288, 301989888, 1610612736)
        >>> serving_size(vicuna, devices=2).token
        262144
    """
    if dtype not in ("float16", *_DTYPES):
        raise ValueError(f"dtype={dtype!r}: expected float16, {', '.join(_DTYPES)}")
    if dtype == "int8" and devices > 1:
        raise ValueError(f"int8 weights are served by one device, got {devices}; take bfloat16")
    llm: Any = config.llm
    heads = llm.num_attention_heads
    kv_heads = getattr(llm, "num_key_value_heads", None) or heads
    if heads % devices or kv_heads % devices:
        fit = [n for n in range(1, kv_heads + 1) if not heads % n and not kv_heads % n]
        raise ValueError(
            f"{devices} devices cannot share {heads} heads and {kv_heads} KV heads: expected one of {fit}; further "
            "devices serve copies of the model (data parallel)"
        )
    if devices > 1 and config.visual_qkv and len(family_of(llm).projections) == 1:
        raise ValueError(
            f"{devices} devices cannot share the visual QKV of a {llm.model_type}, whose q, k and v are one "
            "projection; further devices serve copies of the model (data parallel)"
        )
    computes_in = torch.bfloat16 if dtype == "int8" else getattr(torch, dtype)
    model = meta_model(config).to(computes_in)
    parts = parameters_by_part(model)
    if dtype == "int8":
        install_int8(model, fill=False)
    width = getattr(llm, "head_dim", None) or llm.hidden_size // heads
    plan = getattr(llm, "base_model_tp_plan", None) or {}
    return ServingSize(
        parameters={part: sum(p.numel() for p in members.values()) for part, members in parts.items()},
        weights=sum(
            p.numel() * p.element_size() // _pieces(name, plan, devices)
            for name, p in model.named_parameters()
        ),
        token=2 * llm.num_hidden_layers * kv_heads // devices * width * computes_in.itemsize,
        visual_tokens=config.image_seq_length,
        devices=devices,
    )


def serving_config(
    source: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> LlavitConfig:
    """Give the configuration of what is to be served.

    Args:
        source: a model's folder or its id on the hub, a recipe's file, or the name of one that comes with the package.
        overrides: of the recipe, `KEY=VALUE`.
        config_dir: see `model_config`.

    Raises:
        ValueError: none of these, or a model that is neither LLaViT nor LLaVA.

    Example:
        >>> serving_config("starter", ["model.llm=Qwen/Qwen2.5-0.5B-Instruct"]).llm.num_hidden_layers
        24
    """
    if (Path(source) / "config.json").is_file() or _is_hub_id(source):
        if overrides:
            raise ValueError(f"--set changes recipes, and {source} is a model")
        return model_config(ModelSpec(checkpoint=source), config_dir)
    return model_config(load_recipe(source, overrides).model, config_dir)


@dataclass(frozen=True)
class Plan:
    """What is asked of the machines.

    Attributes:
        gpus: most devices that share a model; fewer are shown as well.
        memory: of each, in GB (10^9 bytes).
        text_tokens: see `ServingSize.chat`.
        images: see `ServingSize.chat`.
        dtype: see `serving_size`.
        share: see `ServingSize.chats`.
        reserve: see `ServingSize.chats`, in GB.
    """

    gpus: int = 1
    memory: float = 80
    text_tokens: int = 1024
    images: int = 1
    dtype: str = "bfloat16"
    share: float = 0.92
    reserve: float = 2


def sizes_table(models: Mapping[str, LlavitConfig], plan: Plan) -> list[list[str]]:
    """Tabulate parameters, weights by dtype, and keys and values: a row a model, under a head.

    Args:
        models: name to configuration.
        plan: its dtype is that of keys and values.

    Example:
        >>> head, row = sizes_table({"it": serving_config("starter")}, Plan())
        >>> head[1:6], row[1:6]
        (['tower', 'projector', 'visual QKV', 'LLM', 'total'], ['22.1 M', '1.0 M', '16.6 M', '134.5 M', '174.2 M'])
    """
    held = [f"weights, {name}" for name in _DTYPES]
    last = ["visual tokens", "KV cache a token", "KV cache an image"]
    rows = [["model", *_PART_NAMES.values(), "total", *held, *last]]
    for name, config in models.items():
        size = serving_size(config, plan.dtype)
        counts = [*(size.parameters[part] for part in PARTS), sum(size.parameters.values())]
        row = [name, *(f"{count / 1e6:,.1f} M" for count in counts)]
        row += [f"{_gb(serving_size(config, dtype).weights)} GB" for dtype in _DTYPES]
        row += [f"{size.visual_tokens:,}", f"{size.token / 2**10:,.1f} KiB", f"{size.image / 2**20:,.1f} MiB"]
        rows.append(row)
    return rows


def chats_table(models: Mapping[str, LlavitConfig], plan: Plan) -> list[list[str]]:
    """Tabulate weights on each device and chats that fit, a row a model, columns by number of devices.

    Example:
        >>> chats_table({"it": serving_config("llava15-llavit-vicuna-7b")}, Plan(gpus=2, memory=24))
        [['model', '1 x 24 GB', '2 x 24 GB'], ['it', '17.4 GB, 3 chats', '9.0 GB, 26 chats']]
    """
    counts = sorted(
        {plan.gpus, *(2**power for power in range(plan.gpus.bit_length()) if 2**power <= plan.gpus)}
    )
    rows = [["model", *(f"{count} x {plan.memory:g} GB" for count in counts)]]
    for name, config in models.items():
        cells = []
        for count in counts:
            try:
                size = serving_size(config, plan.dtype, count)
            except ValueError:  # heads that so many devices cannot share; the table shows it
                cells.append("-")
                continue
            fit = size.chats(
                plan.memory * GB, plan.text_tokens, plan.images, share=plan.share, reserve=plan.reserve * GB
            )
            cells.append(
                f"{_gb(size.weights)} GB, {fit:,} chats" if fit else f"{_gb(size.weights)} GB: too large"
            )
        rows.append([name, *cells])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write a table's rows as Markdown, the first as its head.

    Example:
        >>> print(markdown([["model", "GB"], ["it", "3"]]), end="")
        | model | GB |
        |---|---:|
        | it | 3 |
    """
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *rest]) + "\n"


def _pieces(name: str, plan: Mapping[str, str], devices: int) -> int:
    """Say into how many pieces a parameter is cut.

    [Contract] with the model: a routed projection's two layers are called `text` and `visual`, and lie where the LLM's
    plan has the projection.
    """
    *words, kind = name.split(".")
    if _VOCABULARY[0] in words or _VOCABULARY[1] in words:
        return devices
    if "language_model" not in words:
        return 1
    module = ".".join(word for word in words if word not in ("text", "visual"))
    for pattern, style in plan.items():
        if re.search(rf"(^|\.){re.escape(pattern).replace(re.escape('*'), '[0-9]+')}$", module):
            whole = kind != "weight" and style.startswith(
                "rowwise"
            )  # a bias, which one device adds; int8 scales
            return 1 if whole or not style.startswith(("colwise", "rowwise")) else devices
    return 1


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.endswith((".yaml", ".yml")) and not Path(source).exists()


def _gb(count: float) -> str:
    return f"{count / GB:,.1f}" if count >= GB else f"{count / GB:.2f}"
