"""The paired test: textbook values, and intervals that cover what they should."""

import math
import sys

import numpy as np
import pytest

from llavit.compare import Experiment, load_grid, run_grid
from llavit.compare.paired import difference, over_seeds, task_weights


@pytest.mark.parametrize(
    ("seeds", "quantile"),
    [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (121, 1.980)],  # printed tables, of 0.975
)
def test_the_interval_over_seeds_takes_students_t_of_printed_tables(seeds, quantile):
    scores = np.random.default_rng(seeds).normal(size=seeds)
    found = over_seeds(list(scores))
    error = scores.std(ddof=1) / math.sqrt(seeds)
    assert (found.high - found.mean) / error == pytest.approx(quantile, abs=6e-4)
    assert (found.mean - found.low) / error == pytest.approx(quantile, abs=6e-4)


@pytest.mark.parametrize(("gap", "p"), [(4.303, 0.05), (2.920, 0.10), (9.925, 0.01)])
def test_p_is_that_of_printed_tables(gap, p):
    """Three seeds that differ, questions that do not: two degrees of freedom, a standard error of one."""
    gaps = [gap - math.sqrt(3), gap, gap + math.sqrt(3)]
    found = difference([{"t": [value] * 2} for value in gaps], [{"t": [0.0] * 2}] * 3, {"t": "general"})
    assert found.p == pytest.approx(p, abs=1e-4)


def test_without_scipy_the_extra_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ImportError, match=r"pip install 'llavit\[compare\]'"):
        over_seeds([0.1, 0.2])
    with pytest.raises(ImportError, match=r"pip install 'llavit\[compare\]'"):
        run_grid(Experiment.at(load_grid("tiny"), tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_with_one_seed_and_one_task_it_is_the_paired_t_test_over_questions():
    ours, theirs = [1.0, 1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0, 1.0]
    found = difference([{"t": ours}], [{"t": theirs}], {"t": "general"})
    gaps = np.subtract(ours, theirs)
    error = gaps.std(ddof=1) / math.sqrt(5)
    assert found.mean == pytest.approx(0.4)
    assert (found.low, found.high) == pytest.approx((0.4 - 2.77645 * error, 0.4 + 2.77645 * error), abs=1e-4)
    assert found.p == pytest.approx(0.17781, abs=1e-5)


def test_where_only_seeds_differ_it_is_the_paired_t_test_over_seeds():
    gains = [0.1, 0.2, 0.3]
    ours = [{"t": [0.5 + gain] * 4} for gain in gains]
    found = difference(ours, [{"t": [0.5] * 4}] * 3, {"t": "general"})
    expected = over_seeds(gains)
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert expected.high - expected.mean == pytest.approx(4.3027 * 0.1 / math.sqrt(3), abs=1e-4)


def test_families_weigh_alike_and_tasks_within_them():
    families = {"a": "x", "b": "x", "c": "y"}
    found = difference(
        [{"a": [1.0, 1.0], "b": [0.0, 0.0], "c": [1.0]}],
        [{"a": [0.0, 0.0], "b": [0.0, 0.0], "c": [0.0]}],
        families,
    )
    assert found.mean == pytest.approx(0.25 + 0.5)
    assert sum(task_weights(families).values()) == pytest.approx(1)


def test_no_difference_at_all_has_p_one_and_an_interval_as_wide_as_the_questions_are_few():
    few, many = ([{"t": [1.0, 0.0] * half}] * 2 for half in (2, 50))
    found = [difference(side, side, {"t": "general"}) for side in (few, many)]
    assert [(one.mean, one.p) for one in found] == [(0, 1.0)] * 2
    # Half an interval, by hand: t(3) * sqrt(2 / 6 / 6) and t(99) * sqrt(2 / 102 / 102)
    assert found[0].high == pytest.approx(3.1824 * 0.23570, abs=1e-4)
    assert found[1].high == pytest.approx(1.9842 * 0.013865, abs=1e-4)


def test_a_task_with_a_single_question_is_not_certain():
    """Half of the mean hangs on one question: what the other half's questions say is the smaller part."""
    families = {"many": "x", "one": "y"}
    ours, theirs = {"many": [1.0] * 20 + [0.0] * 80, "one": [1.0]}, {"many": [0.0] * 100, "one": [0.0]}
    found = difference([ours], [theirs], families)
    of_many = difference([ours], [theirs], {"many": "x"})
    assert found.high - found.mean > of_many.high - of_many.mean
    assert found.p > 0.05


def test_seeds_that_scored_the_same_have_no_interval_rather_than_one_without_width():
    assert math.isnan(over_seeds([0.5, 0.5]).low) and math.isnan(over_seeds([0.5, 0.5, 0.5]).high)
    assert over_seeds([0.5, 0.5, 0.6]).low < 0.5


def test_few_questions_that_all_speak_for_one_side_are_not_certain():
    three, many = ([{"t": [1.0] * units}] for units in (3, 50))
    found = [difference(side, [{"t": [0.0] * len(side[0]["t"])}], {"t": "general"}) for side in (three, many)]
    assert found[0].p > 0.05 and found[0].low < 0
    assert found[1].p < 0.001 and found[1].low > 0.8


@pytest.mark.parametrize("tasks", [1, 3, 6, 7, 10])
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize(("ours", "theirs"), [(1.0, 0.0), (0.9, 0.6), (0.7, 0.4)])
def test_rounding_does_not_pass_for_a_spread_where_all_questions_differ_alike(tasks, seeds, ours, theirs):
    families = {str(task): "general" for task in range(tasks)}
    sides = [[dict.fromkeys(families, [points] * 3)] * seeds for points in (ours, theirs)]
    found = difference(*sides, families)
    # By hand: three units and two more, one for either side, in each of the tasks, which weigh alike
    gap = ours - theirs
    error = math.sqrt(np.var([gap] * 3 + [1, -1]) / 5 / tasks)
    assert found.high - found.mean > 1.96 * error
    assert found.p > math.erfc(gap / error / math.sqrt(2))  # of a normal distribution, which is too sure


def test_rounding_does_not_pass_for_a_spread_where_tasks_cancel_out():
    """Each seed gains as much as the other, in other tasks; and each question over both seeds."""
    families = {"a": "x", "b": "x", "c": "x"}
    won, lost = [0.9] * 3, [0.6] * 3
    ours = [
        {"a": won, "b": lost, "c": lost},
        {"a": lost, "b": won, "c": lost},
        {"a": lost, "b": lost, "c": won},
    ]
    found = difference(ours, [dict.fromkeys(families, [0.1] * 3)] * 3, families)
    assert found.high - found.low > 0.1 and found.p > 1e-6


def test_seeds_that_differ_by_rounding_only_have_no_interval():
    assert math.isnan(over_seeds([0.3, 0.1 + 0.2]).low)
    assert over_seeds([0.5, 0.5001]).low < 0.5


@pytest.mark.parametrize("seeds", [2, 3, 8])
@pytest.mark.parametrize("spread", [0.05, 0.2])  # of seeds; the questions' own is 0.04
def test_the_interval_covers_the_true_difference_about_as_often_as_it_says(seeds, spread):
    """2,000 experiments of 60 questions, with chance in seeds, questions and both."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        of_seeds, of_questions = rng.normal(0, spread, (seeds, 1)), rng.normal(0, 0.3, (1, 60))
        gaps = 0.1 + of_seeds + of_questions + rng.normal(0, 0.3, (seeds, 60))
        found = difference([{"t": list(row)} for row in gaps], [{"t": [0.0] * 60}] * seeds, {"t": "general"})
        covered += found.low <= 0.1 <= found.high
    assert (
        0.93 <= covered / 2000 <= 1.0
    )  # what both sources hold counts twice: rather too wide than too narrow


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([{"t": [1.0]}], [], "the same seeds"),
        ([{"t": [1.0]}], [{"t": [1.0, 0.0]}], "the same units on both sides"),
        ([{"t": [1.0]}], [{"u": [1.0]}], "task t: expected it"),
    ],
)
def test_sides_that_do_not_pair_are_refused(ours, theirs, message):
    with pytest.raises(ValueError, match=message):
        difference(ours, theirs, {"t": "general"})
