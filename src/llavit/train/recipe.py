"""A recipe: everything that makes a training run what it is, as YAML over frozen dataclasses.

Read one with `load_recipe`; the YAML files that come with the package are in `recipes/` and are made to be
copied.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from llavit.compiling import Compile
from llavit.train.data_spec import DataSpec
from llavit.train.rates import LearningRates, LoraSpec, require_positive
from llavit.train.schema import build, merge, parse_yaml, suggest, to_plain

RECIPES = Path(__file__).parent / "recipes"
_TAKEN = ("recipe.yaml", "tensorboard", "wandb")
"""What else there is in a run's folder beside those of stages."""

Schedule = Literal["cosine", "linear", "constant", "constant_with_warmup"]


@dataclass(frozen=True)
class Stage:
    """One pass of training with one data set and one choice of what trains.

    Attributes:
        name: the stage's folder in the output.
        data: what it learns from.
        learning_rates: peak rate of each part.
        batch_size: samples per optimizer step, over all micro-batches and processes.
        micro_batch_size: samples per forward pass and process, `batch_size` if that is less or this is not
            given; changes memory and speed, not the result.
        steps: optimizer steps; where given, it counts instead of `epochs`.
        epochs: passes over the data; a fraction is fine.
        schedule: how the rates go on after warm-up; "constant" is without one, and wants `warmup_ratio` 0.
        warmup_ratio: share of the steps in which the rates rise from 0 to their peak.
        weight_decay: AdamW's; not applied to norms and biases.
        adam_beta2: AdamW's; how long it remembers the size of gradients.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them alone.
        max_length: longer samples are cut, in tokens; images never are. One of which nothing to learn from is left
            is left out and written down, and is not a bad record.
        style: "chat" renders samples with the chat template; "plain" is LLaVA's way to pretrain, images and
            captions only.
        image_aspect_ratio: "pad" pads images to a square with the mean colour before anything else, in this stage and
            in what it makes, so that nothing is cut off: LLaVA-1.5's instruct stage does. Not given, images are
            prepared as the stage before did, or as the tower's own processor says (CLIP's cuts out the middle).
        pack_length: tokens of a row into which short samples are packed, without seeing each other; not given,
            each sample has a row of its own. Changes speed, not the result.
        group_by_length: put samples of like length into one micro-batch, of those of the same optimizer step.
            Changes speed, not the result.
        lora: train adapters instead of the LLM's own weights.
        frozen_dtype: what the matrices of frozen parts are held in, and saved in. bfloat16 halves their memory; it
            needs a run that computes in bfloat16, which rounds them to it anyway. "auto" is the run's own dtype.
        gradient_checkpointing: run each layer again in the backward pass instead of keeping its activations.
        save_every: optimizer steps between checkpoints to resume from; without it a stage starts again.
        keep_checkpoints: how many of them are kept.
        workers: processes that read and encode samples; 0 does it in the training process.
    """

    name: str
    data: DataSpec
    learning_rates: LearningRates
    batch_size: int
    micro_batch_size: int | None = None
    steps: int | None = None
    epochs: float = 1.0
    schedule: Schedule = "cosine"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    max_length: int | None = None
    style: Literal["chat", "plain"] = "chat"
    image_aspect_ratio: Literal["pad"] | None = None
    pack_length: int | None = None
    group_by_length: bool = False
    lora: LoraSpec | None = None
    frozen_dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    save_every: int | None = None
    keep_checkpoints: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        if not self.name or self.name != Path(self.name).name or self.name.startswith("."):
            raise ValueError(f"name: expected the name of a folder, got {self.name!r}")
        if self.name in _TAKEN or self.name.endswith(".work"):
            raise ValueError(
                f"name: {self.name!r} is the name of another folder or file of a run, choose another"
            )
        names = (
            "batch_size",
            "micro_batch_size",
            "steps",
            "epochs",
            "max_length",
            "pack_length",
            "save_every",
            "keep_checkpoints",
        )
        require_positive(self, *names)
        if self.batch_size % self.micro:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro}"
            )
        if not 0 <= self.adam_beta2 < 1:
            raise ValueError(f"adam_beta2: expected 0 <= beta < 1, got {self.adam_beta2}")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio: expected 0 <= ratio < 1, got {self.warmup_ratio}")
        if self.schedule == "constant" and self.warmup_ratio:
            raise ValueError(
                f"schedule: constant has no warm-up, and warmup_ratio is {self.warmup_ratio}; set it to 0, or schedule "
                "to constant_with_warmup"
            )
        if self.lora is not None and not self.learning_rates.llm:
            raise ValueError(
                "lora: adapters train at learning_rates.llm, expected it above 0; leave lora out to freeze the LLM"
            )
        if self.lora is not None and self.learning_rates.text_qkv is not None:
            raise ValueError("lora: adapters train in place of text QKV, leave learning_rates.text_qkv out")

    @property
    def micro(self) -> int:
        """Samples per forward pass."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size)


_SWITCHES = ("visual_qkv", "bidirectional_visual_attention")


@dataclass(frozen=True)
class ModelSpec:
    """What the first stage starts from: a vision tower and an LLM to join, or a checkpoint.

    Attributes:
        vision: vision tower: a folder, a hub id or `starter:tower`.
        llm: LLM: a folder, a hub id or `starter:llm`.
        vision_feature_layer: tower layers whose features are concatenated; a single one is LLaVA's way.
        visual_qkv: visual tokens have their own q, k and v projections.
        bidirectional_visual_attention: visual tokens of an image see each other in both directions.
        vision_feature_norm: standardise features before the projector, by statistics of the first stage's
            first images.
        projector_width: of the projector's inner layer; the LLM's width, as in LLaVA, if not given.
        visual_qkv_start: visual QKV start as a "copy" of the text QKV, as in the paper, or at "random".
        image_size: side of the square image, in pixels; the tower's own if not given.
        chat_template: Jinja template of a conversation; the tokenizer's or the checkpoint's own if not given.
        checkpoint: a LLaViT or LLaVA folder or hub id, instead of the above. Beside it the chat template may be
            given, and either switch as false: LLaVA as the LLaVA that it is.
    """

    vision: str | None = None
    llm: str | None = None
    vision_feature_layer: int | tuple[int, ...] = -2
    visual_qkv: bool = True
    bidirectional_visual_attention: bool = True
    vision_feature_norm: bool = False
    projector_width: int | None = None
    visual_qkv_start: Literal["copy", "random"] = "copy"
    image_size: int | None = None
    chat_template: str | None = None
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        require_positive(self, "image_size", "projector_width")
        if self.checkpoint is not None:
            given = [
                f.name
                for f in fields(self)
                if f.name not in ("checkpoint", "chat_template", *_SWITCHES)
                and getattr(self, f.name) != f.default
            ]
            if given:
                raise ValueError(
                    f"checkpoint stands alone: its config decides {', '.join(given)}, leave them out"
                )
        elif self.vision is None or self.llm is None:
            raise ValueError("expected `vision` and `llm`, or `checkpoint`")

    @property
    def switched_off(self) -> dict[str, bool]:
        """The switches that a checkpoint does not decide, as keywords: those that are false."""
        return {name: False for name in _SWITCHES if not getattr(self, name)}


@dataclass(frozen=True)
class Recipe:
    """A whole training run.

    Attributes:
        name: what to call it; the output folder is `runs/NAME` if `output` isn't given.
        model: what the first stage starts from.
        stages: in order; each starts from the result of the one before.
        seed: of weights that start at random and of the order of the data.
        dtype: what the model computes in; weights and optimizer are float32 either way. "auto" is bfloat16
            where the hardware multiplies it fast.
        output: folder of the run.
        feature_cache: folder in which a frozen vision tower's features are kept, to be computed once for all
            stages, variants and seeds; not given, they are computed in every step.
        attention: the LLM's attention implementation. "documents" runs the LLM on a step's tokens in one row without
            padding, and attention on each sample by itself, packed or not. "auto" is that for bfloat16 on a CPU, else
            sdpa.
        compile: compile the LLM's layers with torch.compile: "never", "auto" (where there is a compiler) or "always".
            Faster steps after a slow first one; the same result up to rounding.
        parallel: how several processes share the work (`torchrun`): "ddp" copies the model to each, "fsdp2" cuts
            it up, "zero2" and "zero3" are DeepSpeed's ways.
        timeout_minutes: how long a process waits for the others before it ends with an error: also while one of them
            computes its last features for the cache, or saves to slow storage.
        peak_tflops: what one device can reach, for MFU in the logs; known GPUs need none.
        wandb: project on Weights & Biases to log to as well.
    """

    name: str
    model: ModelSpec
    stages: tuple[Stage, ...]
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    output: str | None = None
    feature_cache: str | None = None
    attention: Literal["auto", "documents", "sdpa", "eager", "flex_attention"] = "auto"
    compile: Compile = "never"
    parallel: Literal["ddp", "fsdp2", "zero2", "zero3"] = "ddp"
    timeout_minutes: float = 120.0
    peak_tflops: float | None = None
    wandb: str | None = None

    def __post_init__(self) -> None:
        require_positive(self, "peak_tflops", "timeout_minutes")
        names = [stage.name for stage in self.stages]
        if not names:
            raise ValueError("stages: expected at least one")
        if len(set(names)) < len(names):
            raise ValueError(f"stages: expected a different name for each, got {', '.join(names)}")
        for stage in self.stages:
            if (
                self.parallel in ("fsdp2", "zero3")
                and stage.lora is not None
                and stage.lora.quantize == "nf4"
            ):
                raise ValueError(
                    f"stage {stage.name}: layers in 4 bits are not cut up over processes, so with `quantize: nf4` "
                    f"expected `parallel: ddp` or zero2, got {self.parallel}"
                )

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.output or f"runs/{self.name}")

    def to_yaml(self) -> str:
        """Write every value down, defaults included; `load_recipe` reads it back to an equal recipe."""
        return yaml.safe_dump(to_plain(self), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Shipped:
    """A recipe that comes with the package."""

    name: str
    path: Path
    about: str


def shipped_recipes() -> list[Shipped]:
    """List the recipes that come with the package; the first comment line says what each is for.

    Example:
        >>> "starter" in [recipe.name for recipe in shipped_recipes()]
        True
    """
    found = []
    for path in sorted(RECIPES.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        found.append(Shipped(path.stem, path, first.lstrip("# ")))
    return found


def load_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    With `extends: OTHER`, a file only says what differs from another recipe, named by a path relative to the file
    or by the name of one that comes with the package. Keys are merged deeply, stages by their names; any other
    list replaces the one before.

    Args:
        source: a YAML file, or the name of a recipe that comes with the package.
        overrides: `KEY=VALUE`, each; the value is read as YAML. Keys are joined by dots, and a stage is named
            or counted: `stages.pretrain.steps=3`, `stages.0.learning_rates.llm=2e-5`.

    Raises:
        FileNotFoundError: neither a file nor a known name.
        ValueError: anything wrong with the content; names the file, the key, what was expected and got.

    Example:
        >>> load_recipe("starter", ["seed=1", "stages.pretrain.batch_size=8", "stages.0.steps=3"]).seed
        1
    """
    path = _find(source)
    values, where = _read(path, str(source), ())
    for override in overrides:
        _apply(values, override)
        where += f" --set {override}"
    return build(Recipe, values, where)


def _read(path: Path, where: str, children: tuple[Path, ...]) -> tuple[Any, str]:
    """Read a file and all it extends; give the merged values, and how to call them in errors."""
    values = parse_yaml(path.read_text(encoding="utf-8"), where)
    if not isinstance(values, dict) or "extends" not in values:
        return values, where
    parent = values.pop("extends")
    if not isinstance(parent, str):
        raise ValueError(f"{where}: extends: expected the path or name of one recipe, got {parent!r}")
    build(Recipe, values, where, partial=True)  # now, while it is known which file a bad key comes from
    for index, stage in enumerate(values.get("stages", ())):
        if "name" not in stage:
            raise ValueError(f"{where}: stages[{index}].name: missing, and stages are extended by name")
    try:
        parent_path = _find(parent, path.parent)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: extends: {error}") from error
    family = (*children, path.resolve())
    if parent_path.resolve() in family:
        circle = " extends ".join(file.name for file in (*family, parent_path))
        raise ValueError(f"{where}: extends: a recipe cannot extend itself: {circle}")
    base, base_name = _read(parent_path, parent, family)
    build(Recipe, base, base_name, partial=True)
    return merge(base, values, named_lists=("stages",)), f"{where} (extends {base_name})"


def _find(source: str | Path, folder: Path = Path()) -> Path:
    shipped = {recipe.name: recipe.path for recipe in shipped_recipes()}
    if (folder / source).is_file():
        return folder / source
    if str(source) in shipped:
        return shipped[str(source)]
    near = difflib.get_close_matches(str(source), shipped, n=1)
    hint = f"did you mean {near[0]}?" if near else f"recipes that come with the package: {', '.join(shipped)}"
    raise FileNotFoundError(f"no such recipe file: {source}; {hint}")


def _apply(values: Any, override: str) -> None:
    """Set one value of the plain YAML values; whether the key exists is the schema's business."""
    where = f"--set {override}"
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{where}: expected KEY=VALUE, like stages.0.steps=3")
    *parents, last = key.strip().split(".")
    target = values
    for depth, part in enumerate(parents):
        target = _step(target, part, where, ".".join(parents[:depth]))
    value = parse_yaml(text, where)
    if isinstance(target, list):
        target[_position(target, last, where, ".".join(parents))] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise ValueError(f"{where}: {'.'.join(parents)} is a single value, it has no {last!r}")


def _step(target: Any, part: str, where: str, path: str) -> Any:
    if isinstance(target, list):
        return target[_position(target, part, where, path)]
    if not isinstance(target, dict):
        raise ValueError(f"{where}: {path} is a single value, it has no {part!r}")
    if target.get(part) is None:
        target[part] = {}
    return target[part]


def _position(items: list[Any], part: str, where: str, path: str) -> int:
    """Find an item of a list by its number or by its name."""
    names = [str(item.get("name")) for item in items if isinstance(item, dict)]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise ValueError(
        f"{where}: {path} has no {part!r}, {suggest(part, [*names, *map(str, range(len(items)))])}"
    )
