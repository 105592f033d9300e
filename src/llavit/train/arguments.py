"""A stage of a recipe in transformers' words."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import TrainingArguments

from llavit.train.distributed import deepspeed_config, world_size
from llavit.train.recipe import Stage


def total_samples(stage: Stage, records: int) -> int:
    """Give the number of samples that a stage draws from its records.

    Example:
        total_samples(stage, records=558_128)
    """
    return (
        stage.steps * stage.batch_size if stage.steps is not None else max(1, round(stage.epochs * records))
    )


def total_steps(stage: Stage, records: int) -> int:
    """Give the number of optimizer steps of a stage.

    Example:
        total_steps(stage, records=558_128)
    """
    return math.ceil(total_samples(stage, records) / stage.batch_size)


def micro_batches(stage: Stage, processes: int | None = None) -> int:
    """Give the number of micro-batches that each process takes in a step.

    Args:
        stage: the recipe's stage.
        processes: how many train together; those of this run if not given.

    Raises:
        ValueError: the batch does not divide into micro-batches over all processes; says what would.

    Example:
        micro_batches(stage)
    """
    processes = world_size() if processes is None else processes
    if stage.batch_size % (stage.micro * processes):
        share, rest = divmod(stage.batch_size, processes)
        fits = max((size for size in range(1, stage.micro + 1) if share and share % size == 0), default=1)
        unit = stage.micro * processes
        raise ValueError(
            f"stage {stage.name}: batch_size {stage.batch_size} does not divide into micro-batches of {stage.micro} "
            f"on {processes} processes; set "
            + (
                f"batch_size to a multiple of {unit}, or take a number of processes that divides {stage.batch_size}"
                if rest
                else f"micro_batch_size to {fits}, or batch_size to a multiple of {unit}"
            )
        )
    return stage.batch_size // (stage.micro * processes)


def training_arguments(
    stage: Stage,
    folder: Path,
    *,
    records: int,
    seed: int,
    dtype: torch.dtype,
    parallel: str = "ddp",
    timeout_minutes: float = 120.0,
) -> TrainingArguments:
    """Translate a stage into transformers' arguments.

    Args:
        stage: the recipe's stage.
        folder: where checkpoints go.
        records: size of the data set.
        seed: of everything random.
        dtype: to compute in; bfloat16 is autocast over float32 weights.
        parallel: how several processes share the work, see `distributed.py`.
        timeout_minutes: how long processes wait for each other.

    Raises:
        ValueError: the batch does not divide into micro-batches over all processes; these do not find each other; or
            ACCELERATE_USE_CPU is at odds with `parallel` (`deepspeed_config`).
        ImportError: `parallel` needs DeepSpeed, which is not installed.
    """
    steps = total_steps(stage, records)
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=stage.micro,
        gradient_accumulation_steps=micro_batches(stage),
        num_train_epochs=1,  # SeededOrder holds the passes over the data
        learning_rate=max(stage.learning_rates.by_part().values()),
        lr_scheduler_type=stage.schedule,
        warmup_steps=math.ceil(stage.warmup_ratio * steps),
        adam_beta2=stage.adam_beta2,
        max_grad_norm=stage.max_grad_norm,
        seed=seed,
        bf16=dtype is torch.bfloat16,
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="steps" if stage.save_every else "no",
        save_steps=stage.save_every or 1,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite stops the run instead
        report_to="none",  # llavit's own callbacks do that
        disable_tqdm=True,
        remove_unused_columns=False,  # sample ids travel with the batch
        dataloader_num_workers=stage.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        # The model keeps every part in the graph of every batch. Only of a tower are there layers that nothing reads:
        # those above the deepest one that gives features.
        ddp_find_unused_parameters=stage.learning_rates.by_part()["vision_tower"] > 0,
        deepspeed=deepspeed_config(parallel),
        ddp_timeout=math.ceil(60 * timeout_minutes),  # of all ways, not of DDP alone
    )
    processes = world_size()
    if args.world_size != processes:
        raise ValueError(
            f"WORLD_SIZE is {processes}, but accelerate finds {args.world_size} processes: start them with torchrun, "
            "or set RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT as well"
        )
    # Else one process with several GPUs gets DataParallel, which cuts batches.
    args._n_gpu = min(args.n_gpu, 1)
    return args
