"""Cells: one variant on one LLM, at one data size, with one seed; and the order in which they run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from llavit.compare.grid import Grid
from llavit.compare.variants import variant_of


@dataclass(frozen=True)
class Cell:
    """One training run and its scores.

    Attributes:
        variant: name of the variant.
        llm: name of the LLM.
        size: name of the data size.
        seed: of data order and random weights.
        test: scored on test as well, and not on val only.

    Example:
        >>> Cell("llava", "smollm2", "full", 0).name
        'smollm2.full.llava.0'
    """

    variant: str
    llm: str
    size: str
    seed: int
    test: bool = True

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.llm}.{self.size}.{self.variant}.{self.seed}"


def cells_of(grid: Grid) -> list[Cell]:
    """List a grid's cells in the order in which they run: block by block, and within a block seed by seed, so that
    pairs are complete early. A cell that chooses comes after those it chooses from, which are added.

    Example:
        >>> from llavit.compare.grid import load_grid
        >>> [cell.name for cell in cells_of(load_grid("tiny"))][:2]
        ['small.full.llava.0', 'small.full.llavit.0']
    """
    found: dict[str, Cell] = {}

    def add(cell: Cell) -> None:
        for candidate in candidates_of(grid, cell):
            add(candidate)
        before = found.get(cell.name)
        found[cell.name] = cell if before is None else replace(before, test=before.test or cell.test)

    first_llm, first_size = next(iter(grid.llms)), next(iter(grid.sizes))
    for block in grid.cells:
        for seed in block.seeds:
            for size in block.sizes or (first_size,):
                for llm in block.llms or (first_llm,):
                    for variant in block.variants:
                        add(Cell(variant, llm, size, seed, block.test))
    return list(found.values())


def candidates_of(grid: Grid, cell: Cell) -> list[Cell]:
    """List the cells among which a cell chooses; none for a cell that does not.

    Example:
        >>> from llavit.compare.grid import load_grid
        >>> candidates_of(load_grid("tiny"), Cell("llava", "small", "full", 0))
        []
    """
    size = grid.choice.size or cell.size
    return [
        Cell(name, cell.llm, size, grid.choice.seed, test=False)
        for name in variant_of(grid, cell.variant).best_of
    ]


def chosen_cells(cells: Iterable[Cell], only: Iterable[str]) -> list[Cell]:
    """Keep the cells that are asked for.

    Args:
        cells: all of them.
        only: patterns, of which one must fit: a cell's name, or a part of it between its dots (`llavit`, `smollm2`,
            `smollm2.full`), or with `*` and `?`.

    Raises:
        ValueError: a pattern that fits none; lists the names.

    Example:
        >>> two = [Cell("llava", "a", "full", 0), Cell("llavit", "a", "full", 0)]
        >>> [cell.variant for cell in chosen_cells(two, ["llavit"])]
        ['llavit']
    """
    from fnmatch import fnmatchcase

    cells, patterns = list(cells), list(only)
    if not patterns:
        return cells

    def fits(cell: Cell, pattern: str) -> bool:
        return fnmatchcase(cell.name, pattern) or f".{pattern}." in f".{cell.name}."

    for pattern in patterns:
        if not any(fits(cell, pattern) for cell in cells):
            names = ", ".join(cell.name for cell in cells)
            raise ValueError(f"--only {pattern}: no such cell; there are {names}")
    return [cell for cell in cells if any(fits(cell, pattern) for pattern in patterns)]
