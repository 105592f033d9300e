"""Running a grid of tiny models, end to end: once, again, after a kill, in two processes."""

import json
import logging
import signal

import pytest

from llavit.compare import run as run_module
from llavit.compare.cells import Cell
from llavit.compare.grid import load_grid
from llavit.compare.results import FORMAT
from llavit.compare.run import Experiment, run_grid
from llavit.compare.summary import summarise
from llavit.train.progress import read_step_log
from llavit.train.run import train
from llavit.train.stopping import EXIT_STATUS
from llavit.train.trainer import LlavitTrainer
from tests.tiny import HEAD_DIM

from .parts import GRID, experiment, run_in, save_grid

NAMES = [f"tiny.full.{variant}.{seed}" for seed in (0, 1) for variant in ("llava", "llavit")]
LIKE = ("losses", "curve", "val", "test", "identity", "data", "parameters")


@pytest.fixture(scope="module")
def grid_file(tiny, tmp_path_factory):
    return save_grid(tiny, tmp_path_factory.mktemp("grid"))


@pytest.fixture(autouse=True)
def without_reports(monkeypatch):
    """A run draws its pictures before and after each cell: `done` and other processes do, and test_report.py looks."""
    monkeypatch.setattr("llavit.compare.report.write_reports", lambda there: None)


@pytest.fixture(scope="module")
def done(grid_file, tmp_path_factory):
    """The grid, run once; with the samples of each training step, by cell and stage."""
    there = experiment(grid_file, tmp_path_factory.mktemp("done") / "out")
    seen: dict[str, list] = {}
    step = LlavitTrainer.training_step

    def watched(self, model, inputs, *args):
        cell = self.args.output_dir.split("/")[-3]
        seen.setdefault(cell, []).append((self.stage.name, self.state.global_step, inputs["sample_ids"]))
        return step(self, model, inputs, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlavitTrainer, "training_step", watched)
        ran = run_grid(there, progress=False)
    assert [cell.name for cell in ran] == NAMES
    return there, seen


def records(there):
    return {cell.name: there.results.read(cell) for cell in there.cells()}


def alike(record):
    kept = {key: record[key] for key in LIKE}
    for part in (kept["val"], kept["test"]):
        part.pop("seconds")
    return kept


def test_every_variant_of_a_seed_sees_the_same_samples_in_each_step(done):
    there, seen = done
    assert seen["tiny.full.llava.0"] == seen["tiny.full.llavit.0"]
    assert seen["tiny.full.llava.1"] == seen["tiny.full.llavit.1"]
    assert seen["tiny.full.llava.0"] != seen["tiny.full.llava.1"]
    assert len(seen["tiny.full.llava.0"]) == 3 + 2  # steps of both stages
    data = {name: record["data"] for name, record in records(there).items()}
    assert data[NAMES[0]] == data[NAMES[1]] != data[NAMES[2]]


def test_a_cells_file_holds_all_that_it_takes_to_repeat_it(done):
    there, _ = done
    record = records(there)["tiny.full.llavit.1"]
    assert record["format"] == FORMAT and record["grid"] == "small"
    assert record["cell"] == {"variant": "llavit", "llm": "tiny", "size": "full", "seed": 1}
    assert record["recipe"]["model"]["vision_feature_layer"] == [1, 2] and record["recipe"]["seed"] == 1
    assert {"git revision", "torch", "transformers"} <= record["environment"].keys() and record["code"]
    assert record["identity"]["stages"]["pretrain"]["model"]["llm"].startswith("weights ")
    assert record["identity"]["test"].keys() == {
        "colour@test",
        "place@test",
        "word@test",
    }
    assert [len(record["losses"][stage]) for stage in ("pretrain", "instruct")] == [3, 2]
    assert record["parameters"]["pretrain"]["trained"].keys() == {"projector", "visual_qkv"}
    assert record["parameters"]["instruct"]["trained"].keys() == {"projector", "visual_qkv", "llm"}
    assert record["seconds"]["wall"] > record["seconds"]["training"] > 0 and record["peak_memory_gib"] > 0
    points = [(point["stage"], point["step"], point["samples"]) for point in record["curve"]]
    assert points == [("pretrain", 2, 8), ("pretrain", 3, 12), ("instruct", 1, 16), ("instruct", 2, 20)]
    assert record["curve"][-1]["score"] == record["val"]["score"]
    test = record["test"]
    assert set(test["families"]) == {"general", "vision_centric", "ocr_chart"}
    assert 0 < test["score"] < 1 and test["baselines"] == {"majority": 0.5}
    assert len(test["tasks"]["word@test"]["points"]) == 4 and len(test["answers"]) == 64


def test_weights_are_gone_after_scoring_and_the_tower_looked_at_each_picture_once(done):
    there, _ = done
    assert not list(there.output.glob("cells/**/*.safetensors"))
    assert looked_once(there)


def looked_once(there):
    """Whether each picture was looked at once for each choice of tower layers."""
    caches = [path for path in (there.output / "features").iterdir() if path.is_dir()]
    assert len(caches) == 2
    for cache in caches:
        lines = [line for index in cache.glob("*.idx") for line in index.read_text().splitlines()[1:]]
        if not len(lines) == len({line.split()[0] for line in lines}) == 8:  # pictures of the data
            return False
    return True


def test_a_cell_that_is_done_is_never_run_again(done, grid_file, monkeypatch):
    there, _ = done
    monkeypatch.setattr(run_module, "run_cell", lambda *args, **kwargs: pytest.fail("run again"))
    before = {path: path.stat().st_mtime_ns for path in there.results.folder.glob("cells/*.json")}
    assert run_grid(experiment(grid_file, there.output), progress=False) == []
    assert before == {path: path.stat().st_mtime_ns for path in there.results.folder.glob("cells/*.json")}


def test_looking_on_the_way_does_not_change_training(done, tmp_path):
    there, _ = done
    cell = Cell("llavit", "tiny", "full", 0)
    folder = train(there.recipe(cell), output=tmp_path, progress=False)
    losses = [row["loss"] for row in read_step_log(folder / "train_log.jsonl")]
    assert [round(loss, 5) for loss in losses] == records(there)[cell.name]["losses"]["instruct"]


@pytest.mark.parametrize(
    "send",
    [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],  # what follows is tested by train
)
def test_a_cell_that_is_cut_off_resumes_and_gives_the_same_result(done, grid_file, tmp_path, send):
    there, _ = done
    # Steps 0 to 4 are the first cell's; the second is cut off in its first stage.
    status = run_in(grid_file, tmp_path / "out", kill=7, send=send)
    assert status == [-signal.SIGKILL if send == signal.SIGKILL else EXIT_STATUS]
    again = experiment(grid_file, tmp_path / "out")
    assert [c.name for c in again.cells() if again.results.read(c)] == NAMES[:1]
    work = again.folder(again.cells()[1]) / "run/pretrain.work"
    assert list(work.glob("checkpoint-*"))

    first = again.results.path(again.cells()[0]).stat().st_mtime_ns
    steps = []
    collect = LlavitTrainer.get_batch_samples
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            LlavitTrainer, "get_batch_samples", lambda self, *args: steps.append(1) or collect(self, *args)
        )
        ran = run_grid(again, only=["*.0"], progress=False)
    assert [cell.name for cell in ran] == NAMES[1:2]
    assert len(steps) < 5  # it did not begin anew
    assert again.results.path(again.cells()[0]).stat().st_mtime_ns == first
    for name in NAMES[:2]:
        assert alike(records(again)[name]) == alike(records(there)[name])


def test_two_processes_share_the_cells(done, grid_file, tmp_path):
    there, _ = done
    assert run_in(grid_file, tmp_path / "out", processes=2) == [0, 0]
    shares = [(tmp_path / f"out.ran-{rank}").read_text().split() for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == sorted(NAMES)  # each once
    assert all(shares)
    again = experiment(grid_file, tmp_path / "out")
    for name in NAMES:
        assert alike(records(again)[name]) == alike(records(there)[name])
    assert looked_once(again)


def test_a_budget_stops_between_cells_and_the_next_run_goes_on(grid_file, tmp_path, caplog, monkeypatch):
    there = experiment(grid_file, tmp_path)
    assert run_grid(there, budget=0, progress=False) == []
    made = dict.fromkeys(NAMES, 0)

    def quick(cell, *args, **kwargs):
        made[cell.name] += 1
        return {**records_of_nothing(cell), "identity": args[2]}

    monkeypatch.setattr(run_module, "run_cell", quick)
    with caplog.at_level(logging.INFO, "llavit"):
        ran = run_grid(there, budget=2.5, progress=False)
    assert [cell.name for cell in ran] == NAMES[:1]  # a second one would take 3 minutes, by the first
    assert "the budget of 2.5 minutes is used up, 3 cells wait" in caplog.text
    assert len(run_grid(there, progress=False)) == 3
    assert made == dict.fromkeys(NAMES, 1)


def records_of_nothing(cell):
    """A cell that broke down after three minutes."""
    return {
        "cell": {"variant": cell.variant, "llm": cell.llm, "size": cell.size, "seed": cell.seed},
        "code": run_module.code_fingerprint(),
        "environment": {},
        "computed_in": "float32",
        "failed": "the loss is nan",
        "test": None,
        "val": None,
        "curve": [],
        "seconds": {"training": 100.0, "wall": 180.0},
    }


def test_a_training_that_breaks_down_is_a_result(grid_file, tmp_path, monkeypatch):
    there = experiment(grid_file, tmp_path)

    def broken(self, *args, **kwargs):
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(LlavitTrainer, "_check_losses", broken)
    run_grid(there, only=["tiny.full.llava.0"], progress=False)
    record = there.results.read(there.cells()[0])
    assert record["failed"] == "the loss is nan" and record["test"] is None
    assert summarise(there).failed == [("tiny.full.llava.0", "the loss is nan")]
    assert there.find(there.cells()[0]).state == "done"


def edited(there, cell, **changes):
    record = there.results.read(cell)
    there.results.path(cell).write_text(json.dumps({**record, **changes}))


@pytest.fixture
def copied(done, tmp_path):
    """A results folder of its own, on the same experiment."""
    there, _ = done
    copy = Experiment(load_grid_of(there), there.output, type(there.results)(tmp_path))
    for cell in there.cells():
        copy.results.write(cell, there.results.read(cell))
    return copy


def load_grid_of(there):
    return there.grid


def test_results_of_other_settings_are_not_mixed_in(tiny, copied, tmp_path):
    grid = save_grid(tiny, tmp_path / "other", grid=GRID.replace("steps=3]", "steps=2]"))
    other = Experiment(load_grid(grid), copied.output, copied.results)
    with pytest.raises(
        ValueError, match=r"(?s)made with other settings.*pretrain.stage.steps: 3 there, 2 here.*delete"
    ):
        run_grid(other, progress=False)
    summary = summarise(other)
    assert not summary.lines and len(summary.not_run) == 4
    assert "other settings: " in summary.not_run[0][1]


def test_results_of_other_code_are_mixed_in_only_if_told_to_and_then_named(copied):
    cell = copied.cells()[0]
    edited(copied, cell, code="0123456789abcdef", environment={"git revision": "abc"})
    with pytest.raises(
        ValueError, match=r"by other code: code 0123456789abcdef \(revision abc\).*--accept-code"
    ):
        run_grid(copied, progress=False)
    assert [name for name, _ in summarise(copied).not_run] == [cell.name]
    copied.accept_code = True
    assert run_grid(copied, progress=False) == []
    (mixed,) = [note for note in summarise(copied).notes if note.startswith("MIXED code")]
    assert "0123456789abcdef (revision abc): 1 cells" in mixed


def test_cells_that_saw_other_samples_are_not_compared(copied):
    cell = copied.cells()[1]
    data = copied.results.read(cell)["data"]
    edited(copied, cell, data={**data, "pretrain": {**data["pretrain"], "order": "another"}})
    with pytest.raises(ValueError, match="do not see the same samples in the same order"):
        summarise(copied)


def test_a_best_variant_is_chosen_on_val_and_its_candidates_are_run_first(tiny, tmp_path):
    grid = GRID.replace("[llava, llavit], seeds: [0, 1]", "[llava-best-layer], seeds: [4]")
    there = experiment(save_grid(tiny, tmp_path, "choice: {seed: 3, size: short}\n", grid), tmp_path / "out")
    best = there.cells()[-1]
    assert there.winner(best) is None
    ran = run_grid(there, only=["llava-best-layer"], progress=False)
    assert [cell.name for cell in ran] == [
        "tiny.short.llava.3",
        "tiny.short.llava-layer-1.3",
        "tiny.short.llava-layer-2.3",
        "tiny.full.llava-best-layer.4",
    ]
    made = records(there)
    assert all(made[cell.name]["test"] is None for cell in ran[:3])  # the test has no part in a choice
    scores = {made[cell.name]["cell"]["variant"]: made[cell.name]["val"]["score"] for cell in ran[:3]}
    chosen = made[best.name]["chosen"]
    assert scores[chosen] == max(scores.values())
    layers = {"llava": -2, "llava-layer-1": 1, "llava-layer-2": 2}
    assert made[best.name]["recipe"]["model"]["vision_feature_layer"] == layers[chosen]
    assert summarise(there).lines[0].variant == "llava-best-layer"


def test_weights_stay_if_asked_for(tiny, tmp_path):
    there = experiment(save_grid(tiny, tmp_path), tmp_path / "out")
    run_grid(there, only=["tiny.full.llavit.0"], keep_weights=True, progress=False)
    folder = there.folder(there.cells()[1])
    assert {path.parent.name for path in folder.glob("**/model.safetensors")} == {
        "pretrain",
        "instruct",
        "pretrain.2",
        "instruct.1",
    }


def test_extra_adapters_are_merged_and_scored_at_the_end_of_their_stage(tiny, tmp_path):
    grid = GRID.replace("[llava, llavit], seeds: [0, 1]", "[llava-extra-lora, llava-text-qkv]")
    there = experiment(save_grid(tiny, tmp_path, grid=grid), tmp_path / "out")
    run_grid(there, progress=False)
    lora, text = records(there).values()
    assert [(p["stage"], p["step"]) for p in lora["curve"]] == [
        ("pretrain", 3),
        ("instruct", 1),
        ("instruct", 2),
    ]
    assert lora["parameters"]["pretrain"]["trained"].keys() == {"projector", "llm"}
    assert lora["parameters"]["instruct"]["trained"]["llm"] > lora["parameters"]["pretrain"]["trained"]["llm"]
    assert text["parameters"]["pretrain"]["trained"]["llm"] == 2 * 32 * (4 + 2 + 2) * HEAD_DIM


def test_a_cell_whose_packages_are_missing_is_left_out_and_the_others_run(
    grid_file, tmp_path, monkeypatch, caplog
):
    there = experiment(grid_file, tmp_path)

    def quick(cell, *args, **kwargs):
        if cell.variant == "llava":
            raise ImportError("it needs a package")
        return {**records_of_nothing(cell), "identity": args[2]}

    monkeypatch.setattr(run_module, "run_cell", quick)
    with caplog.at_level(logging.WARNING, "llavit"):
        ran = run_grid(there, progress=False)
    assert [cell.name for cell in ran] == [name for name in NAMES if "llavit" in name]
    assert "cell tiny.full.llava.0 cannot run here: it needs a package" in caplog.text
    assert [name for name, _ in summarise(there).not_run] == [name for name in NAMES if "llavit" not in name]


def test_a_cell_that_other_code_has_begun_goes_on_only_if_told_to_and_names_both(grid_file, tmp_path):
    there = experiment(grid_file, tmp_path)
    cell = there.cells()[0]
    (there.folder(cell) / "run").mkdir(parents=True)
    begun = {"seconds": 1.0, "peak": 0, "codes": ["0123456789abcdef"]}
    (there.folder(cell) / "clock.json").write_text(json.dumps(begun))
    with pytest.raises(ValueError, match=r"begun by other code: 0123456789abcdef there.*--accept-code"):
        run_grid(there, only=[cell.name], progress=False)
    there.accept_code = True
    run_grid(there, only=[cell.name], progress=False)
    assert there.results.read(cell)["code"] == f"0123456789abcdef+{run_module.code_fingerprint()}"
    there.accept_code = False
    assert there.find(cell).state == "other code"


def test_a_cell_is_run_anew_with_other_settings_once_its_result_is_deleted(tiny, tmp_path):
    only = ["tiny.full.llava.0"]
    there = experiment(save_grid(tiny, tmp_path), tmp_path / "out")
    run_grid(there, only=only, progress=False)
    cell = there.cells()[0]
    there.results.path(cell).unlink()
    assert list(there.folder(cell).glob("val/*.json"))  # answers of weights that are gone
    again = experiment(save_grid(tiny, tmp_path, grid=GRID.replace("steps=3]", "steps=2]")), there.output)
    run_grid(again, only=only, progress=False)
    assert [point["step"] for point in again.results.read(cell)["curve"]] == [1, 2, 1, 2]


def test_a_cell_that_was_begun_with_other_settings_is_refused_as_a_whole(tiny, tmp_path):
    there = experiment(save_grid(tiny, tmp_path), tmp_path / "out")
    cell = there.cells()[0]
    run_grid(there, only=[cell.name], keep_weights=True, progress=False)
    there.results.path(cell).unlink()
    changed = GRID.replace("steps=3]", "steps=2]").replace("points: 2", "points: 1")
    again = experiment(save_grid(tiny, tmp_path, grid=changed), there.output)
    message = (
        r"(?s)begun with other settings:\n  points: 2 there, 1 here\n.*  stages.pretrain.stage.steps: 3 there, 2 here"
        rf".*Delete {there.folder(cell)} to"
    )
    with pytest.raises(ValueError, match=message):
        run_grid(again, only=[cell.name], progress=False)


CHOICE = GRID.replace("[llava, llavit], seeds: [0, 1]", "[llava-best-layer, llavit]")


@pytest.mark.parametrize("what", ["missing", "failed"])
def test_where_nothing_can_be_chosen_the_other_cells_run_and_nobody_waits(
    tiny, tmp_path, monkeypatch, caplog, what
):
    there = experiment(save_grid(tiny, tmp_path, grid=CHOICE), tmp_path / "out")

    def quick(cell, *args, **kwargs):
        if what == "missing" and cell.variant == "llava-layer-2":
            raise ImportError("it needs a package")
        return {**records_of_nothing(cell), "identity": args[2]}

    def never(seconds):
        raise AssertionError("it waits for what will not come")

    monkeypatch.setattr(run_module, "run_cell", quick)
    monkeypatch.setattr(run_module, "_take_own_device", lambda: True)
    monkeypatch.setattr(run_module.time, "sleep", never)
    with caplog.at_level(logging.WARNING, "llavit"):
        ran = run_grid(there, progress=False)
    assert "llavit" in {cell.variant for cell in ran}
    why = {
        "missing": "it chooses from others, of which",
        "failed": "every candidate failed: tiny.full.llava.0",
    }[what]
    assert f"cell tiny.full.llava-best-layer.0 cannot run here: {why}" in caplog.text
    waits = {
        "missing": "not run: waits for a choice",
        "failed": "not run: every candidate failed: tiny.full.",
    }[what]
    assert dict(summarise(there).not_run)["tiny.full.llava-best-layer.0"].startswith(waits)
    assert run_module.Experiment.obstacle(there, there.cells()[-1]) == ""
