"""How fast a step was: samples and tokens per second, the share of padding, and model FLOPs utilisation (MFU)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from llavit.data.collate import IGNORE_INDEX, TEXT
from llavit.model.configuration import LlavitConfig
from llavit.train.flops import training_flops

COUNTS = ("samples", "images", "positions", "tokens", "token_pairs", "visual_tokens")
"""What is counted of a step: images that go through the tower; positions are tokens and padding; pairs are of tokens of
one sample, so that attention within packed rows is counted sample by sample."""

PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "A40": 150.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX A6000": 155.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}
"""Dense bfloat16 TFLOP/s of GPUs with float32 accumulation, from their makers' data sheets; the first name whose words
are all in that of the GPU counts."""


def known_peak_tflops(device: str) -> float | None:
    """Look up what a GPU can reach in bfloat16; None for one that is not listed.

    Example:
        >>> known_peak_tflops("NVIDIA H100 80GB HBM3")
        989.0
    """
    words = set(re.findall(r"\w+", device))  # an L40 is no L4, an RTX A1000 no A100
    if "Laptop" in words:
        return None
    return next((peak for name, peak in PEAK_TFLOPS.items() if words.issuperset(name.split())), None)


def peak_tflops(given: float | None, device: torch.device, dtype: torch.dtype) -> float | None:
    """Give the peak of one process's device: as given, or as known for the GPU where it computes in bfloat16.

    Example:
        >>> peak_tflops(1.8, torch.device("cpu"), torch.bfloat16)
        1.8
    """
    if given is not None or device.type != "cuda" or dtype is not torch.bfloat16:
        return given
    return known_peak_tflops(torch.cuda.get_device_name(device))


def count(batches: Iterable[Mapping[str, Any]]) -> list[int]:
    """Count what is in some batches, in the order of `COUNTS`."""
    total = dict.fromkeys(COUNTS, 0)
    for batch in batches:
        ids = batch["input_ids"]
        pixels = batch.get("pixel_values")
        total["samples"] += len(batch["sample_ids"])
        total["images"] += 0 if pixels is None else len(pixels)
        total["positions"] += ids.numel()
        lengths = _lengths(batch)
        total["tokens"] += sum(lengths)
        total["token_pairs"] += sum(length**2 for length in lengths)
        total["visual_tokens"] += int((batch["image_ids"] != TEXT).sum())
    return list(total.values())


def _lengths(batch: Mapping[str, Any]) -> list[int]:
    """Give the tokens of each sample; a packed row ends in one without labels where it is filled up."""
    if not batch["sample_ids"]:
        return []  # a token of padding, so that every process has something to run
    if "attention_mask" in batch:
        return batch["attention_mask"].sum(1).tolist()
    lengths: list[int] = []
    for positions, labels in zip(batch["position_ids"], batch["labels"], strict=True):
        starts = (positions == 0).nonzero().flatten().tolist()
        ends = [*starts[1:], len(positions)]
        filled = not (labels[starts[-1] :] != IGNORE_INDEX).any()
        lengths += [end - start for start, end in zip(starts, ends, strict=True)][: -1 if filled else None]
    return lengths


class Throughput:
    """Turns the counts of a step and its seconds into rates.

    Args:
        config: of the model.
        rates: learning rate of each part.
        peak: TFLOP/s of all devices together; None where it is not known, then there is no `mfu`.
        lora_rank: of the adapters that train instead of the LLM's own weights; 0 for none.

    Example:
        ```python
        Throughput(model.config, {"projector": 1e-3}, peak=989.0).measure(counts, supervised=50, seconds=0.2)
        ```
    """

    def __init__(
        self, config: LlavitConfig, rates: Mapping[str, float], peak: float | None, lora_rank: int = 0
    ):
        self.config, self.rates, self.peak, self.lora_rank = config, rates, peak, lora_rank

    def measure(self, counts: Mapping[str, int], supervised: int, seconds: float) -> dict[str, float]:
        """Give the rates of one step.

        Args:
            counts: of `COUNTS`, over all processes.
            supervised: tokens with a label.
            seconds: that the step took.
        """
        rates = {
            "samples_per_second": counts["samples"] / seconds,
            "tokens_per_second": counts["tokens"] / seconds,
            "padding": 1 - counts["tokens"] / max(counts["positions"], 1),
        }
        if self.peak is not None:
            text = counts["tokens"] - counts["visual_tokens"]
            flops = training_flops(
                self.config,
                self.rates,
                text,
                counts["visual_tokens"],
                supervised,
                counts["images"],
                token_pairs=counts["token_pairs"],
                lora_rank=self.lora_rank,
            )
            rates["mfu"] = flops / seconds / (self.peak * 1e12)
        return rates
