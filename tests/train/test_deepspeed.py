"""DeepSpeed's ZeRO-2 and ZeRO-3 with two processes (gloo, CPU): `make test-extras`.

float32 losses are compared to 1e-5 of those of a single process, as for DDP and FSDP2: nothing is rounded, but the
gradients of two processes are summed in another order than the micro-batches of one.
"""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from llavit import LlavitForConditionalGeneration
from llavit.train.progress import read_step_log
from llavit.train.run import train
from llavit.train.stopping import EXIT_STATUS
from tests.train.processes import train_in
from tests.train.test_distributed import SPLIT, assert_same_run, logged, steps_of

pytestmark = pytest.mark.extras

WAYS = pytest.mark.parametrize("parallel", ["zero2", "zero3"])


@pytest.fixture(scope="module", autouse=True)
def needs_deepspeed():
    pytest.importorskip("deepspeed", reason="of the extra `deepspeed`: make test-extras")


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """The run of a single process, without DeepSpeed."""
    folder = tmp_path_factory.mktemp("alone")
    train(tiny.recipe(*SPLIT), output=folder, progress=False)
    return folder


def loads(folder):
    model, info = LlavitForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return model


@WAYS
def test_two_processes_train_as_one(tiny, alone, tmp_path, parallel):
    assert train_in(tmp_path, tiny.recipe_file, *SPLIT, f"parallel={parallel}", processes=2) == [0, 0]
    assert_same_run(alone, tmp_path)
    for stage in ("pretrain", "instruct"):
        assert {file.name for file in (alone / stage).iterdir()} == {
            file.name for file in (tmp_path / stage).iterdir()
        }
        loads(tmp_path / stage)


@WAYS
def test_a_process_that_sees_no_image_does_not_hang(tiny, tmp_path, parallel):
    rows = json.loads(tiny.data.read_text())
    (first, *_), texts = rows, [row for row in rows if "image" not in row]
    data = tiny.data.with_name("one_image.json")  # so that in each step one process, or both, has text only
    data.write_text(json.dumps([first, *texts]))
    recipe = [*SPLIT, f"stages.0.data.path={data}", f"stages.1.data.path={data}", "stages.1.epochs=1"]
    train(tiny.recipe(*recipe), output=tmp_path / "one", progress=False)
    statuses = train_in(tmp_path / "two", tiny.recipe_file, *recipe, f"parallel={parallel}", processes=2)
    assert statuses == [0, 0]  # `train_in` fails after TIMEOUT seconds
    assert_same_run(tmp_path / "one", tmp_path / "two")


@WAYS
def test_a_checkpoint_resumes_to_the_bit_and_only_in_deepspeed(tiny, alone, tmp_path, parallel):
    recipe = [*SPLIT, f"parallel={parallel}"]
    assert train_in(tmp_path / "whole", tiny.recipe_file, *recipe, processes=2) == [0, 0]
    statuses = train_in(
        tmp_path / "out", tiny.recipe_file, *recipe, processes=2, send=signal.SIGTERM, rank=1, step=1
    )
    assert statuses == [EXIT_STATUS, EXIT_STATUS]
    assert steps_of(tmp_path / "out") == [1, 2]
    checkpoint = tmp_path / "out/pretrain.work/checkpoint-2"
    parts = {file.name for file in checkpoint.glob("global_step*/*")}
    assert {f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)} <= parts
    # ZeRO-3 cuts the weights up as well: each process has a file of its own part.
    assert ("zero_pp_rank_1_mp_rank_00_model_states.pt" in parts) == (parallel == "zero3")
    with pytest.raises(ValueError, match=r"expected optimizer.pt, found none: DeepSpeed saved it"):
        train(tiny.recipe(*SPLIT), output=tmp_path / "out", progress=False)
    assert train_in(tmp_path / "out", tiny.recipe_file, *recipe, processes=2) == [0, 0]
    for stage, rows in logged(tmp_path / "whole").items():
        resumed = read_step_log(tmp_path / "out" / stage / "train_log.jsonl")
        assert [(row["step"], row["loss"]) for row in resumed] == [(row["step"], row["loss"]) for row in rows]
        ours, theirs = (load_file(tmp_path / run / stage / "model.safetensors") for run in ("out", "whole"))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@WAYS
def test_a_loss_that_is_not_finite_stops_all_before_the_optimizer(tiny, tmp_path, parallel):
    folder = tmp_path / "out"
    recipe = [*SPLIT, f"parallel={parallel}"]
    assert train_in(folder, tiny.recipe_file, *recipe, processes=2, rank=1, nan=True) == [2, 2]
    messages = [(tmp_path / f"out.error-{rank}").read_text() for rank in (0, 1)]
    assert messages[0].startswith("stage pretrain, step 1: the loss is not finite in another process")
    assert messages[1].startswith("stage pretrain, step 1: the loss is nan")
    assert "Samples of this step in this process: " in messages[1] and "(#" in messages[1]
    assert steps_of(folder) == []


@WAYS
def test_the_tower_trains_as_well_and_activations_are_recomputed(tiny, tmp_path, parallel):
    everything = [f"stages.0.learning_rates.{part}=1e-3" for part in ("vision_tower", "llm")]
    options = [*SPLIT, "stages.1.epochs=0.3", *everything, "stages.0.steps=2"]
    options.append("stages.0.gradient_checkpointing=true")
    train(tiny.recipe(*options), output=tmp_path / "one", progress=False)
    assert train_in(tmp_path / "two", tiny.recipe_file, *options, f"parallel={parallel}", processes=2) == [
        0,
        0,
    ]
    assert_same_run(tmp_path / "one", tmp_path / "two")


@WAYS
def test_adapters_train_and_load(tiny, tmp_path, parallel):
    options = [*SPLIT, "stages.1.lora={rank: 4, alpha: 8, dropout: 0}", "stages.1.epochs=0.5"]
    train(tiny.recipe(*options), output=tmp_path / "one", progress=False)
    statuses = train_in(tmp_path / "two", tiny.recipe_file, *options, f"parallel={parallel}", processes=2)
    assert statuses == [0, 0]
    for stage, rows in logged(tmp_path / "one").items():
        for a, b in zip(rows, logged(tmp_path / "two")[stage], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    one, two = (dict(loads(tmp_path / run / "instruct").named_parameters()) for run in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-3)  # as in `assert_same_run`


@WAYS
def test_in_bfloat16_losses_are_those_of_one_process_to_its_digits(tiny, tmp_path, parallel):
    options = [*SPLIT, "dtype=bfloat16", "stages.1.epochs=0.5"]
    train(tiny.recipe(*options), output=tmp_path / "one", progress=False)
    statuses = train_in(tmp_path / "two", tiny.recipe_file, *options, f"parallel={parallel}", processes=2)
    assert statuses == [0, 0]
    for stage, rows in logged(tmp_path / "one").items():
        for a, b in zip(rows, logged(tmp_path / "two")[stage], strict=True):
            # DeepSpeed holds all weights in bfloat16, of 8 bits, norms included; autocast over float32 does not.
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-2)
        loads(tmp_path / "two" / stage)
