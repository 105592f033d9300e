"""Train a recipe: its stages in order, each from the result of the one before."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TrainerCallback, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from llavit import LlavitForConditionalGeneration, LlavitProcessor, build_llavit
from llavit.data import Collator, ConversationDataset, SkipLog, Skipped
from llavit.data.readers import Reader
from llavit.folders import wait_until_seen
from llavit.llava_prompt import with_llavas_tokens
from llavit.model.adapters import has_adapters, merge_adapters
from llavit.model.chat import DEFAULT_CHAT_TEMPLATE
from llavit.model.compat import recompute_activations
from llavit.model.endings import end_tokens
from llavit.precision import resolve_attention, resolve_dtype, resolve_frozen_dtype
from llavit.progress import quiet_transformers
from llavit.train.arguments import total_steps, training_arguments
from llavit.train.checks import check_stages
from llavit.train.compiling import compile_layers
from llavit.train.distributed import check_launcher, forget_deepspeed, is_first_process, of_first_process
from llavit.train.features import prepare_features
from llavit.train.freeing import TrimHeap, free_memory, held_heap
from llavit.train.logs import TensorBoardLog, WandbLog
from llavit.train.lora import adapt, hold_frozen, move_base
from llavit.train.parts import freeze, parts_table
from llavit.train.progress import STEP_LOG, StageProgress, StepLog
from llavit.train.recipe import ModelSpec, Recipe, Stage
from llavit.train.schema import to_plain
from llavit.train.stopping import StopAtStepEnd, Stopped
from llavit.train.store import (
    LOCK,
    RECORD,
    RESULT,
    StageStore,
    checkpoints,
    digest,
    held,
    holder,
    reading,
    require_space,
    stage_identity,
    write_text,
)
from llavit.train.throughput import peak_tflops
from llavit.train.trainer import LlavitTrainer
from llavit.train.weights import starter_part

logger = logging.getLogger("llavit")

SKIPPED = "skipped.jsonl"
TENSORBOARD = "tensorboard"
CALIBRATION_IMAGES = 64
PATIENCE = 15.0
"""Seconds to wait for another process that trains in the same folder, which may have been killed just now."""

ENDS_LOOKED_FOR = 8
"""Records in which an end of the answer is looked for: the first ones may be cut."""


def train(
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    progress: bool = True,
    resume: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Train all stages of a recipe.

    Called again, it skips the stages that are finished and resumes the one that is not from its newest
    checkpoint (see `save_every`), with the same losses to the bit as a run that was never stopped (on a GPU as far as
    its kernels repeat themselves). SIGTERM makes it finish the step under way, save and leave. Processes that
    `torchrun` started train together.

    Args:
        recipe: of `load_recipe`.
        output: folder of the run; the recipe's own if not given.
        progress: show what trains, and a progress bar.
        resume: False asks for a run from the start, and is an error where the folder already holds one.
        callbacks: of transformers, called in every stage; `args.output_dir` is `OUTPUT/STAGE.work` there.

    Returns:
        the folder of the last stage's model and processor. Each stage has one: `OUTPUT/STAGE`, with
        `train_log.jsonl` (a line per step) and, if records were left out, `skipped.jsonl`. TensorBoard's files
        are in `OUTPUT/tensorboard/STAGE`.

    Raises:
        ValueError: the folder holds another training or another process trains there, its disk has no room, or a data
            record is bad.
        FileNotFoundError: data or model files are missing.
        FloatingPointError: the loss stopped being finite.
        Stopped: SIGTERM arrived; a checkpoint was saved.

    Example:
        ```python
        folder = train(load_recipe("starter", ["stages.pretrain.steps=100"]), output="runs/try")
        model = LlavitForConditionalGeneration.from_pretrained(folder)
        ```
    """
    check_launcher()
    folder = Path(output) if output is not None else recipe.folder
    first = is_first_process()
    console = Console(stderr=True, quiet=not (progress and first))
    names = [name for stage in recipe.stages for name in (stage.name, f"{stage.name}.work")]
    if first and not resume and any((folder / name).exists() for name in names):
        raise ValueError(f"{folder} already holds a run; choose another output folder, or resume")

    # All data files are looked at first: a typo in the last stage shows now, not after the first one.
    readers = [stage.data.open(recipe.seed) for stage in recipe.stages]
    stores: list[StageStore] = []
    before: str | None = None
    for index, (stage, reader) in enumerate(zip(recipe.stages, readers, strict=True)):
        identity = stage_identity(recipe, index, reader.fingerprint, before)
        stores.append(StageStore(folder, stage, identity))
        before = digest(stores[-1].identity)

    dtype, reason = resolve_dtype(recipe.dtype)
    stages = zip(recipe.stages, stores, strict=True)
    check_stages(recipe.model, [stage for stage, store in stages if not store.finished()], dtype)
    if first:
        logger.info("computing in %s: %s", str(dtype).removeprefix("torch."), reason)

    if not first:
        return _train(recipe, readers, stores, dtype, console, callbacks)
    with held(folder / LOCK, PATIENCE) as alone:
        if not alone:
            raise ValueError(
                f"{folder}: another process is training there ({holder(folder / LOCK)}). Wait for it or stop it, or "
                "choose another output folder. If that process is no longer there, as its machine was lost, delete "
                f"{folder / LOCK}"
            )
        write_text(folder / "recipe.yaml", replace(recipe, output=str(folder)).to_yaml())
        return _train(recipe, readers, stores, dtype, console, callbacks)


def _train(
    recipe: Recipe,
    readers: Sequence[Reader],
    stores: Sequence[StageStore],
    dtype: torch.dtype,
    console: Console,
    callbacks: Sequence[TrainerCallback],
) -> Path:
    """Train the stages that are not finished."""
    for index, stage in enumerate(recipe.stages):
        if stores[index].finished():
            console.print(
                f"{stage.name}: finished before, in {stores[index].result}", highlight=False, soft_wrap=True
            )
            continue
        set_seed(recipe.seed)
        with quiet_transformers():
            if index:
                wait_until_seen({stores[index - 1].result / RECORD: 1})  # the first process wrote it
            model, processor = _start(recipe.model) if index == 0 else _load(stores[index - 1].result)
            if stage.image_aspect_ratio == "pad":
                processor = processor.with_padding()
            if index == 0 and recipe.model.vision_feature_norm:
                _calibrate(model, processor, readers[0], stage)
            _run_stage(
                recipe, stage, readers[index], stores[index], model, processor, dtype, console, callbacks
            )
            forget_deepspeed()
        del model, processor
        free_memory()
    return stores[-1].result


def _run_stage(
    recipe: Recipe,
    stage: Stage,
    reader: Reader,
    store: StageStore,
    model: Any,
    processor: Any,
    dtype: torch.dtype,
    console: Console,
    callbacks: Sequence[TrainerCallback],
) -> None:
    """Train one stage and publish its folder."""
    if is_first_process():
        store.begin()
    args = training_arguments(
        stage,
        store.work,
        records=len(reader),
        seed=recipe.seed,
        dtype=dtype,
        parallel=recipe.parallel,
        timeout_minutes=recipe.timeout_minutes,
    )
    if stage.lora is not None:
        adapt(model, recipe, stage, store.work, args.device)
    rates = stage.learning_rates.by_part()
    freeze(model, rates)
    features = None
    if recipe.feature_cache is not None and rates["vision_tower"] == 0:
        features = prepare_features(
            recipe.feature_cache, model, processor, reader, dtype=dtype, device=args.device, console=console
        )
    attention = resolve_attention(recipe.attention, dtype)
    if recipe.attention != "auto" or attention != "sdpa":  # Gemma 2 knows no sdpa: its own is eager
        model.set_attn_implementation({"text_config": attention})
    hold_frozen(model, resolve_frozen_dtype(stage.frozen_dtype, dtype), computes_in=dtype)
    done = of_first_process(checkpoints(store.work))
    if not is_first_process():
        wait_until_seen(dict.fromkeys(done, 0))
    else:
        steps = total_steps(stage, len(reader))
        require_space(store.work, _bytes_to_save(model, stage, steps, done))
    console.print(parts_table(model, rates, f"Stage {stage.name}: {len(reader):,} records"))
    if stage.gradient_checkpointing:
        recompute_activations(model)
        # transformers then wants gradients for what embeddings give, the frozen tower's too: a backward pass in vain
        model.disable_input_require_grads()
    compile_layers(model, recipe.compile)

    data = ConversationDataset(
        reader,
        processor,
        max_length=stage.max_length,
        on_error=stage.data.on_error,
        style=stage.style,
        features=features,
    )
    if is_first_process() and stage.style == "chat" and not _answers_end(data, model):
        logger.warning(
            "stage %s: no end-of-turn token is among what is learned, so answers will not end: the chat template "
            "writes none of %s into the assistant's turn. Give the model another one (model.chat_template)",
            stage.name,
            processor.tokenizer.convert_ids_to_tokens(end_tokens(model.generation_config)),
        )
    skip_log = SkipLog(store.work / SKIPPED, max_skipped=stage.data.max_skipped)
    if not is_first_process():
        skip_log.path = None  # all processes know what was left out, one writes it down
    bar = StageProgress(stage.name, console)
    stop = StopAtStepEnd()
    logs: list[TrainerCallback] = [
        StepLog(store.work / STEP_LOG),
        TensorBoardLog(store.work.parent / TENSORBOARD / stage.name),
        bar,
    ]
    if recipe.wandb is not None:
        name = f"{recipe.name}/{stage.name}"
        logs.append(WandbLog(recipe.wandb, name, to_plain(recipe), store.work, store.work.parent))
    trainer = LlavitTrainer(
        model,
        stage,
        args,
        data,
        Collator(processor.tokenizer.pad_token_id, pack_length=stage.pack_length),
        skip_log,
        callbacks=[*logs, *callbacks, TrimHeap(), stop],
        fsdp2=recipe.parallel == "fsdp2",
        peak_tflops=peak_tflops(recipe.peak_tflops, args.device, dtype),
    )
    stop.any_process = trainer.any_process
    if done:
        console.print(f"{stage.name}: resuming from {done[-1].name}", highlight=False)
        with reading(done[-1]):  # Trainer reads it as well, and says less where it cannot
            TrainerState.load_from_json(str(done[-1] / TRAINER_STATE_NAME))
    try:
        # Also while the result is saved: a kill then would cost the whole stage, where no checkpoint was asked for.
        with stop:
            with held_heap():
                trainer.train(resume_from_checkpoint=str(done[-1]) if done else None)
            if not stop.stopped:
                _publish(trainer, processor, store)
    finally:
        bar.close()
    if stop.stopped:
        raise Stopped(
            f"stage {stage.name} was told to stop and saved step {trainer.state.global_step} of "
            f"{trainer.state.max_steps}; the same command goes on from there"
        )
    if len(skip_log):
        console.print(f"{stage.name}: {len(skip_log)} records were left out, see {SKIPPED}", highlight=False)
    if trainer.any_process(stop.told):
        raise Stopped(
            f"told to stop while stage {stage.name} was saved: it is finished, in {store.result}; the same command "
            "goes on from there"
        )


def _publish(trainer: LlavitTrainer, processor: Any, store: StageStore) -> None:
    """Save a trained stage's result; all processes must call it, the first one writes."""
    result = store.work / RESULT
    trainer.save_model(str(result))
    if trainer.is_world_process_zero():
        (result / "training_args.bin").unlink(missing_ok=True)  # a pickle; recipe.yaml says it all
        processor.save_pretrained(result)
        for name in (STEP_LOG, SKIPPED):
            if (store.work / name).exists():
                shutil.copyfile(store.work / name, result / name)
        move_base(store.work, result)
        store.publish(result)
    trainer.accelerator.wait_for_everyone()


def _bytes_to_save(model: Any, stage: Stage, steps: int, saved: Sequence[Path]) -> int:
    """Count what a stage's folder will grow by, at most at any time, until its result is there.

    A new checkpoint is whole before the oldest one goes, so for a while there is one more than are kept.

    Args:
        model: with its parts frozen, adapted and held as they will be.
        stage: says how many checkpoints are kept.
        steps: of the stage.
        saved: the checkpoints that are there already.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    written = trained if has_adapters(model) else model.parameters()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in written)
    moments = 2 * sum(parameter.numel() * parameter.element_size() for parameter in trained)
    to_come = 0
    if stage.save_every:
        taken = int(saved[-1].name.rpartition("-")[2]) if saved else 0
        to_come = -(-steps // stage.save_every) - taken // stage.save_every
    more = stage.keep_checkpoints - len(saved)
    at_most = min(max(more, 0) + 1, to_come)
    in_the_end = min(max(more, 0), to_come)
    return max(at_most * (weights + moments), in_the_end * (weights + moments) + weights)


def _start(spec: ModelSpec) -> tuple[Any, Any]:
    """Make the model that the first stage starts from, with float32 weights."""
    if spec.checkpoint is not None:
        model, processor = _load(spec.checkpoint, **spec.switched_off)
        if spec.chat_template is not None:
            own = processor.with_chat_template(spec.chat_template)
            processor = with_llavas_tokens(own, spec.chat_template)
        return model, processor
    assert spec.vision is not None and spec.llm is not None  # ModelSpec checked
    layers = spec.vision_feature_layer
    model, processor = build_llavit(
        starter_part(spec.vision),
        starter_part(spec.llm),
        vision_feature_layer=layers if isinstance(layers, int) else list(layers),
        visual_qkv=spec.visual_qkv,
        bidirectional_visual_attention=spec.bidirectional_visual_attention,
        vision_feature_norm=spec.vision_feature_norm,
        projector_width=spec.projector_width,
        visual_qkv_start=spec.visual_qkv_start,
        image_size=spec.image_size,
        chat_template=spec.chat_template,
        dtype=torch.float32,
    )
    template = spec.chat_template or processor.tokenizer.chat_template or DEFAULT_CHAT_TEMPLATE
    return model, with_llavas_tokens(processor, template)


def _answers_end(data: ConversationDataset, model: Any) -> bool:
    """Say whether one of the first records teaches a token that ends an answer; true where nothing can be said."""
    ends, seen = torch.tensor(end_tokens(model.generation_config)), 0
    for index in range(min(len(data), ENDS_LOOKED_FOR)):
        row = data[index]
        if not isinstance(row, Skipped):
            seen += 1
            if not len(ends) or bool(torch.isin(row["labels"], ends).any()):
                return True
    return not seen


def _calibrate(model: Any, processor: Any, reader: Reader, stage: Stage) -> None:
    """Measure feature statistics on the first images of the data, as `vision_feature_norm` asks."""
    data = ConversationDataset(
        reader, processor, max_length=stage.max_length, on_error=stage.data.on_error, style=stage.style
    )
    images: list[torch.Tensor] = []
    for index in range(len(data)):
        row = data[index]
        if not isinstance(row, Skipped) and "pixel_values" in row:
            images.append(row["pixel_values"])
        if sum(len(group) for group in images) >= CALIBRATION_IMAGES:
            break
    if not images:
        raise ValueError(
            f"vision_feature_norm needs images to measure, and stage {stage.name} has none; set it to false"
        )
    model.model.calibrate_features(torch.cat(images)[:CALIBRATION_IMAGES])


def _load(source: str | Path, **switches: bool) -> tuple[Any, Any]:
    model = LlavitForConditionalGeneration.from_pretrained(source, dtype=torch.float32, **switches)
    if has_adapters(model):
        merge_adapters(model)
    return model, LlavitProcessor.from_pretrained(source)
