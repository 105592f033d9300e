"""Processes that share the cells of a grid, or go on after one that was killed, seen from one of them.

test_run.py has some that train.
"""

import logging

import pytest

from llavit.compare import run as run_module
from llavit.compare.run import run_grid
from llavit.train.store import held

from .parts import GRID, experiment, save_grid


def test_cells_that_other_processes_hold_are_said_to_be_left(tiny, tmp_path, ran, caplog):
    there = experiment(save_grid(tiny, tmp_path), tmp_path / "out")
    cells = there.cells()
    with (
        held(run_module._lock_of(there.folder(cells[1]))) as mine,
        caplog.at_level(logging.WARNING, "llavit"),
    ):
        run_grid(there, progress=False)
    assert mine and ran == [cell.name for cell in cells if cell is not cells[1]]
    assert (
        "cells left: 1; other processes work on tiny.full.llavit.0; the same command goes on" in caplog.text
    )


def test_a_choice_among_cells_that_other_processes_hold_is_said_to_be_left(tiny, tmp_path, ran, caplog):
    grid = GRID.replace("[llava, llavit], seeds: [0, 1]", "[llava-best-layer]")
    there = experiment(save_grid(tiny, tmp_path, grid=grid), tmp_path / "out")
    with (
        held(run_module._lock_of(there.folder(there.cells()[1]))),
        caplog.at_level(logging.WARNING, "llavit"),
    ):
        run_grid(there, progress=False)
    assert ran == ["tiny.full.llava.0", "tiny.full.llava-layer-2.0"]
    assert (
        "cells left: 2; other processes work on tiny.full.llava-layer-1.0; tiny.full.llava-best-layer.0 choose "
        "from those" in caplog.text
    )


def test_a_cell_is_held_once_and_not_only_looked_at(tiny, tmp_path, ran, monkeypatch):
    """To a neighbour that looks at the same moment it would seem to be under way."""
    tried = []

    def watched(lock, *args):
        tried.append(lock.name)
        return held(lock, *args)

    monkeypatch.setattr(run_module, "held", watched)
    run_grid(experiment(save_grid(tiny, tmp_path), tmp_path / "out"), progress=False)
    assert tried == [f".{name}.lock" for name in ran] and len(ran) == 4


@pytest.mark.parametrize("keep_weights", [False, True])
def test_weights_that_a_killed_run_had_no_time_to_clear_are_cleared_by_the_next_unless_kept(
    tiny, tmp_path, ran, monkeypatch, keep_weights
):
    there = experiment(save_grid(tiny, tmp_path), tmp_path / "out")
    cell = there.cells()[0]
    weights = there.folder(cell) / "run/instruct/model.safetensors"
    write = there.results.write

    def killed(*args):
        write(*args)
        weights.parent.mkdir(parents=True)
        weights.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(there.results, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run_grid(there, only=[cell.name], keep_weights=keep_weights, progress=False)
    assert weights.exists()
    again = experiment(tmp_path / "grid.yaml", tmp_path / "out")
    for _ in range(2):
        assert run_grid(again, only=[cell.name], progress=False) == []
    assert weights.exists() == keep_weights
    assert ran == [cell.name]
    assert not (again.folder(cell) / run_module.CLEARING).exists()
