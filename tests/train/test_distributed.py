"""Several processes on one machine (gloo, CPU). Each starts on its own, as `torchrun` would start it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import types

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llavit import LlavitForConditionalGeneration
from llavit.train.distributed import LAUNCH, StepShares, deepspeed_config
from llavit.train.progress import read_step_log
from llavit.train.run import train
from llavit.train.stopping import EXIT_STATUS
from tests.train.processes import TIMEOUT, train_in

# Micro-batches of one: every third record has no image, so that in most steps one process sees images and one does
# not. Ten samples of the second stage do not fill its last step.
SPLIT = (
    "stages.0.micro_batch_size=1",
    "stages.1.micro_batch_size=1",
    "stages.1.steps=null",
    "stages.1.epochs=0.8",
    "stages.0.save_every=3",
)


def logged(folder):
    rows = {stage: read_step_log(folder / stage / "train_log.jsonl") for stage in ("pretrain", "instruct")}
    assert all(rows.values())
    return rows


def assert_same_run(one, two):
    for stage, rows in logged(one).items():
        for a, b in zip(rows, logged(two)[stage], strict=True):
            for key in ("step", "samples", "tokens", "supervised_tokens", "lr_projector"):
                assert a[key] == b[key]
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)  # float32: sums in another order
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
        ours, theirs = (load_file(folder / stage / "model.safetensors") for folder in (one, two))
        assert ours.keys() == theirs.keys()
        for name in ours:
            # Adam divides by the gradient's size: where that is nearly 0, so is the agreement on its sign.
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=2e-3)


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """The run of a single process."""
    folder = tmp_path_factory.mktemp("alone")
    train(tiny.recipe(*SPLIT), output=folder, progress=False)
    return folder


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_train_as_one_also_where_one_of_them_sees_no_image(tiny, alone, tmp_path, parallel):
    statuses = train_in(tmp_path, tiny.recipe_file, *SPLIT, f"parallel={parallel}", processes=2)
    assert statuses == [0, 0]
    assert_same_run(alone, tmp_path)
    for stage in ("pretrain", "instruct"):
        assert {file.name for file in (alone / stage).iterdir()} == {
            file.name for file in (tmp_path / stage).iterdir()
        }
        assert (alone / stage / "config.json").read_bytes() == (tmp_path / stage / "config.json").read_bytes()
        _, info = LlavitForConditionalGeneration.from_pretrained(tmp_path / stage, output_loading_info=True)
        assert not any(info.values())


@pytest.mark.slow
def test_two_processes_train_as_one_with_attention_over_documents(tiny, alone, tmp_path):
    options = (*SPLIT, "parallel=fsdp2", "attention=documents")
    assert train_in(tmp_path, tiny.recipe_file, *options, processes=2) == [0, 0]
    assert_same_run(alone, tmp_path)


def accelerate_launch(*program):
    """Start a program in two processes, as accelerate.yaml says."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        LAUNCH / "accelerate.yaml",
    ]
    command += ["--num_processes", "2", "--main_process_port", "0", *program]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow  # three processes import torch
@pytest.mark.parametrize("parallel", ["fsdp2", "ddp"])
def test_accelerate_launch_starts_them_as_well(tiny, alone, tmp_path, parallel):
    options = [part for option in (*SPLIT, f"parallel={parallel}") for part in ("--set", option)]
    accelerate_launch("-m", "llavit.cli", "train", tiny.recipe_file, "--output", tmp_path, *options)
    assert_same_run(alone, tmp_path)


def test_two_processes_train_as_one_with_the_variables_that_accelerate_launch_sets(tiny, alone, tmp_path):
    script = tmp_path / "started.py"
    script.write_text(
        "import json, os, pathlib\n"
        "pathlib.Path(__file__).with_name(os.environ['RANK']).write_text(json.dumps(dict(os.environ)))\n"
    )
    accelerate_launch(script)
    found = [json.loads((tmp_path / rank).read_text()) for rank in "01"]
    keys = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")
    assert [[each[key] for key in keys] for each in found] == [
        [rank, rank, "2", "127.0.0.1"] for rank in "01"
    ]
    theirs = {name: value for name, value in found[1].items() if name.startswith("ACCELERATE_")}
    assert len(theirs) > 1 and found[0].items() >= theirs.items()
    options = (*SPLIT, "parallel=fsdp2")
    assert train_in(tmp_path / "out", tiny.recipe_file, *options, processes=2, variables=theirs) == [0, 0]
    assert_same_run(alone, tmp_path / "out")


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("ACCELERATE_USE_FSDP", "true", "asks for FSDP, .*parallel: fsdp2"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "asks for DeepSpeed, .*parallel: zero2 or zero3"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "asks for mixed precision, .*dtype: bfloat16"),
    ],
)
def test_what_else_accelerate_is_configured_for_is_refused(tiny, tmp_path, monkeypatch, variable, value, key):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{key}.*accelerate.yaml"):
        train(tiny.recipe(), output=tmp_path, progress=False)


def test_deepspeed_on_a_cpu_is_not_silently_ddp(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert deepspeed_config("zero3") == str(LAUNCH / "zero3.json")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match=r"zero3 with ACCELERATE_USE_CPU set.*DDP"):
        deepspeed_config("zero3")


def steps_of(folder, stage="pretrain"):
    return [row["step"] for row in read_step_log(folder / f"{stage}.work/train_log.jsonl")]


def test_what_two_processes_saved_goes_on_in_one(tiny, alone, tmp_path):
    # Only the second process is told to stop, in the middle of the run, without a checkpoint due.
    statuses = train_in(
        tmp_path, tiny.recipe_file, *SPLIT, "parallel=fsdp2", processes=2, send=signal.SIGTERM, rank=1, step=1
    )
    assert statuses == [EXIT_STATUS, EXIT_STATUS]
    assert steps_of(tmp_path) == [1, 2]
    assert [path.name for path in (tmp_path / "pretrain.work").glob("checkpoint-*")] == ["checkpoint-2"]
    train(tiny.recipe(*SPLIT), output=tmp_path, progress=False)
    assert_same_run(alone, tmp_path)


def test_what_one_process_saved_goes_on_in_two(tiny, alone, tmp_path):
    statuses = train_in(
        tmp_path, tiny.recipe_file, *SPLIT, send=signal.SIGTERM, step=5
    )  # in the second stage
    assert statuses == [EXIT_STATUS]
    assert steps_of(tmp_path, "instruct") == [1, 2]
    assert train_in(tmp_path, tiny.recipe_file, *SPLIT, "parallel=fsdp2", processes=2) == [0, 0]
    assert_same_run(alone, tmp_path)


def test_what_two_processes_saved_of_a_tower_that_trains_goes_on_in_one_and_in_two(tiny, tmp_path):
    # Its layers above the deepest one read have no optimizer state.
    options = (*SPLIT, "stages.0.learning_rates.vision_tower=1e-3")
    train(tiny.recipe(*options), output=tmp_path / "alone", progress=False)
    both = tmp_path / "both"
    fsdp2 = {"processes": 2, "step": 2, "send": signal.SIGTERM}
    assert train_in(both, tiny.recipe_file, *options, "parallel=fsdp2", **fsdp2) == [EXIT_STATUS] * 2
    shutil.copytree(both, tmp_path / "one")
    train(tiny.recipe(*options), output=tmp_path / "one", progress=False)
    assert_same_run(tmp_path / "alone", tmp_path / "one")
    assert train_in(both, tiny.recipe_file, *options, "parallel=fsdp2", processes=2) == [0, 0]
    assert_same_run(tmp_path / "alone", both)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_the_tower_trains_as_well_and_activations_are_recomputed(tiny, tmp_path, parallel):
    # Every process has to run the tower in every step; nothing reads its layers above the second-to-last.
    everything = [f"stages.0.learning_rates.{part}=1e-3" for part in ("vision_tower", "llm")]
    options = [
        *SPLIT,
        "stages.1.epochs=0.3",
        *everything,
        "stages.0.gradient_checkpointing=true",
        "stages.0.steps=2",
    ]
    train(tiny.recipe(*options), output=tmp_path / "one", progress=False)
    assert train_in(tmp_path / "two", tiny.recipe_file, *options, f"parallel={parallel}", processes=2) == [
        0,
        0,
    ]
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_a_loss_that_is_not_finite_in_one_process_stops_all_before_the_optimizer(tiny, tmp_path):
    folder = tmp_path / "out"
    assert train_in(folder, tiny.recipe_file, *SPLIT, processes=2, rank=1, nan=True) == [2, 2]
    messages = [(tmp_path / f"out.error-{rank}").read_text() for rank in (0, 1)]
    assert messages[0].startswith("stage pretrain, step 1: the loss is not finite in another process")
    assert messages[1].startswith("stage pretrain, step 1: the loss is nan")
    assert "Samples of this step in this process: " in messages[1] and "(#" in messages[1]
    assert steps_of(folder) == []


def test_records_left_out_in_any_process_are_written_down_once_and_count_together(tiny, tmp_path):
    rows = json.loads(tiny.data.read_text())
    for row in rows[:4]:
        row["image"] = "absent.png"
        row["conversations"][0]["value"] = "<image>"
    data = tiny.data.with_name("torn.json")
    data.write_text(json.dumps(rows))
    recipe = [
        *SPLIT,
        "stages.0.steps=3",
        "stages.1.steps=1",
        f"stages.0.data={{path: {data}, on_error: skip}}",
    ]
    assert train_in(tmp_path / "out", tiny.recipe_file, *recipe, processes=2) == [0, 0]
    lines = (tmp_path / "out/pretrain/skipped.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == ["i0 (#0)", "i1 (#1)", "i3 (#3)", "t2 (#2)"]
    assert read_step_log(tmp_path / "out/pretrain/train_log.jsonl")[-1]["skipped"] == 4
    few = [*recipe, "stages.0.data.max_skipped=3"]
    assert train_in(tmp_path / "few", tiny.recipe_file, *few, processes=2) == [2, 2]
    for rank in (0, 1):
        assert "4 bad records, more than max_skipped = 3" in (tmp_path / f"few.error-{rank}").read_text()


@pytest.mark.parametrize(("samples", "processes"), [(10, 2), (16, 2), (3, 4), (9, 1), (8, 3)])
def test_processes_share_out_every_sample_once_and_run_equally_often(samples, processes):
    shares = [
        StepShares(range(samples), 6 if processes == 3 else 8, 2, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    taken = [list(share) for share in shares]
    assert sorted(index for share in taken for batch in share for index in batch) == list(range(samples))
    assert {len(share) for share in taken} == {len(shares[0])}
    assert all(len(batch) <= 2 for share in taken for batch in share)


@pytest.mark.slow  # two runs of two processes and two of one: further ways that parts are held and trained, under FSDP2
@pytest.mark.parametrize(
    "options",
    [
        ["stages.1.lora={rank: 4, alpha: 8, dropout: 0}", "stages.1.epochs=0.5"],
        ["dtype=bfloat16", "stages.0.frozen_dtype=bfloat16", "stages.1.epochs=0.5"],
    ],
    ids=["lora", "bfloat16"],
)
def test_fsdp2_trains_adapters_and_holds_frozen_parts_in_bfloat16(tiny, tmp_path, options):
    options = [*SPLIT, *options]
    train(tiny.recipe(*options), output=tmp_path / "one", progress=False)
    assert train_in(tmp_path / "two", tiny.recipe_file, *options, "parallel=fsdp2", processes=2) == [0, 0]
    rough = "dtype=bfloat16" in options
    for stage, rows in logged(tmp_path / "one").items():
        for a, b in zip(rows, logged(tmp_path / "two")[stage], strict=True):
            # bfloat16 has 8 bits: norms and biases of sharded layers are gathered in it as well
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-2 if rough else 1e-5)
        model, info = LlavitForConditionalGeneration.from_pretrained(
            tmp_path / "two" / stage, output_loading_info=True
        )
        assert not any(info.values())
        assert model.config.architectures == ["LlavitForConditionalGeneration"]


@pytest.mark.slow  # each of two processes compiles
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_compiled_layers_that_are_recomputed_train_as_plain_ones_in_one_process(tiny, tmp_path, parallel):
    options = [*SPLIT, "dtype=bfloat16", "stages.0.frozen_dtype=bfloat16", "stages.1.epochs=0.5"]
    options += [f"stages.{number}.gradient_checkpointing=true" for number in range(2)]
    train(tiny.recipe(*options), output=tmp_path / "one", progress=False)
    compiled = [*options, "compile=always", f"parallel={parallel}"]
    assert train_in(tmp_path / "two", tiny.recipe_file, *compiled, processes=2, timeout=900) == [0, 0]
    for stage, rows in logged(tmp_path / "one").items():
        for a, b in zip(rows, logged(tmp_path / "two")[stage], strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-2)


@pytest.mark.slow  # two processes beside one
def test_fsdp2_trains_an_llm_whose_head_is_not_tied_to_its_embeddings(tiny, tmp_path):
    llm = AutoModelForCausalLM.from_pretrained(tiny.llm)
    llm.config.tie_word_embeddings = False
    untied = type(llm)(llm.config)
    untied.save_pretrained(tmp_path / "llm")
    AutoTokenizer.from_pretrained(tiny.llm).save_pretrained(tmp_path / "llm")
    options = [*SPLIT, f"model.llm={tmp_path / 'llm'}"]
    train(tiny.recipe(*options), output=tmp_path / "one", progress=False)
    assert train_in(tmp_path / "two", tiny.recipe_file, *options, "parallel=fsdp2", processes=2) == [0, 0]
    assert "lm_head.weight" in load_file(tmp_path / "two/instruct/model.safetensors")
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(("parallel", "stage"), [("zero2", 2), ("zero3", 3)])
def test_deepspeed_has_its_configurations_and_where_it_is_missing_the_error_says_so(
    tiny, tmp_path, monkeypatch, parallel, stage
):
    config = json.loads((LAUNCH / f"{parallel}.json").read_text())
    assert config["zero_optimization"]["stage"] == stage
    assert config["gradient_accumulation_steps"] == "auto"
    if stage == 3:
        assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ImportError, match=r"pip install 'llavit\[deepspeed\]'; fsdp2 does the same without"):
        train(tiny.recipe(f"parallel={parallel}"), output=tmp_path, progress=False)


def test_a_checkpoint_of_deepspeed_does_not_pass_for_another(tiny, tmp_path):
    recipe = ["stages.0.save_every=2", "stages.0.steps=3", "stages.1.steps=1"]
    assert train_in(tmp_path, tiny.recipe_file, *recipe, send=signal.SIGTERM, step=1) == [EXIT_STATUS]
    (tmp_path / "pretrain.work/checkpoint-2/optimizer.pt").unlink()  # DeepSpeed keeps it in a form of its own
    with pytest.raises(
        ValueError, match=r"checkpoint-2: expected optimizer.pt, found none: DeepSpeed saved it"
    ):
        train(tiny.recipe(*recipe), output=tmp_path, progress=False)
