"""What is found out before the first cell trains, as it would come too late after hours of training."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llavit.compare.cells import Cell
from llavit.compare.identity import order_of, require_same_order
from llavit.compare.variants import variant_of
from llavit.train.recipe import Recipe

if TYPE_CHECKING:
    from llavit.compare.run import Experiment


def require_runnable(experiment: Experiment, cells: Iterable[Cell]) -> None:
    """Check that every cell can be trained, and compared with those beside it; their material must be there.

    A cell whose LLM needs a package that is missing is passed over: it is left out when its turn comes.

    Raises:
        FileNotFoundError: data is not there.
        ValueError: a recipe cannot be made; or cells of a comparison would see other samples.
    """
    cells = list(cells)
    known: dict[Hashable, Any] = {}
    tested: list[tuple[Cell, Cell, Any]] = []  # a cell, itself with the variant that trains, what it sees
    for cell in cells:
        for variant in variant_of(experiment.grid, cell.variant).best_of or (cell.variant,):
            one = replace(cell, variant=variant)
            try:
                order = _order(experiment.recipe(one), known)
            except ImportError:
                continue
            if cell.test:
                tested.append((cell, one, order))
    for cell in experiment.cells():
        if not cell.test or cell in cells:
            continue
        found = experiment.find(cell)
        if found.state == "done" and found.record is not None and not found.record.get("failed"):
            tested.append((cell, cell, found.record["data"]))
    _require_comparable(experiment, tested)


def _order(recipe: Recipe, known: dict[Hashable, Any]) -> Any:
    """Give `order_of` a recipe; data that is large is not read again for each variant."""
    stages = ((one.name, one.data, one.steps, one.epochs, one.batch_size) for one in recipe.stages)
    key = (recipe.seed, *stages)
    if key not in known:
        known[key] = order_of(recipe)
    return known[key]


def _require_comparable(experiment: Experiment, tested: list[tuple[Cell, Cell, Any]]) -> None:
    """Check what `summarise` checks of results: cells of one LLM and size, and those compared across LLMs."""
    for key in dict.fromkeys((cell.llm, cell.size) for cell, _, _ in tested):
        require_same_order((one, order) for cell, one, order in tested if (cell.llm, cell.size) == key)
    for against in experiment.grid.against:
        pair = {(against.variant, against.llm), (against.baseline, against.baseline_llm)}
        for size in experiment.grid.sizes:
            require_same_order(
                (one, order)
                for cell, one, order in tested
                if cell.size == size and (cell.variant, cell.llm) in pair
            )
