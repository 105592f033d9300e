"""A side that trains transformers' LLaVA with transformers' Trainer, as a good user would.

LlavaForConditionalGeneration with sdpa attention, bf16 autocast, AdamW and clipping as Trainer has them by default,
the vision tower frozen, batches of like length padded to the longest, labels on the assistant's words. It gets a head
start: its text is tokenised beforehand.
"""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from benchmarks.speed.channel import Channel
from benchmarks.speed.material import Parts, as_transformers_llava, build
from benchmarks.speed.pace import Finished, Pace, resident_bytes
from llavit.model.images import load_image
from llavit.precision import resolve_dtype

STEPS = 10_000


class Samples(Dataset):
    """Tokenised samples, with their pictures still to be read; the same ones again and again."""

    def __init__(self, samples: list[dict[str, Any]], order: list[int], total: int):
        self.samples, self.order, self.total = samples, order, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples[self.order[index % len(self.order)]]


class Padded:
    """Pads a batch and prepares its pictures."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Build one batch."""
        pad = torch.nn.utils.rnn.pad_sequence
        ids = [sample["input_ids"] for sample in samples]
        batch = {
            "input_ids": pad(ids, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id),
            "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad([sample["labels"] for sample in samples], batch_first=True, padding_value=-100),
        }
        pictures = [load_image(image, "sample") for sample in samples for image in sample["images"]]
        if pictures:
            batch["pixel_values"] = self.processor.image_processor(pictures, return_tensors="pt")[
                "pixel_values"
            ]
        return batch


def side(spec: dict[str, Any], channel: Channel) -> None:
    """Train until told to stop.

    Args:
        spec: tower, llm, layers, image_size, stage, batch, samples (file of `Batches.save`), compile (torch_compile of
            Trainer).
        channel: to the harness.
    """
    before = resident_bytes()
    dtype = resolve_dtype("auto")[0]
    parts = Parts(spec["tower"], spec["llm"], tuple(spec["layers"]), (), "", "")
    model, processor = build(parts, spec["image_size"], llava=True)
    model = as_transformers_llava(model).float()
    model.set_attn_implementation("sdpa")
    model.model.vision_tower.requires_grad_(False)
    if spec["stage"] == "pretrain":  # LLaVA's first stage: the projector alone trains
        model.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)
        if spec.get("frozen_bf16"):
            model.to(dtype)
            model.model.multi_modal_projector.float()
    model.config.use_cache = False
    saved = torch.load(spec["samples"])
    data = Samples(saved["samples"], saved["order"], STEPS * spec["batch"])
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=spec["batch"],
            max_steps=STEPS,
            learning_rate=2e-5 if spec["stage"] == "instruct" else 1e-3,
            lr_scheduler_type="cosine",
            bf16=dtype is torch.bfloat16,
            torch_compile=spec.get("compile", False),
            train_sampling_strategy="sequential",  # the samples are in order of length already
            remove_unused_columns=False,
            dataloader_num_workers=0,
            dataloader_pin_memory=torch.cuda.is_available(),
            use_cpu=not torch.accelerator.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        facts = {
            "resident_before": before,
            "dtype": str(dtype),
            "attention": model.config.text_config._attn_implementation,
            "compiled": args.torch_compile,
            "trains": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "threads": torch.get_num_threads(),
        }
        pace = Pace(channel, facts)
        trainer = Trainer(model, args, data_collator=Padded(processor), train_dataset=data, callbacks=[pace])
        with contextlib.suppress(Finished):
            trainer.train()
