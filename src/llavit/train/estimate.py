"""What a recipe takes before it runs: parameters, memory per device, floating point operations, time.

From configurations alone; nothing is downloaded but, for models that llavit does not know, their config.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table

from llavit.model.configuration import LlavitConfig
from llavit.train.arguments import micro_batches
from llavit.train.flops import training_flops
from llavit.train.memory import Batch, StepMemory, step_memory
from llavit.train.model_config import known_records, model_config
from llavit.train.parts import PARTS
from llavit.train.recipe import Recipe, Stage

GB = 1e9
TEXT_TOKENS = {"plain": 30, "chat": 250}
"""Words of a sample by style where the user says nothing: a caption, a conversation. A rule of thumb."""


@dataclass(frozen=True)
class StageEstimate:
    """What one stage takes.

    Attributes:
        name: of the stage.
        memory: of one process, without sharding.
        weights: bytes on each device; this and what follows with sharding.
        gradients: see `weights`.
        optimizer: see `weights`.
        activations: see `weights`; with what sharding gathers.
        flops: of one sample of usual length, forward and backward, with what gradient checkpointing repeats.
        samples: of the whole stage; None if the data is not there to be counted.
        length: tokens of the rows that memory is for.
        usual_length: tokens of the sample that FLOPs are for.
    """

    name: str
    memory: StepMemory
    weights: float
    gradients: float
    optimizer: float
    activations: float
    flops: float
    samples: int | None
    length: int
    usual_length: int

    @property
    def peak(self) -> float:
        """Bytes that each device needs at most."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def hours(self, gpus: int, tflops: float, utilisation: float) -> float | None:
        """Give the hours that the stage takes; None if the number of samples is not known.

        Args:
            gpus: number of devices.
            tflops: what one can reach at most, in 10^12 operations a second.
            utilisation: share of that which is reached.
        """
        if self.samples is None:
            return None
        return self.samples * self.flops / (gpus * tflops * 1e12 * utilisation) / 3600


def estimate(
    recipe: Recipe,
    *,
    gpus: int = 1,
    length: int | None = None,
    text_tokens: int | None = None,
    config_dir: str | Path | None = None,
) -> list[StageEstimate]:
    """Estimate each stage of a recipe.

    Args:
        recipe: of `load_recipe`; its `parallel` says what is cut up over the devices.
        gpus: number of devices.
        length: tokens of the rows of a micro-batch, visual ones included, for memory; the longest that the stage
            allows (`pack_length`, else `max_length`) if not given, or what a sample has if it allows any.
        text_tokens: words of a usual sample, for FLOPs; a rule of thumb by the stage's style if not given.
        config_dir: see `model_config`.

    Raises:
        ValueError: a batch that does not divide over so many devices, rows too short for an image, or a model that
            cannot be found.

    Example:
        ```python
        pretrain, instruct = estimate(load_recipe("llava15-llavit"), gpus=8)
        print(f"{instruct.peak / 1e9:.0f} GB on each device, {instruct.hours(8, 312, 0.4):.1f} hours")
        ```
    """
    for stage in recipe.stages:
        micro_batches(stage, gpus)
    config = model_config(recipe.model, config_dir)
    return [_stage(recipe, stage, config, gpus, length, text_tokens) for stage in recipe.stages]


def _stage(
    recipe: Recipe, stage: Stage, config: LlavitConfig, gpus: int, length: int | None, text_tokens: int | None
) -> StageEstimate:
    visual = config.image_seq_length
    text = TEXT_TOKENS[stage.style] if text_tokens is None else text_tokens
    rows_of = length or stage.pack_length or stage.max_length or visual + text
    if rows_of <= visual:
        raise ValueError(
            f"stage {stage.name}: expected rows of more than the {visual} tokens of an image, got {rows_of}"
        )
    images = max(1, rows_of // (visual + text)) if stage.pack_length else 1
    batch = Batch(
        rows=stage.micro,
        length=rows_of,
        images=stage.micro * images,
        supervised=stage.micro * (rows_of - images * visual),  # at most
    )
    dtype = torch.float32 if recipe.dtype == "float32" else torch.bfloat16
    memory = step_memory(
        config,
        stage,
        batch,
        dtype=dtype,
        attention="eager" if recipe.attention == "eager" else "sdpa",
        # DDP has room for all gradients from the first step on, and exchanges them where they are.
        accumulates=stage.batch_size > stage.micro * gpus or (gpus > 1 and recipe.parallel == "ddp"),
        gathers=gpus > 1 and recipe.parallel in ("fsdp2", "zero3"),
    )
    shares = _shares(recipe.parallel, gpus)
    flops = training_flops(
        config,
        stage.learning_rates.by_part(),
        text,
        visual,
        text,
        1,
        lora_rank=stage.lora.rank if stage.lora else 0,
        gradient_checkpointing=stage.gradient_checkpointing,
    )
    return StageEstimate(
        name=stage.name,
        memory=memory,
        weights=memory.weights / shares["weights"],
        gradients=memory.gradients / shares["gradients"],
        optimizer=memory.optimizer / shares["optimizer"],
        activations=float(memory.activations) + _gathered(recipe.parallel, gpus, memory, config, dtype),
        flops=flops,
        samples=_samples(recipe, stage),
        length=rows_of,
        usual_length=visual + text,
    )


def _shares(parallel: str, gpus: int) -> dict[str, int]:
    """Say into how many parts each kind of memory is cut."""
    all_cut = parallel in ("fsdp2", "zero3")
    return {
        "weights": gpus if all_cut else 1,
        "gradients": gpus if all_cut or parallel == "zero2" else 1,
        "optimizer": 1 if parallel == "ddp" else gpus,
    }


def _gathered(
    parallel: str, gpus: int, memory: StepMemory, config: LlavitConfig, dtype: torch.dtype
) -> float:
    """Count what processes hold of each other: FSDP gathers whole layers."""
    if gpus == 1 or parallel in ("ddp", "zero2"):
        return 0.0
    layers = (
        2 * memory.largest_layer * dtype.itemsize + memory.largest_layer * 4
    )  # two of them, and gradients
    ends = config.llm.vocab_size * config.llm.hidden_size * 4
    return layers + ends * (1 if config.tie_word_embeddings else 2)


def _samples(recipe: Recipe, stage: Stage) -> int | None:
    """Count a stage's samples where its data is at hand or known by name."""
    if stage.steps is not None:
        return stage.steps * stage.batch_size
    data = stage.data
    if data.path is None:
        return None
    at_hand = Path(data.path).is_file()
    records = len(data.open(recipe.seed)) if at_hand else known_records(data.path)
    if records is None:
        return None
    return round(stage.epochs * min(records, data.limit or records))


def estimate_table(
    recipe: Recipe,
    stages: list[StageEstimate],
    *,
    gpus: int,
    memory: float,
    tflops: float,
    utilisation: float,
) -> Group:
    """Draw what `estimate` found.

    Args:
        recipe: the recipe.
        stages: of `estimate`.
        gpus: as given to `estimate`.
        memory: of one device, in GB (10^9 bytes).
        tflops: see `StageEstimate.hours`.
        utilisation: see there.
    """
    parts = Table(title=f"{recipe.name}: parameters", title_justify="left")
    parts.add_column("part")
    parts.add_column("parameters", justify="right")
    for stage in stages:
        parts.add_column(f"{stage.name} trains", justify="right")
    for part in PARTS:
        trained = [_millions(stage.memory.trained[part]) for stage in stages]
        parts.add_row(part, _millions(stages[-1].memory.parameters[part]), *trained)
    totals = [_millions(sum(stage.memory.trained.values())) for stage in stages]
    parts.add_row("total", _millions(sum(stages[-1].memory.parameters.values())), *totals)

    title = f"each of {gpus} devices ({recipe.parallel})" if gpus > 1 else "one device"
    table = Table(title=f"{title}, GB of {memory:g}", title_justify="left")
    table.add_column("")
    for stage in stages:
        table.add_column(stage.name, justify="right")

    def row(name: str, values: list[Any]) -> None:
        table.add_row(name, *(f"{value / GB:.1f}" if isinstance(value, float) else value for value in values))

    row("weights", [stage.weights for stage in stages])
    row("gradients", [stage.gradients for stage in stages])
    row("optimizer", [stage.optimizer for stage in stages])
    micro = {stage.name: stage.micro for stage in recipe.stages}
    row("activations and the like", [stage.activations for stage in stages])
    row("  micro-batch, rows x tokens", [f"{micro[stage.name]} x {stage.length:,}" for stage in stages])
    row("peak", [stage.peak for stage in stages])
    row("fits", ["yes" if stage.peak <= memory * GB else "NO" for stage in stages])
    row("TFLOP a sample", [f"{stage.flops / 1e12:.1f}" for stage in stages])
    row("  tokens of a usual sample", [f"{stage.usual_length:,}" for stage in stages])
    row("samples", ["unknown" if s.samples is None else f"{s.samples:,}" for s in stages])
    hours = [stage.hours(gpus, tflops, utilisation) for stage in stages]
    row("hours", ["unknown" if hour is None else f"{hour:.1f}" for hour in hours])
    return Group(parts, table)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count else "-"
