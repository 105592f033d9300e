"""A whole run: its numbers, what it states, going on with it, and refusing to go on with another one."""

import errno
import json
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llavit.evaluate import evaluate, load_bench, load_task, read_result
from llavit.evaluate.asking import Answer
from llavit.evaluate.baselines import majority_texts, shuffled_pictures
from llavit.evaluate.bench import BenchTask
from llavit.evaluate.items import Item
from llavit.evaluate.judge import judge
from llavit.evaluate.result import task_result, totals, without_predictions
from llavit.evaluate.run import BASELINES, run_tasks
from tests.evaluate.small_bench import save_bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return save_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def model(tiny):
    torch.manual_seed(3)
    model, processor = tiny.build(dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    return model, processor


@pytest.fixture(scope="module")
def result(model, bench, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "run.json"
    evaluate(*model, load_bench(bench), output=output, name="tiny")
    return read_result(output)


def test_a_result_states_all_that_it_depends_on(result, bench):
    assert result["complete"] and result["name"] == "tiny"
    assert result["settings"]["mode"] == "generate" and result["settings"]["baselines"] == list(BASELINES)
    assert len(result["settings"]["model"]) == 64 and result["settings"]["dtype"] == "float32"
    assert result["settings"]["decoding"]["strategy"] == "greedy" and result["batch_size"] == 32
    assert {"llavit", "torch", "transformers", "git revision"} <= result["environment"].keys()
    assert result["seconds"] == pytest.approx(
        sum(task["seconds"] for task in result["tasks"].values()), abs=0.05
    )
    task = result["tasks"]["turned@small-1"]
    assert task["fingerprint"] == load_task(bench / "turned").fingerprint
    assert task["max_new_tokens"] == 4 and task["items_per_second"] > 0
    assert task["prompt"].endswith("D. orange</s><s>assistant: ") and task["prompt"].count("<image>") == 1
    for row in task["predictions"]:
        assert {"id", "answer", "text", "read", "score", "blind", "shuffled"} <= row.keys()


def test_every_item_is_in_the_score_and_what_could_not_be_read_is_counted(result):
    for task in result["tasks"].values():
        lost = [row for row in task["predictions"] if "status" in row]
        assert len(task["predictions"]) == task["items"]
        assert task["failed"] + task["unparsed"] == len(lost)
        assert all(row["score"] == 0 for row in lost)
        assert task["low"] <= task["score"] <= task["high"]
        assert len(task["points"]["model"]) == task["units"]
    assert result["tasks"]["turned@small-1"]["unparsed"] > 0  # random weights write no letters


def test_means_are_over_tasks_then_families_and_leave_anchors_out(result):
    tasks = {task.split("@")[0]: entry for task, entry in result["tasks"].items()}
    for who in ("model", *BASELINES):
        score = {name: (e if who == "model" else e["baselines"][who])["score"] for name, e in tasks.items()}
        general = (score["short"] + score["turned"]) / 2
        overall = (general + score["numbers"] + score["forms"] + score["pairs"]) / 4
        family, mean = result["families"]["general"], result["mean"]
        assert (family if who == "model" else family["baselines"][who])["score"] == pytest.approx(
            general, abs=1e-5
        )
        assert (mean if who == "model" else mean["baselines"][who])["score"] == pytest.approx(
            overall, abs=1e-5
        )
    assert "anchor" not in result["families"] and result["mean"]["tasks"] == 5


def test_the_second_cut_sets_unseen_concepts_and_styles_against_seen_ones(result):
    cut = result["tasks"]["turned@small-1"]["unseen"]["concept"]
    assert (cut["seen"]["units"], cut["unseen"]["units"]) == (2, 1)
    assert result["tasks"]["short@small-1"]["unseen"]["style"]["unseen"]["units"] == 2
    assert result["unseen"]["concept"]["tasks"] == 1


def test_a_run_that_was_cut_off_goes_on_and_ends_the_same(model, bench, tmp_path, result):
    output = tmp_path / "run.json"

    class Cut(Exception):
        pass

    def cut(key, task):
        if key.startswith("turned"):
            raise Cut

    with pytest.raises(Cut):
        evaluate(*model, load_bench(bench), output=output, name="tiny", finished=cut)
    half = json.loads(output.read_text())
    assert list(half["tasks"]) == ["short@small-1", "turned@small-1"] and not half["complete"]
    again = []
    evaluate(
        *model, load_bench(bench), output=output, name="tiny", finished=lambda key, task: again.append(key)
    )
    assert [key.split("@")[0] for key in again] == ["numbers", "forms", "pairs", "captions"]
    whole = read_result(output)
    assert whole["complete"] and whole["mean"] == result["mean"] and whole["families"] == result["families"]
    for key, task in result["tasks"].items():
        assert whole["tasks"][key]["predictions"] == task["predictions"]
    written = output.stat().st_mtime_ns
    asked = []
    evaluate(*model, load_bench(bench), output=output, progress=lambda *seen: asked.append(seen))
    assert not asked and output.stat().st_mtime_ns >= written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "likelihood"}, r"mode \('generate' there, 'likelihood' now\)"),
        ({"limit": 2}, r"limit \(None there, 2 now\)"),
        ({"baselines": ["blind"]}, "baselines"),
    ],
)
def test_other_settings_do_not_go_on_with_a_run(model, bench, tmp_path, result, change, message):
    output = tmp_path / "run.json"
    output.write_text(json.dumps(result))
    with pytest.raises(ValueError, match=message):
        evaluate(*model, load_bench(bench), output=output, **change)


def test_another_model_or_other_items_do_not_go_on_with_a_run(model, tiny, bench, tmp_path, result):
    output = tmp_path / "run.json"
    output.write_text(json.dumps(result))
    with pytest.raises(ValueError, match="model"):
        evaluate(*tiny.build(dtype=torch.float32), load_bench(bench), output=output)
    changed = {**result, "tasks": {k: {**t, "fingerprint": "other"} for k, t in result["tasks"].items()}}
    output.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="items of short@small-1"):
        evaluate(*model, load_bench(bench), output=output)
    output.write_text("[]")
    with pytest.raises(ValueError, match="no result file of this version"):
        evaluate(*model, load_bench(bench), output=output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "anls"}, r"metric of short@small-1 \('exact' there, 'anls' now\)"),
        ({"max_new_tokens": 9}, r"max_new_tokens of short@small-1 \(4 there, 9 now\)"),
        ({"group": "pair"}, "group of short@small-1"),
        ({"family": "anchor"}, "family of short@small-1"),
    ],
)
def test_a_task_that_is_scored_in_another_way_now_does_not_go_on_with_a_run(
    model, bench, tmp_path, result, change, message
):
    """The fingerprint is over items and pictures only; task.json may have changed beside them."""
    output = tmp_path / "run.json"
    output.write_text(json.dumps(result))
    with pytest.raises(ValueError, match=message):
        evaluate(*model, [replace(load_task(bench / "short"), **change)], output=output)


def test_a_task_made_in_memory_does_not_go_on_with_other_items(model, bench, tmp_path):
    (short,) = load_bench(bench, "short")
    task = BenchTask("mine@1", "mine", "general", "exact", items=short.items[:3])
    output = tmp_path / "run.json"
    for _ in range(2):
        evaluate(*model, [task], output=output, baselines=())
    for items in (short.items[1:4], (replace(short.items[0], question="What?"), *short.items[1:3])):
        with pytest.raises(ValueError, match="items of mine@1"):
            evaluate(*model, [replace(task, items=items)], output=output, baselines=())


def test_a_summary_is_no_run_to_go_on_with(model, bench, tmp_path, result):
    output = tmp_path / "summary.json"
    output.write_text(json.dumps(without_predictions(result)))
    with pytest.raises(ValueError, match="is a summary without single predictions"):
        evaluate(*model, load_bench(bench), output=output)


def test_two_processes_with_one_file_keep_the_tasks_of_both(model, bench, tmp_path):
    output = tmp_path / "run.json"
    run = {"output": output, "baselines": ()}
    begun = []

    def beside(*seen):
        if not begun:  # as another process would, between this one's start and its first finished task
            begun.append(seen)
            evaluate(*model, load_bench(bench, "short"), **run)

    evaluate(*model, load_bench(bench, "forms"), **run, progress=beside)
    both = read_result(output)
    assert set(both["tasks"]) == {"short@small-1", "forms@small-1"} and both["complete"]
    assert both["mean"]["families"] == ["general", "ocr_chart"]
    evaluate(
        *model, load_bench(bench, "short,forms"), **run, progress=lambda *seen: pytest.fail("asked again")
    )


class Yes:
    """Asks nobody: the answer is yes."""

    def __init__(self, asked=None):
        self.asked = asked

    def generate(self, items, pictures, max_new_tokens, progress):
        if self.asked:
            self.asked.set()
        return [Answer("yes")] * len(items)

    def forget_pictures(self):
        pass

    def rendered(self, item):
        return ""


def run_by(asker, name, output):
    """Run a task of one item without a model."""
    task = BenchTask(f"{name}@1", name, "general", "yes_no", items=(Item("1", None, "Is it?", "yes", name),))
    settings = {"mode": "generate", "baselines": [], "limit": None}
    about = {"batch_size": 1, "output": output, "name": "m", "progress": None, "finished": None}
    return run_tasks(asker, [task], settings, {}, **about)


def test_a_task_that_is_finished_between_reading_the_file_and_writing_it_is_kept(tmp_path, monkeypatch):
    output = tmp_path / "run.json"
    asked = threading.Event()
    beside = threading.Thread(target=run_by, args=(Yes(asked), "second", output))

    def slow(tasks):
        if beside.ident is None:
            beside.start()
            assert asked.wait(60)
            beside.join(0.5)  # time to write, for who does not wait
        return totals(tasks)

    monkeypatch.setattr("llavit.evaluate.run.totals", slow)
    run_by(Yes(), "first", output)
    beside.join(60)
    assert set(read_result(output)["tasks"]) == {"first@1", "second@1"}


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("flock")])
def test_a_file_system_without_locks_is_warned_of_and_written_to(tmp_path, monkeypatch, caplog, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    for name in ("first", "second"):
        run_by(Yes(), name, tmp_path / "run.json")
    assert set(read_result(tmp_path / "run.json")["tasks"]) == {"first@1", "second@1"}
    assert f"written without a lock, which other runs on it could need: {error}" in caplog.text


def test_likelihoods_choose_among_closed_answers_and_say_where_there_are_none(model, bench):
    found = evaluate(*model, load_bench(bench, "turned,pairs,short,forms"), mode="likelihood")["tasks"]
    assert found["forms@small-1"]["mode"].startswith("generate (no closed set")
    for name, options in (
        ("turned", set("ABCD")),
        ("pairs", {"yes", "no"}),
        ("short", {"red", "blue", "green", "orange"}),
    ):
        task = found[f"{name}@small-1"]
        assert task["mode"] == "likelihood" and task["failed"] == task["unparsed"] == 0
        assert {row["text"] for row in task["predictions"]} <= options
        assert all(len(row["likelihoods"]) == len(options) for row in task["predictions"])


def test_a_limit_and_fewer_baselines_are_kept_to(model, bench):
    found = evaluate(*model, load_bench(bench, "turned,short"), limit=3, baselines=["blind"])["tasks"]
    assert found["turned@small-1"]["items"] == 4 and found["short@small-1"]["items"] == 3
    assert list(found["short@small-1"]["baselines"]) == ["blind"]
    with pytest.raises(ValueError, match=r"unknown baselines \['deaf'\]"):
        evaluate(*model, load_bench(bench, "short"), baselines=["deaf"])
    with pytest.raises(ValueError, match="expected a mode"):
        evaluate(*model, load_bench(bench, "short"), mode="guess")


def test_one_picture_that_cannot_be_read_is_counted_and_all_of_them_are_an_error(model, tmp_path):
    folder = save_bench(tmp_path)
    (folder / "forms/images/00001.png").write_bytes(b"no picture")
    broken = load_task(folder / "forms", check=False)
    found = evaluate(*model, [broken], baselines=[])["tasks"]["forms@small-1"]
    assert found["failed"] == 1 and "cannot read image" in found["predictions"][1]["error"]
    for picture in (folder / "forms/images").iterdir():
        picture.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="all 4 items failed, the first with ValueError"):
        evaluate(*model, [broken], baselines=[])


def test_a_baseline_of_which_every_item_failed_is_an_error_and_no_score_of_nothing(bench):
    """A device that is lost after the model's own answers."""
    task = load_task(bench / "forms")
    lost = [Answer(None, "RuntimeError: device lost")] * 4
    with pytest.raises(ValueError, match="all 4 items of the baseline blind failed, the first with RuntimeE"):
        task_result(task, {"model": [Answer("total")] * 4, "blind": lost})


def test_shuffled_pictures_are_those_of_others_dealt_the_same_each_time(bench):
    for name in ("turned", "pairs", "short"):
        task = load_task(bench / name)
        shown = shuffled_pictures(task)
        assert shown == shuffled_pictures(task)
        groups = {item.image: item.group or item.id for item in task.items}
        for item, picture in zip(task.items, shown, strict=True):
            assert groups[picture] != (item.group or item.id)
        of_image = {}
        for item, picture in zip(task.items, shown, strict=True):
            of_image.setdefault(item.image, set()).add(picture)
        assert all(len(pictures) == 1 for pictures in of_image.values())
        assert set(shown) == set(groups)  # each picture is shown somewhere
    assert shuffled_pictures(load_task(bench / "numbers"))[-1] == "none"
    with pytest.raises(ValueError, match="finds no deal"):
        shuffled_pictures(load_task(bench / "turned").first(1))


def test_the_majority_is_the_most_frequent_answer(bench):
    task = load_task(bench / "short")
    assert majority_texts(task) == ["red"] * 8
    pairs = load_task(bench / "pairs")
    assert set(majority_texts(pairs)) == {"yes"}


@pytest.mark.parametrize(
    ("metric", "answers", "accepted", "most", "better"),
    [("relaxed", "7 7 100 101 102", (), "7", "101"), ("exact", "x x a b c", ("red",), "x", "red")],
)
def test_a_tolerance_or_accepted_answers_can_make_another_constant_right_more_often(
    metric, answers, accepted, most, better
):
    """What the majority baseline does not promise."""
    items = tuple(
        Item(str(number), None, "?", answer, "t", accepted=() if answer == most else accepted)
        for number, answer in enumerate(answers.split())
    )
    task = BenchTask("t@1", "t", "general", metric, items=items)
    right = [sum(mark.score for mark in judge(task, texts)) for texts in (majority_texts(task), [better] * 5)]
    assert majority_texts(task) == [most] * 5 and right == [2, 3]


def test_the_revision_is_that_of_our_own_checkout(tmp_path, monkeypatch):
    from llavit.evaluate.environment import _revision, environment

    outside = tmp_path / "module.py"
    outside.touch()
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    assert _revision(outside) == "not a git checkout"  # installed into somebody's project
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["git revision"] == "not known: git is not installed"


def test_a_result_names_the_processor_and_the_gpus():
    from llavit.evaluate.environment import environment

    made = environment()
    assert ("gpu" in made) == torch.cuda.is_available()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists() and "model name" in (text := cpus.read_text()):  # Linux, x86
        assert f": {made['cpu']}\n" in text
