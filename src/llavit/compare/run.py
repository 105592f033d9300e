"""Run a grid: cells one by one, in their order, each once; several processes share them."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llavit.compare.beforehand import require_runnable
from llavit.compare.cell import begun_by, clear_weights, run_cell
from llavit.compare.cells import Cell, candidates_of, cells_of, chosen_cells
from llavit.compare.grid import Grid
from llavit.compare.identity import cell_identity, code_fingerprint
from llavit.compare.material import Material
from llavit.compare.paired import require_scipy
from llavit.compare.results import Found, Results
from llavit.compare.variants import cell_recipe, changes_of
from llavit.train.recipe import Recipe
from llavit.train.store import differences, held, write_text

logger = logging.getLogger("llavit")
_OF_TORCHRUN = (
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)
BEGUN = "begun.json"
"""In a cell's folder: the settings that it was begun with."""

CLEARING = "clearing"
"""In a cell's folder: its weights go once its result is there, also if the run is killed before it has cleared them."""

_PATIENCE = 5.0  # seconds between looks at what other processes are doing


class NothingToChoose(ValueError):
    """Every candidate of a cell that chooses failed."""


@dataclass
class Experiment:
    """A grid with its folders.

    Attributes:
        grid: of `load_grid`.
        output: cells work here; data, features and weights lie here.
        results: one file for each cell that is done; reports too.
        accept_code: take results that other code made.

    Example:
        ```python
        experiment = Experiment.at(load_grid("tiny"), "runs/compare/tiny")
        run_grid(experiment)
        ```
    """

    grid: Grid
    output: Path
    results: Results
    accept_code: bool = False
    material: Material = field(init=False)

    def __post_init__(self) -> None:
        self.material = Material(self.grid, self.output)
        self.grid = self.material.grid

    @classmethod
    def at(
        cls,
        grid: Grid,
        output: str | Path | None = None,
        results: str | Path | None = None,
        accept_code: bool = False,
    ) -> Experiment:
        """Choose the folders: `runs/compare/NAME`, and `results` in it, where none are given."""
        folder = Path(output or f"runs/compare/{grid.name}")
        return cls(grid, folder, Results(results or folder / "results"), accept_code)

    def cells(self, only: Iterable[str] = ()) -> list[Cell]:
        """List the cells in their order, all or those that are asked for."""
        return chosen_cells(cells_of(self.grid), only)

    def winner(self, cell: Cell) -> Cell | None:
        """Say which cell's variant a cell takes: its own, or the best on val of those it chooses from.

        Returns:
            the cell to be trained, with the variant that was chosen; None where a candidate is not done yet.

        Raises:
            NothingToChoose: every candidate failed.
        """
        candidates = candidates_of(self.grid, cell)
        if not candidates:
            return cell
        scores: dict[str, float] = {}
        for candidate in candidates:
            found = self.find(candidate)
            if found.state != "done" or found.record is None:
                return None
            if found.record["val"] is not None:
                scores[candidate.variant] = found.record["val"]["score"]
        if not scores:
            raise NothingToChoose(f"every candidate failed: {', '.join(c.name for c in candidates)}")
        best = max(scores, key=lambda name: scores[name])  # of equal ones the first
        return Cell(best, cell.llm, cell.size, cell.seed, cell.test)

    def obstacle(self, cell: Cell) -> str:
        """Say why a cell that chooses cannot run now; nothing where it can, or does not choose."""
        try:
            return "" if self.winner(cell) is not None else "waits for a choice"
        except NothingToChoose as error:
            return str(error)

    def recipe(self, cell: Cell) -> Recipe:
        """Make the recipe of a cell that has changes of its own (`winner`); needs its material."""
        from dataclasses import replace

        made = cell_recipe(
            self.grid,
            cell.variant,
            cell.llm,
            cell.size,
            cell.seed,
            data=self.material.data,
            llm_folder=self.material.llm(cell.llm),
        )
        return replace(made, feature_cache=str(self.output / "features"), output=None)

    def identity(self, cell: Cell) -> dict[str, Any] | None:
        """Collect a cell's settings; None where it waits for a choice, or data or weights are not there."""
        if not self.material.drawn:
            return None
        try:
            winner = self.winner(cell)
        except NothingToChoose:
            return None
        if winner is None:
            return None
        if "matched" in str(changes_of(self.grid, winner.variant)) and not self.material.ready(cell.llm):
            return None  # its sizes are counted on the LLM
        try:
            return cell_identity(self.grid, self.recipe(winner), self.material.llm_digest(cell.llm))
        except (ImportError, FileNotFoundError):
            return None

    def find(self, cell: Cell) -> Found:
        """Say what there is for a cell."""
        if self.results.read(cell) is None:
            return Found("not run")
        return self.results.find(cell, self.identity(cell), code_fingerprint(), self.accept_code)

    def folder(self, cell: Cell) -> Path:
        """Where a cell works."""
        return self.output / "cells" / cell.name


def run_grid(
    experiment: Experiment,
    *,
    only: Iterable[str] = (),
    budget: float | None = None,
    keep_weights: bool = False,
    progress: bool = True,
) -> list[Cell]:
    """Run the cells that are not done, in their order, and write the reports after each.

    Called again, it goes on: a cell that is done is never run again, one that was cut off resumes from its checkpoint.
    Processes that `torchrun` started, or that simply run at the same time, share the cells: each takes the next that
    nobody works on.

    Args:
        experiment: grid and folders.
        only: see `chosen_cells`; cells that they choose from are run too.
        budget: minutes after which no further cell is begun; nor one that, by the cells before, would take longer
            than what is left of them, unless it would be the first.
        keep_weights: leave trained weights in the cells' folders.
        progress: show how training goes.

    Returns:
        the cells that this process ran.

    Raises:
        ValueError: a cell's recipe cannot be made, or cells could not be compared (nothing is trained then); a result
            was made with other settings or by other code; says what is wrong or differs.
        ImportError: a package of the reports is not installed.
        Stopped: SIGTERM arrived; the cell under way has saved its checkpoint.
    """
    from llavit.compare.pictures import require_matplotlib
    from llavit.compare.progress import what_is_left
    from llavit.compare.report import write_reports

    require_scipy()  # before hours of training, not after
    require_matplotlib()
    started = time.monotonic()
    ran: list[Cell] = []
    shared = _take_own_device()
    experiment.material.prepare(experiment.cells(only))
    waiting = _with_candidates(experiment, experiment.cells(only))
    require_runnable(experiment, waiting)
    for one in waiting:
        _require_mixable(experiment.results, one, experiment.find(one))
    while waiting:
        with _taken(experiment, waiting) as cell:
            if cell is None:
                if waiting and shared:
                    time.sleep(_PATIENCE)
                    continue
                if waiting:
                    logger.warning(what_is_left(experiment, waiting))
                break
            left = math.inf if budget is None else 60 * budget - (time.monotonic() - started)
            if not _fits(experiment, cell, left, first=not ran):
                logger.info("the budget of %g minutes is used up, %d cells wait", budget, len(waiting))
                break
            if experiment.find(cell).state == "done":
                continue
            try:
                _run_one(experiment, cell, keep_weights, progress)
            except ImportError as error:  # what another LLM is made of, say; the other cells can do without
                _leave_out(experiment, waiting, cell, str(error))
                continue
            ran.append(cell)
        write_reports(experiment)
    write_reports(experiment)
    return ran


def _run_one(experiment: Experiment, cell: Cell, keep_weights: bool, progress: bool) -> None:
    winner = experiment.winner(cell)
    assert winner is not None  # it is ready
    recipe = experiment.recipe(winner)
    identity = cell_identity(experiment.grid, recipe, experiment.material.llm_digest(cell.llm))
    done = len([one for one in experiment.cells() if experiment.results.read(one)])
    chosen = "" if winner.variant == cell.variant else f" ({winner.variant}, the best on val)"
    logger.info("cell %s%s: %d of %d are done", cell.name, chosen, done, len(experiment.cells()))
    folder = experiment.folder(cell)
    _begin(experiment, cell, identity)
    record = run_cell(
        cell,
        recipe,
        experiment.grid.evaluation,
        identity,
        folder,
        keep_weights=keep_weights,
        progress=progress,
    )
    (folder / CLEARING).unlink(missing_ok=True)
    if not keep_weights:
        (folder / CLEARING).touch()
    experiment.results.write(cell, {"grid": experiment.grid.name, "chosen": winner.variant, **record})
    _clear(folder)
    shown = record["test"] or record["val"]
    logger.info(
        "cell %s: %s, %.1f minutes",
        cell.name,
        f"failed: {record['failed']}" if shown is None else f"{100 * shown['score']:.1f} per cent",
        record["seconds"]["wall"] / 60,
    )


def _clear(folder: Path) -> None:
    """Clear the weights of a cell that has its result, unless they were to be kept."""
    if (folder / CLEARING).exists():
        clear_weights(folder)
        (folder / CLEARING).unlink(missing_ok=True)


def _with_candidates(experiment: Experiment, cells: Iterable[Cell]) -> list[Cell]:
    found: dict[str, Cell] = {}
    for cell in cells:
        for one in (*candidates_of(experiment.grid, cell), cell):
            found.setdefault(one.name, one)
    known = {cell.name: cell for cell in experiment.cells()}
    return [known.get(name, cell) for name, cell in found.items()]


@contextmanager
def _taken(experiment: Experiment, waiting: list[Cell]) -> Iterator[Cell | None]:
    """Drop the cells that are done, and hold the next that can be run now; None where there is none.

    Its lock is not let go in between: to others a cell that is only looked at would seem to be under way.
    """
    for cell in list(waiting):
        found = experiment.find(cell)
        if found.state == "done":
            waiting.remove(cell)
            folder = experiment.folder(cell)
            if (folder / CLEARING).exists():  # of a run that was killed, or is not through with it
                with held(_lock_of(folder)) as alone:
                    if alone:
                        _clear(folder)
            continue
        _require_mixable(experiment.results, cell, found)
        try:
            winner = experiment.winner(cell)
        except NothingToChoose as error:
            _leave_out(experiment, waiting, cell, str(error))
            continue
        if winner is None:
            continue
        with held(_lock_of(experiment.folder(cell))) as alone:
            if alone:
                yield cell
                return
    yield None


def _leave_out(experiment: Experiment, waiting: list[Cell], cell: Cell, why: str) -> None:
    """Drop a cell that cannot run here, and those that would choose it."""
    logger.warning("cell %s cannot run here: %s", cell.name, why)
    waiting.remove(cell)
    for one in list(waiting):
        if cell.name in [candidate.name for candidate in candidates_of(experiment.grid, one)]:
            _leave_out(experiment, waiting, one, f"it chooses from others, of which {cell.name} is one")


def _fits(experiment: Experiment, cell: Cell, left: float, first: bool) -> bool:
    """Say whether a cell may begin with so many seconds left."""
    from llavit.compare.progress import estimate_seconds

    return left > 0 and (first or (estimate_seconds(experiment, cell) or 0.0) <= left)


def _begin(experiment: Experiment, cell: Cell, identity: dict[str, Any]) -> None:
    """Make sure that what lies in a cell's folder, if anything does, is the beginning of this very training.

    Where no training lies in it, the rest (answers and points of a result that was deleted) is cleared away.
    """
    folder = experiment.folder(cell)
    if not (folder / "run").exists():
        shutil.rmtree(folder, ignore_errors=True)
    others = [code for code in begun_by(folder) if code != code_fingerprint()]
    if others and not experiment.accept_code:
        raise ValueError(
            f"cell {cell.name} was begun by other code: {', '.join(others)} there, {code_fingerprint()} here. Say "
            f"--accept-code to go on with it (its result then names both), or delete {folder}"
        )
    settings = json.loads(json.dumps({"stages": identity["stages"], "points": identity["asked"]["points"]}))
    path = folder / BEGUN
    if path.exists():
        changes = differences(json.loads(path.read_text(encoding="utf-8")), settings)
        if changes:
            raise ValueError(
                f"cell {cell.name} was begun with other settings:\n  "
                + "\n  ".join(changes)
                + f"\nDelete {folder} to run the cell anew."
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=1))


def _require_mixable(results: Results, cell: Cell, found: Found) -> None:
    if found.state == "other settings":
        raise ValueError(
            f"{results.path(cell)} was made with other settings:\n  "
            + "\n  ".join(found.why)
            + "\nChoose another results folder, or delete the file to run the cell again."
        )
    if found.state == "other code":
        raise ValueError(
            f"{results.path(cell)} was made by other code: {found.why[0]}. Say --accept-code to take such results "
            "(reports name the revisions), or delete the file to run the cell again."
        )


def _lock_of(folder: Path) -> Path:
    """Of a cell, so that several processes do not run it."""
    return folder.with_name(f".{folder.name}.lock")


def _take_own_device() -> bool:
    """Make a process of `torchrun` one that trains alone, on the device of its local rank.

    Returns:
        whether there are several processes.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if several:
        visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[rank % len(visible)] if visible else str(rank)
        for name in _OF_TORCHRUN:
            os.environ.pop(name, None)
    return several
