"""What a stage asks for, checked before any stage trains."""

import sys

import pytest

from llavit.train import run as run_module
from llavit.train.run import train


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        (
            "batch_size=6",
            ValueError,
            "stage instruct: batch_size 6 does not divide into micro-batches of 1 on 4",
        ),
        ("frozen_dtype=bfloat16", ValueError, "frozen_dtype bfloat16 needs a run that computes in bfloat16"),
        ("lora={rank: 2}", ImportError, r"pip install 'llavit\[lora\]'"),
    ],
)
def test_what_the_last_stage_cannot_do_shows_before_the_first_one_runs(
    tiny, tmp_path, monkeypatch, override, error, message
):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr(run_module, "_start", lambda spec: pytest.fail("the first stage began"))
    split = ("stages.0.micro_batch_size=1", "stages.1.micro_batch_size=1")
    with pytest.raises(error, match=message):
        train(tiny.recipe(*split, f"stages.1.{override}"), output=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["stages.1.lora={rank: 2, targets: [q_pro]}"],
            "the LLM has no linear layer 'q_pro'; it has .*q_proj",
        ),
        (
            ["model.visual_qkv=false", "stages.1.learning_rates={visual_qkv: 1e-3}"],
            "nothing to train: parts with a learning rate are visual_qkv, and this model has none",
        ),
    ],
)
def test_what_the_model_of_the_last_stage_lacks_shows_before_the_first_one_runs(
    tiny, tmp_path, monkeypatch, overrides, message
):
    monkeypatch.setattr(run_module, "_start", lambda spec: pytest.fail("the first stage began"))
    with pytest.raises(ValueError, match=message):
        train(tiny.recipe(*overrides), output=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
