"""What is found out before the first cell trains, as it would come too late after hours of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from llavit.compare.cells import Cell
from llavit.compare.variants import variant_of
from llavit.train.recipe import Recipe

if TYPE_CHECKING:
    from llavit.compare.run import Experiment


def require_runnable(experiment: Experiment, cells: Iterable[Cell]) -> None:
    """Check that every cell can be trained; their material must be there.

    Raises:
        ValueError: a recipe cannot be made; says which change is wrong.
    """
    for cell in cells:
        for _ in _recipes(experiment, cell):
            pass


def _recipes(experiment: Experiment, cell: Cell) -> Iterator[Recipe]:
    """Make a cell's recipe, or all among which it chooses; none where a package of its LLM is missing."""
    for variant in variant_of(experiment.grid, cell.variant).best_of or (cell.variant,):
        try:
            yield experiment.recipe(replace(cell, variant=variant))
        except ImportError:  # the cell is left out when its turn comes
            continue
