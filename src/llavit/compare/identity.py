"""What a result depends on, beside the machine: recipe, data, weights, questions, and the code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from llavit.compare.cells import Cell
from llavit.compare.grid import Evaluation, Grid
from llavit.compare.scoring import tasks_of
from llavit.train.arguments import total_samples
from llavit.train.order import SeededOrder
from llavit.train.recipe import Recipe
from llavit.train.store import digest, stage_identity
from llavit.train.weights import starter_part

PACKAGE = Path(__file__).parents[1]
_CODE: tuple[str, ...] = (
    "model/*.py",
    "data/**/*.py",
    "train/*.py",
    "evaluate/*.py",
    "precision.py",
    "loading.py",
    "peak.py",
    "llava_prompt.py",
    "starter/weights.py",
    "starter/gemma.py",
)
_CODE += tuple(f"compare/{name}.py" for name in ("cell", "points", "scoring", "small_llm", "matching"))
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """Hash the code that a score depends on: model, data, training, evaluation and how a cell is run.

    What it leaves out makes recipes, which are part of a cell's settings, or shows what happens.

    Example:
        >>> len(code_fingerprint())
        16
    """
    found = hashlib.sha256()
    for pattern in _CODE:
        for path in sorted(PACKAGE.glob(pattern)):
            found.update(f"{path.relative_to(PACKAGE)} ".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def cell_identity(grid: Grid, recipe: Recipe, scratch: str | None) -> dict[str, Any]:
    """Collect what decides a cell's scores.

    Args:
        grid: the whole experiment.
        recipe: the cell's.
        scratch: digest of the decoder that was trained from scratch, in place of its folder; None for any other LLM.
    """
    model = recipe.model
    weights = {name: _weights(getattr(model, name)) for name in ("vision", "llm", "checkpoint")}
    if scratch is not None:
        weights["llm"] = f"scratch {scratch}"
    given: dict[str, Any] = {name: value for name, value in weights.items() if value is not None}
    # What weights are counts, not where they lie.
    named = replace(
        recipe,
        model=replace(model, **given),
        feature_cache=None if recipe.feature_cache is None else "cache",
    )
    stages: dict[str, Any] = {}
    before = None
    for index, stage in enumerate(recipe.stages):
        identity = stage_identity(named, index, stage.data.open(recipe.seed).fingerprint, before)
        before = digest(identity)
        stages[stage.name] = identity
    return {"stages": stages, **scored_on(grid.evaluation)}


def scored_on(evaluation: Evaluation) -> dict[str, Any]:
    """Say what a cell is scored on: every task with its fingerprint, and how it is asked."""
    test, val = tasks_of(evaluation, "test"), tasks_of(evaluation, "val")
    return {
        "test": {task.id: task.fingerprint for task in test},
        "val": {task.id: task.fingerprint for task in val},
        "asked": {
            "mode": evaluation.mode,
            "limit": evaluation.limit,
            "baselines": list(evaluation.baselines),
            "points": evaluation.points,
        },
    }


def order_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Say which samples each stage sees, and in which order: the same for all variants of a seed.

    Returns:
        by stage: `records`, `fingerprint` of the data, `samples`, and `order`, a hash over the numbers of the samples.
    """
    found = {}
    for stage in recipe.stages:
        reader = stage.data.open(recipe.seed)
        total = total_samples(stage, len(reader))
        order = SeededOrder(len(reader), total, recipe.seed)
        numbers = ",".join(map(str, order)).encode()
        found[stage.name] = {
            "records": len(reader),
            "fingerprint": reader.fingerprint,
            "samples": total,
            "order": hashlib.sha256(numbers).hexdigest()[:16],
        }
    return found


def require_same_order(cells: Iterable[tuple[Cell, Any]]) -> None:
    """Check that cells of a seed see the same samples in the same order.

    Args:
        cells: that stand beside each other, each with what `order_of` says of it.

    Raises:
        ValueError: two do not; names them.
    """
    seen: dict[int, tuple[Cell, Any]] = {}
    for cell, order in cells:
        first, expected = seen.setdefault(cell.seed, (cell, order))
        if order != expected:
            raise ValueError(
                f"{cell.name} and {first.name} do not see the same samples in the same order: they cannot be compared. "
                "A variant, or an LLM named under `against`, changes data, steps or batch size; make that a size"
            )


def _weights(source: str | None) -> str | None:
    """Hash the weights in a folder; a model of a hub is its name."""
    if source is None:
        return None
    folder = Path(starter_part(source))
    files = sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern))
    found = _hash_of(tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files))
    return f"weights {found}" if found else source


@lru_cache(maxsize=16)
def _hash_of(files: tuple[tuple[str, int, int], ...]) -> str:
    found = hashlib.sha256()
    for path, _, _ in files:
        with Path(path).open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16] if files else ""
