"""What is wrong with a grid comes out before anything is trained."""

import logging

import pytest

from llavit.compare import run as run_module
from llavit.compare import variants as variants_module
from llavit.compare.identity import order_of
from llavit.compare.run import run_grid

from .parts import GRID, experiment, save_grid

MINE = """
variants:
  mine: {{extends: llava, set: ['CHANGE']}}
  best: {{best_of: [llava, mine]}}
cells:
"""


def with_mine(tiny, folder, change, cells, more=""):
    """A grid in whose cells there may be `mine`, a LLaVA with one change, and `best`, LLaVA or `mine`."""
    grid = GRID.replace("cells:\n", MINE.replace("CHANGE", change))
    grid = grid.replace("{{variants: [llava, llavit], seeds: [0, 1]}}", cells)
    return experiment(save_grid(tiny, folder, more, grid), folder / "out")


@pytest.mark.parametrize("later", ["mine", "best"])
def test_a_typo_in_a_later_variant_is_found_before_the_first_cell_trains(tiny, tmp_path, ran, later):
    there = with_mine(
        tiny, tmp_path, "stages.instruct.learning_rate.llm=1e-4", f"{{{{variants: [llava, {later}]}}}}"
    )
    with pytest.raises(ValueError, match="learning_rate: unknown key, did you mean `learning_rates`"):
        run_grid(there, progress=False)
    assert ran == []


def test_a_typo_in_a_size_is_found_before_the_first_cell_trains(tiny, tmp_path, ran):
    grid = GRID.replace("short: {{set: [stages.pretrain.steps=1", "short: {{set: [stages.pretrain.stepz=1")
    there = experiment(
        save_grid(tiny, tmp_path, "  - {variants: [llava], sizes: [short]}\n", grid), tmp_path / "out"
    )
    with pytest.raises(ValueError, match="stepz: unknown key, did you mean `steps`"):
        run_grid(there, progress=False)
    assert ran == []


def test_a_recipe_that_takes_a_missing_package_keeps_no_other_cell_from_running(
    tiny, tmp_path, ran, monkeypatch, caplog
):
    def missing(*args):
        raise ImportError("it needs a package")

    monkeypatch.setattr(variants_module, "matched_width", missing)
    grid = GRID.replace("[llava, llavit], seeds: [0, 1]", "[llava-wide-projector, llava]")
    with caplog.at_level(logging.WARNING, "llavit"):
        run_grid(experiment(save_grid(tiny, tmp_path, grid=grid), tmp_path / "out"), progress=False)
    assert ran == ["tiny.full.llava.0"]
    assert "cell tiny.full.llava-wide-projector.0 cannot run here: it needs a package" in caplog.text


LONGER = "stages.instruct.steps=1"


@pytest.mark.parametrize("later", ["mine", "best"])
def test_a_variant_that_sees_other_samples_is_found_before_the_first_cell_trains(tiny, tmp_path, ran, later):
    there = with_mine(tiny, tmp_path, LONGER, f"{{{{variants: [llava, {later}]}}}}")
    with pytest.raises(
        ValueError, match=r"tiny\.full\.mine\.0 and tiny\.full\.llava\.0 do not see the same samples"
    ):
        run_grid(there, progress=False)
    assert ran == []


def test_other_samples_than_a_result_of_before_are_found_before_the_cell_trains(tiny, tmp_path, ran):
    there = with_mine(tiny, tmp_path, LONGER, "{{variants: [llava, mine]}}")
    cell = there.cells()[0]
    record = {"identity": there.identity(cell), "code": run_module.code_fingerprint(), "test": {}}
    there.results.write(cell, {**record, "data": order_of(there.recipe(cell))})
    with pytest.raises(ValueError, match=r"llava\.0 and tiny\.full\.mine\.0 do not see the same samples"):
        run_grid(there, only=["mine"], progress=False)
    assert ran == []


def test_cells_of_other_samples_run_where_nobody_compares_them(tiny, tmp_path, ran):
    tried = "{{variants: [llava]}}\n  - {{variants: [mine], test: false}}\n  - {{variants: [llava], sizes: [short]}}"
    run_grid(with_mine(tiny, tmp_path, LONGER, tried), progress=False)
    assert ran == ["tiny.full.llava.0", "tiny.full.mine.0", "tiny.short.llava.0"]


@pytest.mark.parametrize("compared", [True, False])
def test_llms_that_see_other_samples_are_refused_only_if_they_are_compared(tiny, tmp_path, ran, compared):
    more = (
        "against: [{variant: llavit, llm: tiny, baseline: llava, baseline_llm: other}]\n" if compared else ""
    )
    llms = "llms:\n  other: {{set: ['model.llm={llm}', stages.pretrain.steps=5]}}\n"
    grid = GRID.replace("llms:\n", llms).replace("seeds: [0, 1]", "llms: [tiny, other]")
    there = experiment(save_grid(tiny, tmp_path, more, grid), tmp_path / "out")
    if not compared:
        run_grid(there, progress=False)
        assert len(ran) == 4
        return
    with pytest.raises(ValueError, match=r"other\.full\.llava\.0 and tiny\.full\.llavit\.0 do not see"):
        run_grid(there, progress=False)
    assert ran == []
