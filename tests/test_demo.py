"""The demo: from nothing to a report, and again from what is there."""

import json
import subprocess
import sys
import time

import pytest
import torch

from llavit import compiling, demo
from llavit.demo import run_demo, share_of_steps
from tests.pretend_gpu import GPU, pretend_gpu

SHORT = [
    *(f"stages.{stage}.{key}" for stage in ("pretrain", "instruct") for key in ("steps=1", "batch_size=2")),
    "stages.pretrain.save_every=1",
    "compile=never",  # tests/train/test_compiling.py compiles a smaller model; the slow test below this one
]
COUNTS = {"pretrain": 4, "instruct": 4, "val": 0, "test": 8}


def test_the_demo_writes_its_report_and_a_second_run_reuses_everything(tmp_path):
    model = run_demo(tmp_path, SHORT, COUNTS)
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"accuracy", "blind_accuracy", "majority_accuracy", "per_task", "seconds", "loss"} <= report.keys()
    assert {stage: len(losses) for stage, losses in report["loss"].items()} == {"pretrain": 1, "instruct": 1}
    assert report["items"] == sum(row["items"] for row in report["per_task"].values()) == 8
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page and "data:image/jpeg;base64" in page
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    written = (model / "model.safetensors").stat().st_mtime_ns

    start = time.monotonic()
    assert run_demo(tmp_path, SHORT, COUNTS) == model
    assert time.monotonic() - start < 10
    assert (model / "model.safetensors").stat().st_mtime_ns == written
    again = json.loads((tmp_path / "report.json").read_text())
    assert again["per_task"] == report["per_task"]


@pytest.mark.parametrize(
    ("rate", "minutes", "share"),
    [
        (27_000, None, 1.5),  # more in the same ten minutes
        (9_000, None, 1.0),  # all of the steps, in twelve
        (2_500, None, 1.0),  # in 34
        (1_000, None, 0.5),  # what forty minutes are enough for
        (100, None, 0.25),
        (10**6, None, 2.5),
        (1_000, 10, 0.15),
        (1_000, 80, 1.0),
        (1_000, 1, 0.05),
        (27_000, 10**6, 3.0),
    ],
)
def test_a_slow_machine_takes_longer_and_all_take_what_they_are_given(rate, minutes, share):
    assert share_of_steps(rate, minutes) == share


def test_a_begun_demo_keeps_its_number_of_steps(tmp_path):
    decided = {"rate": 1_000.0, "pace": 0.75}
    (tmp_path / "cost.json").write_text(json.dumps({"seconds": {}, "peak_memory_gib": 0, "decided": decided}))
    with pytest.raises(ValueError, match=r"75% of the recipe's steps, and 80 minutes are 100%.*--output"):
        run_demo(tmp_path, counts=COUNTS, minutes=80)
    with pytest.raises(ValueError, match="above 0"):
        run_demo(tmp_path / "never", minutes=0)
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_the_demo_sees(tmp_path):
    """The whole demo: at least 30 points over the same model without the pictures, in less than 8 GB."""
    command = [sys.executable, "-m", "llavit.cli", "demo", "--output", str(tmp_path)]
    subprocess.run(command, check=True)  # in a process of its own: its memory is the demo's alone
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["peak_memory_gib"] * 2**30 < 8e9
    assert report["accuracy"] - report["blind_accuracy"] >= 0.30
    assert report["accuracy"] > report["majority_accuracy"]


def test_the_pace_of_a_machine_with_a_gpu_is_that_of_the_gpu(tiny, monkeypatch):
    waited, where = [], []
    monkeypatch.setattr(compiling, "why_not", lambda: "not here")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: GPU)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waited.append(True))
    monkeypatch.setattr(demo, "_PACE_TOKENS", 16)
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, *weights: where.append(x.device) or linear(x, *weights)
    )
    with pretend_gpu():
        assert demo._measured_rate(tiny.llm, "bfloat16") > 0
    assert set(where) == {GPU} and len(waited) == 40
