"""A side that times training steps of growing work: more visual tokens, more images, more samples.

The step is the one of training: `Collator`, the model compiled as in training, loss at labels, clipping, AdamW. Samples
are made up: a prompt, images (features of noise, as if read from the cache) and an answer.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks.speed.channel import Channel
from benchmarks.speed.limits import device
from benchmarks.speed.material import Parts, build
from benchmarks.speed.pace import synchronise
from llavit.data import Collator
from llavit.precision import resolve_attention, resolve_dtype
from llavit.train.compiling import compile_layers
from llavit.train.flops import matmul_sizes
from llavit.train.parts import freeze, optimizer_groups

PROMPT, ANSWER = 32, 16
RATES = {"vision_tower": 0.0, "projector": 2e-5, "visual_qkv": 2e-5, "llm": 2e-5}
DEFAULTS = {"visual tokens": 64, "images per sample": 1, "samples per batch": 8}


def sample(visual_tokens: int, images: int, image_token: int, width: int) -> dict[str, torch.Tensor]:
    """Make up an encoded sample with some images.

    Args:
        visual_tokens: of each image.
        images: how many.
        image_token: id of the token that stands for one.
        width: of the features of a patch.
    """
    text = torch.randint(10, 200, (PROMPT + ANSWER,))
    blocks = [torch.full((visual_tokens,), image_token)] * images
    ids = torch.cat([text[:4], *blocks, text[4:]])
    image_ids = torch.full_like(ids, -1)
    image_ids[4 : 4 + images * visual_tokens] = torch.arange(images).repeat_interleave(visual_tokens)
    labels = torch.full_like(ids, -100)
    labels[-ANSWER:] = ids[-ANSWER:]
    features = torch.randn(images, visual_tokens, width)
    return {"input_ids": ids, "image_ids": image_ids, "labels": labels, "image_features": features}


def side(spec: dict[str, Any], channel: Channel) -> None:
    """Time steps when told to.

    Args:
        spec: tower, llm, layers, image_size, repeats (timings of a point, after one that doesn't count), quick.
        channel: to the harness.
    """
    torch.manual_seed(0)
    dtype = resolve_dtype("auto")[0]
    parts = Parts(spec["tower"], spec["llm"], tuple(spec["layers"]), (), "", "")
    built = build(parts, spec["image_size"], llava=False)
    model: Any = built.model.float().to(device()).train()
    model.set_attn_implementation({"text_config": resolve_attention("auto", dtype)})
    freeze(model, RATES)
    compiled = compile_layers(model, "never" if spec["quick"] else "auto")
    optimizer = torch.optim.AdamW(optimizer_groups(model, RATES, 0.0), fused=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    collate = Collator(built.processor.tokenizer.pad_token_id)
    width = model.model.multi_modal_projector.linear_1.in_features
    sizes = matmul_sizes(model.config)
    channel.ready(dtype=str(dtype), compiled=compiled, prompt=PROMPT, answer=ANSWER, defaults=DEFAULTS)

    def step(samples: list[dict[str, Any]]) -> tuple[float, float]:
        """Give the seconds up to the gradients, and of the whole step."""
        synchronise()
        began = time.perf_counter()
        batch = collate(samples)
        inputs = {key: value.to(device()) for key, value in batch.items() if isinstance(value, torch.Tensor)}
        with torch.autocast(device().type, dtype, enabled=dtype is not torch.float32):
            loss = model(**inputs, supervised_logits_only=True, use_cache=False).loss
        loss.backward()
        synchronise()
        gradients = time.perf_counter() - began
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronise()
        return gradients, time.perf_counter() - began

    for command in channel.commands():
        work = {**DEFAULTS, command["axis"]: command["value"]}
        v, n, rows = work["visual tokens"], work["images per sample"], work["samples per batch"]
        samples = [sample(v, n, model.config.image_token_id, width) for _ in range(rows)]
        timings = [step(samples) for _ in range(spec["repeats"] + 1)][1:]
        length = len(samples[0]["input_ids"])
        products = 6 * rows * length * (sizes.qkv + sizes.layers)
        attention = 12 * sizes.llm_attention * rows * length**2
        channel.send(
            tokens=rows * length,
            seconds=statistics.median(whole for _, whole in timings),
            gradient_seconds=statistics.median(gradients for gradients, _ in timings),
            timings=timings,
            attention_share=attention / (attention + products),
        )
