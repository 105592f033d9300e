"""transformers' Trainer, with what LLaViT's stages need and it does not have.

- a learning rate per part of the model, 0 = frozen (`parts.py`);
- the loss over supervised tokens only, divided by their number over all micro-batches and processes;
- a stop before the optimizer step when loss or gradient is not finite, with the samples that caused it;
- an order of samples that depends on the seed alone (`order.py`), cut into steps that are the same for any number of
  processes (`distributed.py`);
- checkpoints that are whole or absent, and load in any number of processes.

There is no evaluation here: that is another room's work.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedDataParallelKwargs
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from llavit.data import Collator, SkipLog
from llavit.model.adapters import has_adapters, load_adapter_weights
from llavit.progress import now_and_then
from llavit.train.arguments import total_samples
from llavit.train.distributed import (
    StepShares,
    full_weights,
    load_optimizer,
    save_optimizer,
    shard,
    untied,
    world_size,
)
from llavit.train.order import SeededOrder, by_length
from llavit.train.parts import freeze, optimizer_groups
from llavit.train.recipe import Stage
from llavit.train.stopping import ignore_sigterm
from llavit.train.store import UNFINISHED, checkpoints, put_in_place, reading
from llavit.train.throughput import COUNTS, Throughput, count

logger = logging.getLogger("llavit")

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
_NAMED_SAMPLES = 8


class LlavitTrainer(Trainer):
    """Trains one stage.

    Args:
        model: with float32 weights; its parts are frozen or not by `stage.learning_rates`.
        stage: the recipe's stage.
        args: of `training_arguments`.
        dataset: items for the collator.
        collator: makes batches.
        skip_log: takes the records that were left out.
        callbacks: see what was measured of each step in `on_log`: `loss`, `grad_norm`, `lr_PART`, `seconds`,
            `samples`, `tokens`, `supervised_tokens`, `skipped` and the rates of `Throughput`.
        fsdp2: cut the model up over all processes.
        peak_tflops: of one process's device, for MFU.

    Example:
        ```python
        args = training_arguments(stage, folder, records=len(dataset), seed=0, dtype=torch.float32)
        LlavitTrainer(model, stage, args, dataset, collator, SkipLog(max_skipped=0)).train()
        ```
    """

    model: Any  # Trainer calls these three optional; while it trains they are not
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: PreTrainedModel,
        stage: Stage,
        args: TrainingArguments,
        dataset: Dataset[Any],
        collator: Collator,
        skip_log: SkipLog,
        callbacks: list[TrainerCallback] | None = None,
        *,
        fsdp2: bool = False,
        peak_tflops: float | None = None,
    ):
        self.stage = stage
        self.rates: Mapping[str, float] = stage.learning_rates.by_part()
        self.skip_log = skip_log
        self.fsdp2 = fsdp2 and world_size() > 1
        freeze(model, self.rates)
        cache = model.config.__dict__.get("use_cache")
        super().__init__(model, args, data_collator=collator, train_dataset=dataset, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        # Trainer writes use_cache=False into the configuration, where it would be saved and slow down answers.
        if cache is None:
            model.config.__dict__.pop("use_cache", None)
        else:
            model.config.use_cache = cache
        peak = peak_tflops * world_size() if peak_tflops is not None else None
        lora_rank = stage.lora.rank if stage.lora is not None else 0
        config: Any = model.config
        self.throughput = Throughput(config, self.rates, peak, lora_rank)
        self._checkpoints_under: str | None = None
        self._losses: list[torch.Tensor] = []
        self._sample_ids: list[str] = []
        self._counts: dict[str, int] = {}
        self._learning_rates: dict[str, float] = {}
        self._step_began = time.perf_counter()

    def any_process(self, value: bool) -> bool:
        """Say whether the value is true in any process; all of them must ask together."""
        return bool(sum(self._summed([int(value)])))

    def _summed(self, numbers: list[int]) -> list[int]:
        """Add up whole numbers over all processes."""
        if self.args.world_size == 1:
            return numbers
        return self.accelerator.reduce(torch.tensor(numbers, device=self.args.device)).tolist()

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """Let DDP add up gradients where they are, and not in copies as large as the model."""
        args = super()._build_accelerator_args(**kwargs)
        for handler in args["kwargs_handlers"]:
            if isinstance(handler, DistributedDataParallelKwargs):
                handler.gradient_as_bucket_view = True
        return args

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        """Leave a model that is to be cut up where it is: the whole of it may not fit into one device."""
        if not self.fsdp2:
            super()._move_model_to_device(model, device)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        if self.fsdp2:
            dtype = torch.bfloat16 if self.args.bf16 else torch.float32
            shard(self.model, self.args.device, dtype)
            # Prepared here, so that accelerate leaves it as it is instead of wrapping it for DDP.
            self.accelerator.prepare_model(self.model, device_placement=False, evaluation_mode=True)
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make AdamW with a learning rate per part."""
        if self.optimizer is None:
            model = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = kind(optimizer_groups(model, self.rates, self.stage.weight_decay), **options)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededOrder:
        data: Any = self.train_dataset
        arrange = by_length(data.lengths(self._counting())) if self.stage.group_by_length else None
        total = total_samples(self.stage, len(data))
        return SeededOrder(len(data), total, self.args.seed, arrange, self.stage.batch_size)

    def _counting(self) -> Callable[[int, int], None] | None:
        """Say how far the records are read that are to be grouped by length: hundreds of thousands take minutes."""
        what = f"stage {self.stage.name}: lengths of the records"
        return now_and_then(logger.info, what) if self.is_world_process_zero() else None

    def get_train_dataloader(self) -> DataLoader:
        """Give this process's micro-batches."""
        shares = StepShares(
            self._get_train_sampler(),
            self.stage.batch_size,
            self.stage.micro,
            rank=self.args.process_index,
            processes=self.args.world_size,
        )
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=shares,
            collate_fn=self.data_collator,
            num_workers=self.stage.workers,
            pin_memory=self.args.dataloader_pin_memory,
            worker_init_fn=ignore_sigterm,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Collect the micro-batches of one step; count what is in them over all processes."""
        self._step_began = time.perf_counter()
        self._losses, self._sample_ids = [], []
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        skipped = [record for batch in batches for record in batch.pop("skipped")]
        *counts, left_out = self._summed([*count(batches), len(skipped)])
        if left_out:
            self.skip_log.add(self._of_all_processes(skipped))
        assert isinstance(
            tokens, torch.Tensor
        )  # counted, as batches have labels and the model takes the count
        self._counts = {**dict(zip(COUNTS, counts, strict=True)), "supervised_tokens": int(tokens)}
        return batches, tokens.clamp(min=1)  # none where every record of the step was left out: the loss is 0

    def _of_all_processes(self, items: list[Any]) -> list[Any]:
        """Join lists of all processes."""
        if self.args.world_size == 1:
            return items
        gathered: list[Any] = [None] * self.args.world_size
        torch.distributed.all_gather_object(gathered, items)
        return [item for each in gathered for item in each]

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Run one micro-batch forward and backward; with the last of a step, check the losses.

        Raises:
            FloatingPointError: a loss is not finite; names the samples. The weights are those of the last
                good step.
        """
        self._sample_ids += inputs.pop("sample_ids")
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._is_last_micro_batch and not self.is_deepspeed_enabled:
            self._check_losses()
        return loss

    @property
    def _is_last_micro_batch(self) -> bool:
        return len(self._losses) == self.current_gradient_accumulation_steps

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss without logits that nobody looks at, and without a cache."""
        inputs = {**inputs, "supervised_logits_only": True, "use_cache": False}
        loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        self._losses.append(loss.detach())
        if self._is_last_micro_batch and self.is_deepspeed_enabled:
            self._check_losses()  # DeepSpeed's backward pass takes the optimizer's step as well
        return loss

    def _check_losses(self) -> None:
        """Stop all processes together if a loss in any of them is not finite."""
        losses = torch.stack(self._losses)
        mine = not losses.isfinite().all()
        if self.any_process(mine):
            raise self._not_finite("loss", losses.sum().item(), elsewhere=not mine)
        self._learning_rates = {f"lr_{group['part']}": group["lr"] for group in self.optimizer.param_groups}

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and not math.isfinite(norm):  # DeepSpeed has none before its first step
            raise self._not_finite("gradient norm", float(norm))
        return norm

    def _not_finite(self, what: str, value: float, elsewhere: bool = False) -> FloatingPointError:
        more = len(self._sample_ids) - _NAMED_SAMPLES
        names = ", ".join(self._sample_ids[:_NAMED_SAMPLES]) + (f" and {more} more" if more > 0 else "")
        step = f"stage {self.stage.name}, step {self.state.global_step + 1}"
        if elsewhere:
            return FloatingPointError(
                f"{step}: the {what} is not finite in another process, which names the samples"
            )
        which = "this step" if self.args.world_size == 1 else "this step in this process"
        return FloatingPointError(
            f"{step}: the {what} is {value}, so training stopped before the optimizer used it. "
            f"Samples of {which}: {names}. Look at these samples, or lower the learning rate."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was measured about the step."""
        if "loss" in logs:
            logs.pop("learning_rate", None)  # that of the first group only
            seconds = time.perf_counter() - self._step_began
            counts = {key: self._counts[key] for key in ("samples", "tokens", "supervised_tokens")}
            rates = self.throughput.measure(self._counts, counts["supervised_tokens"], seconds)
            logs |= self._learning_rates | counts | {"seconds": seconds} | rates
            logs["skipped"] = len(self.skip_log)
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Say nothing: transformers' estimate (6 x tokens x parameters) is wrong with frozen parts and images."""
        return 0

    # Checkpoints: written beside, then renamed, so that one that can be seen is whole.

    def _get_output_dir(self, trial: Any) -> str:
        return self._checkpoints_under or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(super()._get_output_dir(trial))
        unfinished = folder / UNFINISHED
        self._checkpoints_under = str(unfinished)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._checkpoints_under = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            name = f"checkpoint-{self.state.global_step}"
            shutil.rmtree(folder / name, ignore_errors=True)
            put_in_place(unfinished / name, folder / name)
            shutil.rmtree(unfinished)
            for old in checkpoints(folder)[: -self.stage.keep_checkpoints]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with reading(Path(resume_from_checkpoint)):
            if has_adapters(self.model):
                load_adapter_weights(self.model, resume_from_checkpoint)
                freeze(self.model, self.rates)
            else:
                load_weights(self.model, resume_from_checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            with reading(Path(checkpoint)):
                super()._load_rng_state(checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save a folder for `from_pretrained`; all processes must call it, the first one writes."""
        if self.fsdp2:
            self._save(output_dir, state_dict=full_weights(self.model))
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, None if state_dict is None else untied(self.model, state_dict))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        save_optimizer(self.model, self.optimizer, Path(output_dir) / OPTIMIZER)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.is_deepspeed_enabled:
            return super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            if not (Path(checkpoint) / OPTIMIZER).is_file():
                raise ValueError(
                    f"{checkpoint}: expected {OPTIMIZER}, found none: DeepSpeed saved it, and only DeepSpeed reads it; "
                    "go on with the recipe's `parallel` as it was, or delete the checkpoint"
                )
            load_optimizer(self.model, self.optimizer, Path(checkpoint) / OPTIMIZER)
            with reading(Path(checkpoint)):
                schedule = torch.load(Path(checkpoint) / SCHEDULER, weights_only=True)
            self.lr_scheduler.load_state_dict(schedule)


def load_weights(model: PreTrainedModel, folder: str | Path) -> None:
    """Give a model the weights that `save_pretrained` wrote, from any number of processes.

    They are read as `from_pretrained` reads them: transformers saves some towers (DINOv2) under the names of earlier
    releases, under which `load_state_dict` would not find them.

    Args:
        model: of the same shape; parts that are tied stay tied.
        folder: of a checkpoint.

    Raises:
        ValueError: weights are missing, or belong to another model: some would stay as the stage began with them.

    Example:
        load_weights(model, "runs/mine/instruct.work/checkpoint-100")
    """
    loaded: Any = type(model).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    saved, found = loaded
    wrong = sorted({*found["missing_keys"], *found["unexpected_keys"]})
    if wrong:
        raise ValueError(f"{len(wrong)} weights are missing or unknown, first {', '.join(wrong[:3])}")
    model.load_state_dict(saved.state_dict())
