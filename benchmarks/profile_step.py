"""Where the time of an instruct step goes, with rows as they are and with documents, in turn on one machine.

    .venv/bin/python benchmarks/profile_step.py benchmarks/results/profile.json

The starter model (64 visual tokens) trains on 16 random samples of about 190 tokens, compiled, in bfloat16. What is
counted is the time spent in an operator itself. Seconds of a step are the median of the rounds.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from llavit import build_llavit
from llavit.evaluate.environment import environment
from llavit.starter.weights import starter_llm, starter_tower
from llavit.train.compiling import compile_layers
from llavit.train.parts import freeze, optimizer_groups

SAMPLES, LENGTH, VISUAL, LABELS, ROUNDS = 16, 192, 64, 9, 5
RATES = {"vision_tower": 0.0, "projector": 2e-4, "visual_qkv": 2e-4, "llm": 5e-5}
GROUPS = (
    ("matrix products", ("aten::mm", "aten::addmm")),
    ("products in attention", ("aten::bmm", "aten::baddbmm")),
    ("softmax in attention", ("aten::_softmax",)),
    ("fused kernels (norms, activations, rotary, casts)", ("## Call Compiled",)),
    ("AdamW", ("aten::_fused_adamw",)),
    ("clipping", ("aten::linalg_vector_norm", "aten::mul_")),
    ("copies and gathers", ("aten::copy_", "aten::index", "aten::masked", "aten::cat", "aten::fill_")),
)


def model_with(attention: str) -> Any:
    """Build the starter model, compiled, as the instruct stage trains it."""
    model, _ = build_llavit(
        starter_tower(), starter_llm(), vision_feature_layer=[4, 8, 11], image_size=112, dtype=torch.float32
    )
    model.set_attn_implementation({"text_config": attention})
    freeze(model, RATES)
    compile_layers(model, "auto")
    return model.train()


def batch_for(model: Any) -> dict[str, torch.Tensor]:
    """Make samples of 181 to 192 tokens."""
    torch.manual_seed(0)
    ids = torch.randint(100, 40000, (SAMPLES, LENGTH))
    image_ids, labels, mask = torch.full_like(ids, -1), torch.full_like(ids, -100), torch.ones_like(ids)
    ids[:, 20 : 20 + VISUAL], image_ids[:, 20 : 20 + VISUAL] = model.config.image_token_id, 0
    for row in range(SAMPLES):
        end = LENGTH - row % 12
        mask[row, end:] = 0
        labels[row, end - LABELS : end] = ids[row, end - LABELS : end]
    width = model.model.multi_modal_projector.linear_1.in_features
    features = torch.randn(SAMPLES, VISUAL, width).bfloat16()
    return {
        "input_ids": ids,
        "image_ids": image_ids,
        "labels": labels,
        "attention_mask": mask,
        "image_features": features,
    }


def step(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> float:
    """Take one step; give its seconds."""
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch, supervised_logits_only=True, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def groups_of(run: Any) -> dict[str, float]:
    """Add up seconds by group."""
    seconds = {name: 0.0 for name, _ in GROUPS} | {"everything else": 0.0}
    for event in run.key_averages():
        name = next((name for name, starts in GROUPS if event.key.startswith(starts)), "everything else")
        seconds[name] += event.self_cpu_time_total / 1e6
    return {name: round(value, 4) for name, value in seconds.items()}


def main(output: Path) -> None:
    """Measure and write."""
    ways = {}
    for attention in ("eager", "documents"):
        model = model_with(attention)
        ways[attention] = (
            model,
            torch.optim.AdamW(optimizer_groups(model, RATES, 0.0), fused=True),
            batch_for(model),
        )
        for _ in range(2):
            step(*ways[attention])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    profiles = {}
    for _ in range(ROUNDS):
        for way, parts in ways.items():
            seconds[way].append(round(step(*parts), 3))
            print(way, seconds[way][-1], file=sys.stderr, flush=True)
    for way, parts in ways.items():
        with profile(activities=[ProfilerActivity.CPU]) as run:
            step(*parts)
        profiles[way] = groups_of(run)
    result = {
        "tokens": int(ways["eager"][2]["attention_mask"].sum()),
        "seconds": seconds,
        "median": {way: statistics.median(values) for way, values in seconds.items()},
        "profile": profiles,
        "environment": environment(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
