"""One cell from beginning to end: train, score on the way and at the end, write down, clear up."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llavit.compare.cells import Cell
from llavit.compare.grid import Evaluation
from llavit.compare.identity import code_fingerprint, order_of
from llavit.compare.points import PARAMETERS, Points, point_steps
from llavit.compare.scoring import score
from llavit.evaluate.environment import environment
from llavit.model.processor import LlavitProcessor
from llavit.peak import peak_memory
from llavit.precision import resolve_dtype
from llavit.progress import quiet_transformers
from llavit.threads import repeated
from llavit.train.arguments import total_samples
from llavit.train.progress import STEP_LOG, read_step_log
from llavit.train.recipe import Recipe
from llavit.train.run import train
from llavit.train.schema import to_plain
from llavit.train.store import write_text

CLOCK = "clock.json"
_WRITE_EVERY = 30.0  # seconds; what a run that is killed loses of its time


def run_cell(
    cell: Cell,
    recipe: Recipe,
    evaluation: Evaluation,
    identity: Mapping[str, Any],
    folder: Path,
    *,
    keep_weights: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train and score a cell, or go on where it was cut off.

    Args:
        cell: which one.
        recipe: of `cell_recipe`.
        evaluation: what it is scored on.
        identity: of `cell_identity`; becomes part of the record.
        folder: works here; trainings, answers and weights lie here.
        keep_weights: leave the trained weights of each stage and point in the folder.
        progress: show how training goes.

    Returns:
        the record for `Results.write`. A loss that is not finite is a result too: the record then has `failed`.

    Raises:
        Stopped: SIGTERM arrived while it trained; the checkpoint is saved.
        ValueError: the folder holds another training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _clock(folder / CLOCK) as clock:
        codes = begun_by(folder)
        record: dict[str, Any] = {
            "cell": {"variant": cell.variant, "llm": cell.llm, "size": cell.size, "seed": cell.seed},
            "identity": identity,
            "code": "+".join(codes),
            "environment": environment(),
            "computed_in": str(resolve_dtype(recipe.dtype)[0]).removeprefix("torch."),
            "recipe": {key: value for key, value in to_plain(recipe).items() if key != "output"},
            "data": order_of(recipe),
        }
        try:
            train(
                recipe,
                output=folder / "run",
                progress=progress,
                callbacks=[Points(folder / "points", evaluation.points)],
            )
        except FloatingPointError as error:
            record |= {"failed": str(error), "test": None, "val": None, "curve": []}
        else:
            record |= _scores(cell, recipe, evaluation, folder, keep_weights)
    record |= {
        "parameters": json.loads((folder / "points" / PARAMETERS).read_text(encoding="utf-8")),
        "losses": _losses(recipe, folder),
        "seconds": {
            "training": round(sum(row["seconds"] for row in _log(recipe, folder)), 1),
            "wall": round(clock["seconds"], 1),
        },
        "peak_memory_gib": round(clock["peak"] / 2**30, 2),
    }
    return record


def begun_by(folder: Path) -> list[str]:
    """List the fingerprints of the code that has worked on a cell, in their order; none where nothing has begun."""
    path = folder / CLOCK
    return json.loads(path.read_text(encoding="utf-8")).get("codes", []) if path.exists() else []


def clear_weights(folder: Path) -> None:
    """Remove a cell's trained weights and checkpoints; logs and answers stay."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    for place in (folder / "points").glob("*"):
        if place.is_dir():
            shutil.rmtree(place)


def samples_at(recipe: Recipe, stage: str, step: int, records: Mapping[str, int]) -> int:
    """Count the samples that a run has seen after a step of a stage, earlier stages included."""
    seen = 0
    for one in recipe.stages:
        total = total_samples(one, records[one.name])
        if one.name == stage:
            return seen + min(total, step * one.batch_size)
        seen += total
    raise ValueError(f"no stage {stage!r} in the recipe")


def _scores(
    cell: Cell, recipe: Recipe, evaluation: Evaluation, folder: Path, keep_weights: bool
) -> dict[str, Any]:
    """Score every point on val, in the order of training, and the end on test."""
    records = {name: about["records"] for name, about in order_of(recipe).items()}
    curve = []
    with quiet_transformers():
        for stage in recipe.stages:
            result = folder / "run" / stage.name
            last = read_step_log(result / STEP_LOG)[-1]["step"]
            for step in point_steps(last, evaluation.points):
                place = result if step == last else folder / "points" / f"{stage.name}.{step}"
                answers = folder / "val" / f"{stage.name}.{step}.json"
                if not place.exists() and not answers.exists():
                    continue  # of a stage with adapters: its end only
                if place is not result and place.exists():
                    LlavitProcessor.from_pretrained(result).save_pretrained(place)
                found = score(place, evaluation, "val", dtype=recipe.dtype, output=answers)
                samples = samples_at(recipe, stage.name, step, records)
                curve.append({"stage": stage.name, "step": step, "samples": samples, **_short(found)})
        test = None
        if cell.test:
            final = folder / "run" / recipe.stages[-1].name
            test = score(final, evaluation, "test", dtype=recipe.dtype, output=folder / "test.json")
    return {"curve": curve, "val": found, "test": test}


def _short(found: Mapping[str, Any]) -> dict[str, Any]:
    tasks = {key: task["score"] for key, task in found["tasks"].items()}
    return {"score": found["score"], "families": found["families"], "tasks": tasks}


def _log(recipe: Recipe, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for stage in recipe.stages:
        for name in (stage.name, f"{stage.name}.work"):
            rows += [{**row, "stage": stage.name} for row in read_step_log(folder / "run" / name / STEP_LOG)]
    return rows


def _losses(recipe: Recipe, folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {stage.name: [] for stage in recipe.stages}
    for row in _log(recipe, folder):
        found[row["stage"]].append(round(row["loss"], 5))
    return found


@contextmanager
def _clock(path: Path) -> Iterator[dict[str, Any]]:
    """Add up wall-clock seconds and the peak of memory over the runs that a cell takes."""
    before: dict[str, Any] = {"seconds": 0.0, "peak": 0}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
    codes = dict.fromkeys((*before.get("codes", ()), code_fingerprint()))
    clock = {**before, "codes": list(codes)}
    write_text(path, json.dumps(clock))  # now: a run that is killed has taken part too
    start = time.monotonic()

    def write() -> None:
        clock["seconds"] = before["seconds"] + time.monotonic() - start
        clock["peak"] = max(before["peak"], peak.bytes)
        write_text(path, json.dumps(clock))

    try:
        with peak_memory() as peak, repeated(write, _WRITE_EVERY):
            yield clock
    finally:
        write()
