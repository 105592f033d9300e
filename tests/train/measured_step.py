"""Train a few steps of a mid-sized random model, alone in a process, and print by how many bytes memory grew.

    python measured_step.py ROWS LENGTH SUPERVISED DTYPE RECIPE.yaml [KEY=VALUE ...]

What a process holds is measured by the kernel (peak resident set). Blocks of memory go back to it at once, so that
the peak is the program's and not the allocator's: see `ENVIRONMENT` in test_estimate.py.
"""

import resource
import sys

import torch
from transformers import CLIPVisionConfig, LlamaConfig

from llavit import LlavitConfig, LlavitForConditionalGeneration
from llavit.model.adapters import add_lora
from llavit.model.compat import recompute_activations
from llavit.train.lora import hold_frozen
from llavit.train.parts import freeze, optimizer_groups
from llavit.train.recipe import Stage, load_recipe

IMAGE = 4095


def config(width: int = 512, layers: int = 7) -> LlavitConfig:
    """A tower of 3 M and an LLM of 28 M parameters."""
    return LlavitConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=112,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=4096,
            hidden_size=width,
            intermediate_size=width * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=4,
        ),
        image_token_index=IMAGE,
        image_seq_length=64,
        vision_feature_layer=[1, -2],
    )


def batch(rows: int, length: int, supervised: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 4000, (rows, length))
    ids[:, 2:66] = IMAGE
    labels = torch.full_like(ids, -100)
    labels[:, -supervised // rows :] = ids[:, -supervised // rows :]
    return {"input_ids": ids, "labels": labels, "pixel_values": torch.randn(rows, 3, 112, 112)}


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main(rows: int, length: int, supervised: int, dtype: torch.dtype, stage: Stage) -> int:
    small = config(width=64, layers=1)
    steps(stage, small, rows=1, length=80, supervised=8, dtype=dtype)  # libraries set up what they need
    before = resident()
    steps(stage, config(), rows, length, supervised, dtype)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def steps(
    stage: Stage, config: LlavitConfig, rows: int, length: int, supervised: int, dtype: torch.dtype
) -> None:
    rates = stage.learning_rates.by_part()
    model = LlavitForConditionalGeneration._from_config(config, attn_implementation="sdpa").train()
    if stage.lora is not None:
        add_lora(model, base="", rank=stage.lora.rank, alpha=stage.lora.alpha, dropout=stage.lora.dropout)
    freeze(model, rates)
    hold_frozen(model, getattr(torch, stage.frozen_dtype), computes_in=dtype)
    if stage.gradient_checkpointing:
        recompute_activations(model)
        model.disable_input_require_grads()
    optimizer = torch.optim.AdamW(optimizer_groups(model, rates, 0.0), fused=True)
    for _ in range(2):
        for _ in range(stage.batch_size // stage.micro):
            inputs = batch(rows, length, supervised)
            with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
                loss = model(**inputs, supervised_logits_only=True, use_cache=False).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    rows, length, supervised, dtype, recipe, *overrides = sys.argv[1:]
    stage = load_recipe(recipe, overrides).stages[0]
    print(main(int(rows), int(length), int(supervised), getattr(torch, dtype), stage))
