"""A side that trains with llavit as its users do: a recipe, run by `llavit.train.train`.

Three things differ from a run of theirs: the order of samples is the one that all sides have; after each piece of steps
the trainer waits to be told to go on; and the run ends in the middle.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler

from benchmarks.speed.channel import Channel
from benchmarks.speed.pace import Finished, Pace, resident_bytes
from llavit.compiling import why_not
from llavit.precision import resolve_attention, resolve_dtype
from llavit.train import load_recipe, run
from llavit.train.trainer import LlavitTrainer

STEPS = 10_000


class FixedOrder(Sampler[int]):
    """Gives the same samples again and again."""

    def __init__(self, order: list[int], total: int):
        self.order, self.total = order, total

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Any:
        for number in range(self.total):
            yield self.order[number % len(self.order)]


def recipe_of(spec: dict[str, Any], cache: str) -> Any:
    """Build the recipe: ours.yaml, one stage of it, on the benchmark's parts."""
    overrides = [
        f"model.vision={spec['tower']}",
        f"model.llm={spec['llm']}",
        f"model.image_size={spec['image_size']}",
        f"model.vision_feature_layer={spec['layers'] if spec['switches'] else spec['layers'][-1]}",
        f"model.visual_qkv={spec['switches']}",
        f"model.bidirectional_visual_attention={spec['switches']}",
        "model.vision_feature_norm=false",
        f"feature_cache={cache}",
        *spec.get("overrides", ()),
    ]
    recipe = load_recipe(Path(__file__).with_name("ours.yaml"), overrides)
    stage = next(stage for stage in recipe.stages if stage.name == spec["stage"])
    stage = replace(
        stage,
        data=replace(stage.data, path=spec["data"]),
        batch_size=spec["batch"],
        micro_batch_size=spec["batch"] // spec.get("processes", 1),
        steps=STEPS,
        save_every=None,
    )
    if not spec["switches"]:
        stage = replace(stage, learning_rates=replace(stage.learning_rates, visual_qkv=0.0))
    return replace(recipe, stages=(stage,))


def side(spec: dict[str, Any], channel: Channel) -> None:
    """Train until told to stop.

    Args:
        spec: tower, llm, layers, image_size, data, stage ("pretrain" or "instruct"), batch (samples of a step), order,
            switches (LLaViT's changes on, or LLaVA), cache (folder of features), overrides (of the recipe), processes
            (that train together; 1 if not given).
        channel: to the harness.
    """
    before = resident_bytes()
    order = FixedOrder(spec["order"], STEPS * spec["batch"])
    facts: dict[str, Any] = {"resident_before": before}

    class Paced(LlavitTrainer):
        """LlavitTrainer in pieces, with an order given from outside."""

        def __init__(self, *args: Any, **kwargs: Any):
            pace = Pace(channel, facts)
            super().__init__(*args, **{**kwargs, "callbacks": [*kwargs["callbacks"], pace]})

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return order

    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_of(spec, spec["cache"])
        dtype = resolve_dtype(recipe.dtype)[0]
        stage = recipe.stages[0]
        facts |= {
            "rates": stage.learning_rates.by_part(),
            "dtype": str(dtype),
            "attention": resolve_attention(recipe.attention, dtype),
            "compiled": recipe.compile != "never" and why_not() is None,
            "why_not_compiled": why_not() if recipe.compile != "never" else "the recipe says never",
            "pack_length": stage.pack_length,
            "threads": torch.get_num_threads(),
        }
        run.LlavitTrainer = Paced  # type: ignore[misc]
        with contextlib.suppress(Finished):
            run.train(recipe, output=f"{folder}/run", progress=False)
