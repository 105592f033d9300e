"""Compiled layers: the same losses, and a plain word where nothing can be compiled."""

import subprocess
import sys
from functools import partialmethod

import pytest
import torch

from llavit.train.progress import read_step_log
from llavit.train.run import train

WORKS = pytest.mark.usefixtures("compiler")


def count_graphs(monkeypatch, backend):
    """From here on, modules are compiled by a backend, and dynamo counts graphs from 0."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    by_backend = partialmethod(torch.nn.Module.compile, backend=backend)
    monkeypatch.setattr(torch.nn.Module, "compile", by_backend)


@WORKS
@pytest.mark.parametrize(
    "backend",
    [
        "eager",  # the same graphs, run as they are
        pytest.param("inductor", marks=pytest.mark.slow),  # minutes of compiling, for each stage anew
    ],
)
def test_compiled_layers_give_the_same_losses_for_rows_of_any_length(tiny, tmp_path, monkeypatch, backend):
    count_graphs(monkeypatch, backend)
    losses = []
    for wanted in ("never", "always"):
        # Rows of other lengths and numbers of visual tokens in every step, text-only records among them.
        recipe = tiny.recipe(f"compile={wanted}", "stages.0.batch_size=2", "stages.1.batch_size=2")
        train(recipe, output=tmp_path / wanted, progress=False)
        stages = [
            read_step_log(tmp_path / wanted / name / "train_log.jsonl") for name in ("pretrain", "instruct")
        ]
        losses.append([row["loss"] for rows in stages for row in rows])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)  # float32: sums in another order
    assert len(losses[0]) == 6
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one for each stage


@WORKS
def test_layers_are_compiled_also_where_gradient_checkpointing_runs_them_again(tiny, tmp_path, monkeypatch):
    count_graphs(monkeypatch, "eager")
    losses = []
    for wanted in ("never", "always"):
        again = [f"stages.{stage}.gradient_checkpointing=true" for stage in (0, 1)]
        train(tiny.recipe(f"compile={wanted}", *again), output=tmp_path / wanted, progress=False)
        rows = [
            row
            for stage in ("pretrain", "instruct")
            for row in read_step_log(tmp_path / wanted / stage / "train_log.jsonl")
        ]
        losses.append([(row["loss"], row["grad_norm"]) for row in rows])
    for (loss, norm), (compiled_loss, compiled_norm) in zip(*losses, strict=True):
        assert compiled_loss == pytest.approx(loss, rel=1e-5)
        assert compiled_norm == pytest.approx(norm, rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one for each stage


@WORKS
def test_layers_stay_compiled_however_many_kinds_of_rows_there_are(tiny, tmp_path, monkeypatch):
    count_graphs(monkeypatch, "eager")
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    rows = [f"stages.{stage}.micro_batch_size=1" for stage in (0, 1)]
    for dtype in ("float32", "bfloat16"):
        train(tiny.recipe("compile=always", f"dtype={dtype}", *rows), output=tmp_path / dtype, progress=False)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 8  # torch's own limit


def test_without_a_compiler_auto_goes_on_and_always_says_what_to_do(tmp_path):
    script = (
        "from llavit.train.compiling import compile_layers\n"
        "assert compile_layers(None, 'auto') is False\n"
        "try:\n    compile_layers(None, 'always')\n"
        "except RuntimeError as error:\n    print(error)\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "CXX": "absent-compiler", "HOME": str(tmp_path)}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "install a C++ compiler" in done.stdout
