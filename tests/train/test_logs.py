import json
import os
import re
import resource
import signal
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from llavit.data import Collator, ConversationDataset, open_reader
from llavit.train import throughput
from llavit.train.flops import training_flops
from llavit.train.logs import numbers
from llavit.train.progress import StepLog, read_step_log
from llavit.train.run import train
from llavit.train.stopping import Stopped
from llavit.train.throughput import COUNTS, Throughput, count, known_peak_tflops, peak_tflops
from llavit.train.trainer import LlavitTrainer


def events(folder):
    """Read TensorBoard's files in the order in which it does."""
    for file in sorted(folder.glob("events.*")):
        data, start = file.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            yield Event.FromString(data[start + 12 : start + 12 + length])
            start += length + 16


def shown(folder, tag):
    """Give the steps and values that TensorBoard shows: a session that starts purges the steps it takes again."""
    points = {}
    for event in events(folder):
        if event.HasField("session_log"):
            points = {step: value for step, value in points.items() if step < event.step}
        for value in event.summary.value:
            if value.tag == tag:
                points[event.step] = value.simple_value
    return points


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    train(tiny.recipe("peak_tflops=0.1"), output=folder, progress=False)
    return folder


def test_each_step_is_measured(run, tiny):
    rows = read_step_log(run / "instruct/train_log.jsonl")
    keys = {"loss", "grad_norm", "lr_projector", "lr_visual_qkv", "lr_llm", "seconds", "samples", "tokens"}
    keys |= {"supervised_tokens", "samples_per_second", "tokens_per_second", "padding", "mfu", "skipped"}
    assert all(row.keys() == keys | {"step"} for row in rows)
    row = rows[0]
    assert row["samples_per_second"] == pytest.approx(4 / row["seconds"])
    assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
    assert 0 < row["padding"] < 1 and row["skipped"] == 0
    assert 0 < row["mfu"] < 1


def test_a_full_disk_does_not_cost_the_steps_that_were_logged(tmp_path):
    log = tmp_path / "train_log.jsonl"
    log.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 101)))
    before = log.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (100, limits[1])
    )  # a file of more bytes fails, as on a full disk
    try:
        with pytest.raises(OSError):
            StepLog(log).on_train_begin(
                None, SimpleNamespace(is_world_process_zero=True, global_step=90), None
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.read_bytes() == before


def test_the_docs_explain_every_key_of_the_log(run):
    docs = (Path(__file__).parents[2] / "docs/training.md").read_text()
    table = docs.split("| key | meaning |")[1].split("\n\n")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    explained = set(re.findall(r"`(\w+)`", " ".join(first_cells)))
    (row, *_) = read_step_log(run / "instruct/train_log.jsonl")
    assert explained == {"lr_PART" if key.startswith("lr_") else key for key in row} - {"step"}


def test_mfu_is_the_flops_of_what_was_in_the_step_over_what_the_hardware_can_do(tiny):
    model, processor = tiny.build()
    data = ConversationDataset(open_reader(tiny.data), processor)
    batches = [Collator(0)([data[0], data[2]]), Collator(0)([data[1]])]  # with, without and with an image
    counts = dict(zip(COUNTS, count(batches), strict=True))
    lengths = [len(data[index]["input_ids"]) for index in (0, 1, 2)]
    assert counts["samples"] == 3 and counts["images"] == 2
    squares = sum(length**2 for length in lengths)
    assert counts["token_pairs"] == squares
    assert counts["tokens"] == sum(lengths) and counts["visual_tokens"] == 2 * 4
    assert counts["positions"] == 2 * max(lengths[0], lengths[2]) + lengths[1]
    rates = {"projector": 1e-3, "llm": 1e-5}
    measured = Throughput(model.config, rates, peak=2e-6).measure(counts, supervised=20, seconds=0.5)
    flops = training_flops(model.config, rates, sum(lengths) - 8, 8, 20, 2, token_pairs=squares)
    assert measured["mfu"] == pytest.approx(flops / 0.5 / 2e6)
    assert measured["padding"] == pytest.approx(1 - sum(lengths) / counts["positions"])
    assert "mfu" not in Throughput(model.config, rates, peak=None).measure(counts, 20, 0.5)


def test_the_filling_of_packed_rows_is_padding(tiny):
    _, processor = tiny.build()
    data = ConversationDataset(open_reader(tiny.data), processor)
    lengths = [len(data[index]["input_ids"]) for index in (0, 1)]
    exact = Collator(0, pack_length=sum(lengths))([data[0], data[1]])
    filled = Collator(0, pack_length=max(lengths))([data[0], data[1]])
    for batch, rows in ((exact, 1), (filled, 2)):
        counts = dict(zip(COUNTS, count([batch]), strict=True))
        assert (len(batch["input_ids"]), counts["tokens"]) == (rows, sum(lengths))
        assert counts["positions"] == batch["input_ids"].numel()


def test_the_flops_of_samples_are_the_same_packed_and_apart(tiny):
    """Samples that share a row do not see each other: their attention is that of each by itself."""
    model, processor = tiny.build()
    data = ConversationDataset(open_reader(tiny.data), processor)
    samples = [data[index] for index in (0, 1, 2)]
    lengths = [len(sample["input_ids"]) for sample in samples]
    mfu = []
    for pack_length in (None, sum(lengths), sum(lengths) + 7, max(lengths)):
        counts = dict(zip(COUNTS, count([Collator(0, pack_length=pack_length)(samples)]), strict=True))
        assert counts["token_pairs"] == sum(length**2 for length in lengths)
        measured = Throughput(model.config, {"projector": 1e-3}, peak=2e-6).measure(counts, 20, 0.5)
        mfu.append(measured["mfu"])
    assert mfu == [mfu[0]] * 4


@pytest.mark.parametrize("pack_length", [None, 8])
def test_a_process_that_gets_no_sample_counts_no_token(pack_length):
    counts = dict(zip(COUNTS, count([Collator(0, pack_length=pack_length)([])]), strict=True))
    assert counts.pop("positions") == 1  # every process has something to run
    assert not any(counts.values())


def test_gpus_are_known_by_their_names_and_a_cpu_has_no_peak_unless_given():
    assert known_peak_tflops("NVIDIA A100-SXM4-80GB") == 312
    assert known_peak_tflops("NVIDIA H100 PCIe") == 756
    assert known_peak_tflops("NVIDIA H200") == 989
    assert known_peak_tflops("NVIDIA L40S") == 362
    assert known_peak_tflops("Quadro K620") is None
    # names within other names
    for other in ("NVIDIA L40", "NVIDIA RTX A1000", "NVIDIA RTX A4000", "NVIDIA GeForce RTX 4090 Laptop GPU"):
        assert known_peak_tflops(other) is None
    cpu = torch.device("cpu")
    assert peak_tflops(None, cpu, torch.bfloat16) is None
    assert peak_tflops(3.0, cpu, torch.float32) == 3.0


def test_the_known_peaks_count_for_bfloat16_only(monkeypatch):
    monkeypatch.setattr(throughput.torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    cuda = torch.device("cuda")
    assert peak_tflops(None, cuda, torch.bfloat16) == 989
    assert peak_tflops(None, cuda, torch.float32) is None


def test_tensorboard_has_every_step_of_every_stage(run):
    for stage, steps in (("pretrain", 4), ("instruct", 2)):
        rows = read_step_log(run / stage / "train_log.jsonl")
        loss = shown(run / "tensorboard" / stage, "train/loss")
        assert list(loss) == list(range(1, steps + 1))
        assert list(loss.values()) == pytest.approx([row["loss"] for row in rows])
        for tag in ("train/grad_norm", "learning_rate/projector", "speed/mfu", "data/padding"):
            assert len(shown(run / "tensorboard" / stage, tag)) == steps


def test_a_resumed_run_leaves_no_trace_in_tensorboard(run, tiny, tmp_path, monkeypatch):
    recipe = tiny.recipe("stages.0.save_every=2")
    step = LlavitTrainer.training_step

    def stop(self, *args):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LlavitTrainer, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, output=tmp_path, progress=False)
    train(recipe, output=tmp_path, progress=False)
    loss = shown(tmp_path / "tensorboard/pretrain", "train/loss")
    assert list(loss.items()) == list(shown(run / "tensorboard/pretrain", "train/loss").items())


def test_wandb_that_is_not_installed_is_an_error_that_names_the_extra(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'llavit\[wandb\]'; or leave `wandb` out"):
        train(tiny.recipe("wandb=llavit"), output=tmp_path, progress=False)


def wandb_records(file):
    """Read what wandb has written for `wandb sync`: a head, then blocks of records as LevelDB's log has them."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def wandb_runs(folder):
    """Give each offline run's id, name, configuration and rows, oldest first."""
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns):
        records = list(wandb_records(file))
        (run,) = (record.run for record in records if record.HasField("run"))
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        history = [record.history for record in records if record.HasField("history")]
        rows = [
            {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item}
            for row in history
        ]
        yield run, config, rows


def assert_shows(rows, log):
    """Compare the rows of a W&B run with those of a step log."""
    assert [row["_step"] for row in rows] == [row["step"] for row in log]
    for row, logged in zip(rows, log, strict=True):
        expected = numbers({key: value for key, value in logged.items() if key != "step"})
        assert {key: row[key] for key in row if not key.startswith("_")} == pytest.approx(expected)


@pytest.fixture
def wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="of the extra `wandb`: make test-extras")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)


@pytest.mark.extras
def test_wandb_keeps_every_step_of_every_stage_and_the_recipe(tiny, tmp_path, wandb_offline):
    recipe = tiny.recipe("wandb=llavit", "peak_tflops=0.1")
    train(recipe, output=tmp_path / "out", progress=False)
    runs = list(wandb_runs(tmp_path / "out"))  # beside the stages' folders, not in those that go away
    assert [run.display_name for run, _, _ in runs] == ["tiny/pretrain", "tiny/instruct"]
    assert {run.project for run, _, _ in runs} == {"llavit"}
    for (_, config, rows), stage in zip(runs, ("pretrain", "instruct"), strict=True):
        assert config["seed"] == recipe.seed and len(config["stages"]) == 2
        assert_shows(rows, read_step_log(tmp_path / "out" / stage / "train_log.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.extras
def test_a_resumed_stage_goes_on_in_its_wandb_run(tiny, tmp_path, wandb_offline, monkeypatch):
    recipe = tiny.recipe("wandb=llavit")
    step = LlavitTrainer.training_step

    def told_to_stop(self, *args):
        if self.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LlavitTrainer, "training_step", told_to_stop)
        with pytest.raises(Stopped):
            train(recipe, output=tmp_path / "out", progress=False)
    train(recipe, output=tmp_path / "out", progress=False)
    (one, _, before), (two, _, after), (other, _, _) = wandb_runs(tmp_path / "out")
    assert one.run_id == two.run_id != other.run_id
    assert_shows(before + after, read_step_log(tmp_path / "out/pretrain/train_log.jsonl"))
