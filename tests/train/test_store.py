"""The folder of a run where something ends it or something else asks for it."""

import json
import os
import shutil
import signal
import socket
import threading
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest
from filelock import FileLock
from transformers import TrainerCallback

from llavit.train.parts import freeze
from llavit.train.run import train
from llavit.train.stopping import Stopped
from llavit.train.store import LOCK, StageStore, checkpoints
from llavit.train.trainer import LlavitTrainer


class Killed(BaseException):
    """What a process is that nothing keeps from being killed."""


@pytest.fixture
def killable():
    """SIGTERM ends the test and not pytest."""

    def kill(number, frame):
        raise Killed

    before = signal.signal(signal.SIGTERM, kill)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def stopped(monkeypatch):
    """Within it, training stops where a function of the package is called."""

    @contextmanager
    def at(place):
        def stop(*args, **kwargs):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"llavit.train.{place}", stop)
            yield

    return at


def test_a_recipe_that_is_refused_leaves_the_folder_of_the_other_run_as_it_is(tiny, tmp_path, stopped):
    with stopped("run._publish"):
        train(tiny.recipe("stages.0.save_every=4"), output=tmp_path, progress=False)
    recipe = (tmp_path / "recipe.yaml").read_bytes()
    with pytest.raises(
        ValueError, match=r"pretrain.work comes from another training:\s+seed: 0 there, 1 here"
    ):
        train(tiny.recipe("seed=1"), output=tmp_path, progress=False)
    assert (tmp_path / "recipe.yaml").read_bytes() == recipe


def test_a_stage_that_ended_before_its_first_checkpoint_may_be_another_one(tiny, tmp_path, stopped):
    with stopped("trainer.LlavitTrainer.train"):
        train(tiny.recipe(), output=tmp_path, progress=False)
    (tmp_path / "pretrain.work/base").mkdir()
    with stopped("trainer.LlavitTrainer.train"):
        train(tiny.recipe("seed=1"), output=tmp_path, progress=False)
    assert json.loads((tmp_path / "pretrain.work/stage.json").read_text())["seed"] == 1
    assert not (tmp_path / "pretrain.work/base").exists()  # of the model before


ONE_STEP = ("stages.0.steps=1", "stages.1.steps=1")


@pytest.fixture
def movable(tiny, tmp_path):
    """A recipe of one step a stage, and the folder of its LLM, which may be changed."""
    shutil.copytree(tiny.llm, tmp_path / "llm")
    return tiny.recipe(f"model.llm={tmp_path / 'llm'}", *ONE_STEP), tmp_path / "llm"


def train_weights_again(folder):
    """Make other weights of the same shapes lie in a folder."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))


def test_a_run_does_not_pass_for_one_from_what_its_first_model_was_before(movable, tmp_path, monkeypatch):
    recipe, llm = movable
    result = train(recipe, output=tmp_path / "out", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(LlavitTrainer, "train", lambda *args, **kwargs: pytest.fail("trained again"))
        assert train(recipe, output=tmp_path / "out", progress=False) == result
    train_weights_again(llm)
    with pytest.raises(
        ValueError, match=r"pretrain comes from another training:\s+weights.llm: \w{16} there"
    ):
        train(recipe, output=tmp_path / "out", progress=False)


def test_a_run_from_before_weights_counted_and_one_whose_first_model_is_gone_are_still_finished(
    movable, tmp_path, monkeypatch
):
    recipe, llm = movable
    with monkeypatch.context() as patch:
        patch.setattr("llavit.train.store.weights_digest", lambda source: None)
        train(recipe, output=tmp_path / "old", progress=False)
    train(recipe, output=tmp_path / "new", progress=False)
    monkeypatch.setattr(LlavitTrainer, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    train(recipe, output=tmp_path / "old", progress=False)
    shutil.rmtree(llm)
    for name in ("old", "new"):
        assert train(recipe, output=tmp_path / name, progress=False) == tmp_path / name / "instruct"


def test_a_second_run_in_the_folder_of_one_under_way_is_refused_and_touches_nothing(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr("llavit.train.run.PATIENCE", 0.1)

    class Second(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1 and args.output_dir.endswith("pretrain.work"):
                before = sorted(tmp_path.rglob("*"))
                mine = rf"training there \(process {os.getpid()} on machine {socket.gethostname()}, since .*\. Wait"
                with pytest.raises(ValueError, match=mine):
                    train(tiny.recipe(), output=tmp_path, progress=False)
                assert sorted(tmp_path.rglob("*")) == before
                refused.append(True)

    refused = []
    train(tiny.recipe(), output=tmp_path, progress=False, callbacks=[Second()])
    assert refused == [True]
    assert not (tmp_path / ".lock.holder").exists()


def test_a_lock_of_a_machine_that_was_lost_says_whose_it_is_and_what_to_do(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("llavit.train.run.PATIENCE", 0.1)
    by = {"machine": "node7", "process": 4711, "since": "2026-01-02 03:04:05"}
    (tmp_path / ".lock.holder").write_text(json.dumps(by))
    recipe = tiny.recipe("stages.0.steps=1", "stages.1.steps=1")
    with FileLock(tmp_path / LOCK):
        with pytest.raises(ValueError, match=r"process 4711 on machine node7, since .*delete .*\.lock$"):
            train(recipe, output=tmp_path, progress=False)
        (tmp_path / ".lock.holder").unlink()
        with pytest.raises(
            ValueError, match=r"training there \(which one is not on record\)\. .*delete .*\.lock$"
        ):
            train(recipe, output=tmp_path, progress=False)
        (tmp_path / LOCK).unlink()
        assert train(recipe, output=tmp_path, progress=False) == tmp_path / "instruct"


def test_a_run_goes_on_after_one_that_ended_a_moment_later(tiny, tmp_path):
    """As data workers of a killed run do."""
    with FileLock(tmp_path / LOCK, thread_local=False) as lock:
        later = threading.Timer(1.0, lock.release)
        later.start()
        train(tiny.recipe("stages.0.steps=1", "stages.1.steps=1"), output=tmp_path, progress=False)
        later.join()
    assert (tmp_path / "instruct").is_dir()


def test_a_checkpoint_whose_state_is_damaged_says_which_it_is(tiny, tmp_path, stopped):
    recipe = tiny.recipe("stages.0.save_every=1")
    with stopped("run._publish"):
        train(recipe, output=tmp_path, progress=False)
    newest = checkpoints(tmp_path / "pretrain.work")[-1]
    state = newest / "trainer_state.json"
    state.write_text(state.read_text()[:-100])
    with pytest.raises(ValueError, match=f"{newest.name} cannot be read: .*Delete it"):
        train(recipe, output=tmp_path, progress=False)


def test_what_a_run_had_not_finished_to_write_makes_room_for_the_next_one(tiny, tmp_path):
    store = StageStore(tmp_path, tiny.recipe().stages[0], {"seed": 0})
    store.begin()
    for name in ("unfinished/checkpoint-4", "result", "checkpoint-2"):
        (store.work / name).mkdir(parents=True)
        (store.work / name / "model.safetensors").write_text("weights")
    store.begin()
    assert {path.name for path in store.work.iterdir()} == {"stage.json", "checkpoint-2"}
    assert [path.name for path in checkpoints(store.work)] == ["checkpoint-2"]


def test_a_copy_of_a_checkpoint_under_another_name_is_none_and_stays(tiny, tmp_path):
    store = StageStore(tmp_path, tiny.recipe().stages[0], {"seed": 0})
    store.begin()
    copies = {"checkpoint-200.bak", "checkpoint-", "checkpoint-old-3", "checkpoint-1_0"}
    for name in copies:
        (store.work / name).mkdir()
    assert checkpoints(store.work) == []
    (store.work / "half").write_text("of a run that had not come to a checkpoint")
    store.begin()
    assert {path.name for path in store.work.iterdir()} == {"stage.json", *copies}
    for step in (20, 3):
        (store.work / f"checkpoint-{step}").mkdir()
    assert [path.name for path in checkpoints(store.work)] == ["checkpoint-3", "checkpoint-20"]


@pytest.mark.parametrize(
    ("options", "there", "kept", "results"),
    [
        ([], [], 0, 1),
        (["stages.0.save_every=1"], [], 2, 0),  # the new one is whole before the old one goes
        (["stages.0.save_every=1", "stages.0.keep_checkpoints=2"], [], 3, 0),
        (["stages.0.save_every=3", "stages.0.keep_checkpoints=100"], [], 2, 1),  # no more come in four steps
        (["stages.0.save_every=1"], [2], 1, 0),  # the next one beside the one that is there
        (["stages.0.save_every=1", "stages.0.keep_checkpoints=3"], [1, 2], 2, 0),
        (["stages.0.save_every=1"], [1, 2], 1, 0),
        (["stages.0.save_every=1"], [4], 0, 1),  # none comes
    ],
)
def test_a_stage_of_which_something_would_not_fit_on_the_disk_does_not_train(
    tiny, tmp_path, monkeypatch, options, there, kept, results
):
    def begun(*args, **kwargs):
        raise KeyboardInterrupt

    recipe = tiny.recipe(*options)
    model = tiny.build().model
    freeze(model, recipe.stages[0].learning_rates.by_part())
    size = {True: 0, False: 0}
    for parameter in model.parameters():
        size[parameter.requires_grad] += parameter.numel() * 4
    needed = (kept + results) * (size[True] + size[False]) + kept * 2 * size[True]
    monkeypatch.setattr(
        "llavit.train.run.checkpoints", lambda folder: [folder / f"checkpoint-{step}" for step in there]
    )
    monkeypatch.setattr("llavit.train.run.reading", lambda folder: suppress(OSError))
    monkeypatch.setattr(LlavitTrainer, "train", begun)
    refusal = "pretrain.work: what will be saved takes"
    for free, error, message in ((needed - 1, ValueError, refusal), (needed, KeyboardInterrupt, None)):
        disk = SimpleNamespace(total=10**12, free=free)
        monkeypatch.setattr("shutil.disk_usage", lambda folder, disk=disk: disk)
        with pytest.raises(error, match=message):
            train(recipe, output=tmp_path, progress=False)


def test_a_stage_that_is_told_to_stop_while_its_result_is_saved_is_not_lost(
    tiny, tmp_path, monkeypatch, killable
):
    save = LlavitTrainer.save_model

    def told(self, folder, _internal_call=False):
        os.kill(os.getpid(), signal.SIGTERM)
        save(self, folder, _internal_call)

    with monkeypatch.context() as patch:
        patch.setattr(LlavitTrainer, "save_model", told)
        with pytest.raises(
            Stopped, match=r"told to stop while stage pretrain was saved: it is finished, in "
        ):
            train(tiny.recipe("stages.0.steps=1"), output=tmp_path, progress=False)
    assert (tmp_path / "pretrain/model.safetensors").is_file()
    assert not (tmp_path / "pretrain.work").exists() and not (tmp_path / "instruct.work").exists()


def test_checkpoints_and_results_are_on_disk_before_they_have_their_names(tiny, tmp_path, monkeypatch):
    """And so before anything that they stand for is deleted: a machine may lose power at any time."""
    flushed, named, sync, rename = set(), [], os.fsync, os.replace

    def fsync(descriptor):
        flushed.add(os.stat(descriptor).st_ino)
        sync(descriptor)

    def replace(source, target):
        if os.path.isdir(source):
            inside = [
                source,
                *(os.path.join(where, name) for where, _, names in os.walk(source) for name in names),
            ]
            named.append((os.path.basename(target), [i for i in inside if os.stat(i).st_ino not in flushed]))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    steps = ("stages.0.steps=1", "stages.0.save_every=1", "stages.1.steps=1")
    train(tiny.recipe(*steps), output=tmp_path, progress=False)
    assert named == [("checkpoint-1", []), ("pretrain", []), ("instruct", [])]
