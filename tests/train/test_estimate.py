"""Estimates against what is measured: parameters, FLOPs, tensors of a real step, and the memory of a process."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig
from typer.testing import CliRunner

from llavit import LlavitForConditionalGeneration
from llavit.cli import app
from llavit.model.adapters import add_lora
from llavit.model.compat import recompute_activations
from llavit.model.loss import floats_at_a_time
from llavit.train.estimate import estimate
from llavit.train.flops import meta_model, training_flops
from llavit.train.lora import hold_frozen
from llavit.train.memory import Batch, MemoryCount, step_memory
from llavit.train.model_config import known_models, model_config
from llavit.train.parts import freeze, parameters_by_part
from llavit.train.recipe import ModelSpec, load_recipe, shipped_recipes
from tests.model.families import IMAGE, LLMS, PATCHES, config_of, pixels
from tests.train import measured_step

PRETRAIN = {"projector": 1.0, "visual_qkv": 1.0}
INSTRUCT = {**PRETRAIN, "llm": 1.0}
EVERYTHING = {**INSTRUCT, "vision_tower": 1.0}
LLAVA = {"visual_qkv": False, "bidirectional_visual_attention": False, "vision_feature_layer": -2}
CLIP, QWEN = "openai/clip-vit-large-patch14-336", "Qwen/Qwen2.5-1.5B-Instruct"

RECIPE = """
name: try
model: {vision: starter:tower, llm: starter:llm}
stages:
  - name: only
    data: {path: d.json}
    learning_rates: {projector: 1, visual_qkv: 1, llm: 1}
    batch_size: 8
    micro_batch_size: 4
"""
CHECKPOINTING = "stages.0.gradient_checkpointing=true"
FROZEN = "stages.0.learning_rates.llm=0"
LORA = "stages.0.lora={rank: 16}"
SETTINGS = [
    ("float32",),
    ("float32", CHECKPOINTING),
    ("float32", FROZEN),
    ("float32", FROZEN, CHECKPOINTING),
    ("float32", LORA),
    ("float32", LORA, CHECKPOINTING),
    ("float32", "stages.0.batch_size=4"),
    ("bfloat16",),
    ("bfloat16", FROZEN, "stages.0.frozen_dtype=bfloat16"),
]

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # glibc: each block of 64 KiB or more comes from the kernel and goes back to it when it is freed.
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_MMAP_MAX_": "1000000",
    "MALLOC_TRIM_THRESHOLD_": "0",
    "MALLOC_TOP_PAD_": "0",
}


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "try.yaml"
    path.write_text(RECIPE)
    return path


# Parameters


@pytest.mark.parametrize(
    ("source", "parameters"),
    [  # as published, or as counted in the checkpoints
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("microsoft/Phi-3.5-mini-instruct", 3_821_079_552),
        ("lmsys/vicuna-7b-v1.5", 6_738_415_616),
        ("lmsys/vicuna-13b-v1.5", 13_015_864_320),
        ("starter:llm", 134_515_008),
    ],
)
def test_known_models_have_as_many_parameters_as_the_real_ones(source, parameters):
    parts = parameters_by_part(meta_model(model_config(ModelSpec(vision=CLIP, llm=source))))
    counts = {part: sum(p.numel() for p in members.values()) for part, members in parts.items()}
    assert counts["llm"] == parameters
    assert counts["vision_tower"] == 303_507_456


def test_every_shipped_recipes_model_is_known_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for shipped in shipped_recipes():
        spec = load_recipe(shipped.name).model
        assert {spec.vision, spec.llm} <= known_models().keys(), shipped.name


def test_a_recipes_configuration_is_that_of_the_model_it_builds(tiny):
    built, made = tiny.build().model.config, model_config(tiny.recipe().model)
    for key in ("image_seq_length", "vision_feature_select_strategy", "vision_feature_layer", "visual_qkv"):
        assert getattr(made, key) == getattr(built, key), key
    shapes = [{n: p.shape for n, p in meta_model(config).named_parameters()} for config in (built, made)]
    vocabulary = [sizes.pop("model.language_model.embed_tokens.weight") for sizes in shapes]
    assert shapes[0] == shapes[1]
    assert (
        vocabulary[0][0] == vocabulary[1][0] + 1
    )  # the image token, of which the configuration knows nothing


# FLOPs


def measure_flops(config, rates, lora_rank, checkpointing):
    model = LlavitForConditionalGeneration._from_config(config, attn_implementation="eager").train()
    if lora_rank:
        add_lora(model, base="", rank=lora_rank, alpha=1)
    freeze(model, rates)
    if checkpointing:
        recompute_activations(model)
        model.disable_input_require_grads()
    ids = torch.randint(1, 90, (2, 40))
    ids[:, 4 : 4 + PATCHES] = IMAGE
    labels = torch.where(torch.arange(40) < 20, -100, ids)
    with FlopCounterMode(display=False) as counter:
        model(
            input_ids=ids, pixel_values=pixels(2), labels=labels, supervised_logits_only=True, use_cache=False
        ).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("switches", [{}, LLAVA], ids=["llavit", "llava"])
@pytest.mark.parametrize(
    ("rates", "lora_rank"),
    [
        (PRETRAIN, 0),
        (INSTRUCT, 0),
        (EVERYTHING, 0),
        ({"llm": 1.0}, 0),
        ({"projector": 1.0}, 0),
        ({"projector": 1.0, "text_qkv": 1.0}, 0),
        ({"projector": 1.0, "llm": 1.0, "text_qkv": 0.0}, 0),
        (INSTRUCT, 8),
    ],
)
def test_flops_are_those_that_torch_counts(rates, lora_rank, switches, checkpointing):
    config = config_of("llama", **switches)
    expected = measure_flops(config, rates, lora_rank, checkpointing)
    got = training_flops(
        config,
        rates,
        62,
        18,
        40,
        2,
        token_pairs=2 * 40**2,
        lora_rank=lora_rank,
        gradient_checkpointing=checkpointing,
    )
    assert got == pytest.approx(expected, rel=0.02 if checkpointing else 0.005)


@pytest.mark.parametrize(("llm", "tower"), [*((llm, "dinov2") for llm in LLMS), ("llama", "siglip")])
def test_flops_are_right_for_every_family(llm, tower):
    config = config_of(llm, tower)
    got = training_flops(config, INSTRUCT, 62, 18, 40, 2, token_pairs=2 * 40**2)
    assert got == pytest.approx(
        measure_flops(config, INSTRUCT, 0, False), rel=0.01
    )  # rotary angles, pooling heads


# Memory


def real_step(config, stage, batch, dtype):
    """The bytes of tensors at the peak of a real step, beside weights and gradients."""
    model = LlavitForConditionalGeneration._from_config(config, attn_implementation="sdpa").train()
    if stage.lora is not None:
        add_lora(model, base="", rank=stage.lora.rank, alpha=1, dropout=stage.lora.dropout)
    freeze(model, stage.learning_rates.by_part())
    hold_frozen(model, getattr(torch, stage.frozen_dtype), computes_in=dtype)
    if stage.gradient_checkpointing:
        recompute_activations(model)
        model.disable_input_require_grads()
    with MemoryCount() as memory:
        inputs = measured_step.batch(batch.rows, batch.length, batch.supervised)
        for tensor in (*model.parameters(), *model.buffers()):
            memory.known(tensor)
        for _ in range(stage.batch_size // stage.micro):
            memory.peak = memory.now
            with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
                loss = model(**inputs, supervised_logits_only=True, use_cache=False).loss
            loss.backward()
            del loss
    return memory.peak - sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("setting", SETTINGS, ids=" ".join)
def test_the_estimate_holds_what_tensors_a_real_step_takes(setting, recipe_file):
    dtype, *overrides = setting
    stage = load_recipe(recipe_file, overrides).stages[0]
    config, batch = (
        measured_step.config(width=64, layers=2),
        Batch(rows=4, length=96, images=4, supervised=80),
    )
    computes_in = getattr(torch, dtype)
    got = step_memory(
        config, stage, batch, dtype=computes_in, accumulates=stage.batch_size > stage.micro, device="cpu"
    )
    # The real step also has to find out which tokens are visual and supervised.
    assert got.activations == pytest.approx(real_step(config, stage, batch, computes_in), rel=0.05)


@pytest.mark.slow  # 15 to 60 seconds each: a process of its own, with training steps of a 30 M model
@pytest.mark.parametrize("setting", SETTINGS, ids=" ".join)
def test_a_process_grows_by_what_was_estimated(setting, recipe_file):
    dtype, *overrides = setting
    arguments = ["4", "384", "1000", dtype, str(recipe_file), *overrides]
    run = subprocess.run(
        [sys.executable, measured_step.__file__, *arguments],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    stage = load_recipe(recipe_file, overrides).stages[0]
    batch = Batch(rows=4, length=384, images=4, supervised=1000)
    got = step_memory(
        measured_step.config(),
        stage,
        batch,
        dtype=getattr(torch, dtype),
        accumulates=stage.batch_size > stage.micro,
        device="cpu",
    )
    print(f"{' '.join(setting)}: measured {int(run.stdout) / 1e6:.0f} MB, estimated {got.total / 1e6:.0f} MB")
    assert got.total == pytest.approx(int(run.stdout), rel=0.15)


def test_memory_is_less_where_it_should_be(recipe_file):
    config, batch = measured_step.config(width=64, layers=2), Batch(4, 96, 4, 80)

    def of(*overrides):
        stage = load_recipe(recipe_file, overrides).stages[0]
        return step_memory(config, stage, batch, dtype=torch.bfloat16)

    full, frozen, lora = of(), of(FROZEN), of(LORA)
    qlora = of("stages.0.lora={rank: 16, quantize: nf4}")
    assert (
        frozen.gradients + frozen.optimizer
        < lora.gradients + lora.optimizer
        < full.gradients + full.optimizer
    )
    assert full.gradients == 4 * sum(full.trained.values()) and full.optimizer == 2 * full.gradients
    assert of(FROZEN, "stages.0.frozen_dtype=bfloat16").weights < 0.75 * frozen.weights
    stage = load_recipe(recipe_file).stages[0]
    whole = step_memory(config, stage, batch, dtype=torch.bfloat16, accumulates=True)
    gathered = step_memory(config, stage, batch, dtype=torch.bfloat16, gathers=True)
    assert (gathered.weights, gathered.gradients) == (whole.weights, whole.gradients)
    assert gathered.activations < whole.activations  # without autocast's copies of the layers' weights
    assert qlora.weights < lora.weights and qlora.activations < lora.activations


def test_the_loss_takes_the_pieces_of_the_device_that_is_meant(recipe_file):
    stage, config = load_recipe(recipe_file).stages[0], measured_step.config(width=64, layers=1)
    batch = Batch(rows=1, length=80, images=1, supervised=10_000)  # next to nothing but the loss
    cpu, gpu = (
        step_memory(config, stage, batch, dtype=torch.float32, device=device) for device in ("cpu", "cuda")
    )
    logits = batch.supervised * config.llm.vocab_size  # fewer than a GPU's piece
    assert floats_at_a_time("cpu") < logits < floats_at_a_time("cuda")
    assert gpu.activations - cpu.activations == pytest.approx(
        4 * (logits - floats_at_a_time("cpu")), rel=0.01
    )


# A whole recipe


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            (128, 4),
            "batch_size 128 does not divide into .* of 4 on 64 processes; set micro_batch_size to 2, or batch",
        ),
        (
            (96, 1),
            "batch_size 96 does not .*; set batch_size to a multiple of 64, or take a number of processes",
        ),
        ((32, 8), "batch_size 32 does not .*; set batch_size to a multiple of 512, or take"),
        ((128, 2), None),
    ],
)
def test_a_batch_that_so_many_devices_cannot_share_has_no_estimate(tiny, sizes, message):
    whole = ("stages.0.batch_size=64", "stages.0.micro_batch_size=1")
    recipe = tiny.recipe(*whole, f"stages.1.batch_size={sizes[0]}", f"stages.1.micro_batch_size={sizes[1]}")
    with pytest.raises(ValueError, match=f"stage instruct: {message}") if message else nullcontext():
        estimate(recipe, gpus=64, length=64)


def test_devices_share_what_the_recipe_says(tiny):
    def of(parallel, gpus, batch_size=32):
        sizes = (
            "stages.0.micro_batch_size=1",
            f"stages.1.batch_size={batch_size}",
            "stages.1.micro_batch_size=4",
        )
        return estimate(tiny.recipe(f"parallel={parallel}", *sizes), gpus=gpus, length=64)[1]

    one, ddp, zero2, fsdp2 = of("ddp", 1), of("ddp", 2), of("zero2", 2), of("fsdp2", 2)
    assert (ddp.weights, ddp.gradients, ddp.optimizer) == (one.weights, one.gradients, one.optimizer)
    assert ddp.peak == one.peak  # gradients are exchanged where they are
    assert of("ddp", 2, batch_size=8).peak == ddp.peak  # and have their room also where none are added up
    assert of("ddp", 1, batch_size=4).peak < one.peak
    half = (one.weights, one.gradients / 2, one.optimizer / 2)
    assert (zero2.weights, zero2.gradients, zero2.optimizer) == half
    assert (fsdp2.weights, fsdp2.gradients) == (one.weights / 2, one.gradients / 2)
    assert fsdp2.activations > zero2.activations == one.activations  # gathered layers
    assert one.flops == fsdp2.flops


def test_time_follows_from_samples_flops_and_devices(tiny):
    stage = estimate(tiny.recipe("stages.0.steps=10"), text_tokens=100, length=64)[0]
    assert (stage.samples, stage.usual_length) == (40, 4 + 100)
    seconds = 40 * stage.flops / (2 * 100e12 * 0.5)
    assert stage.hours(gpus=2, tflops=100, utilisation=0.5) == pytest.approx(seconds / 3600)
    elsewhere = tiny.recipe("stages.0.steps=null", "stages.0.data={path: elsewhere.json}")
    assert estimate(elsewhere, length=64)[0].hours(1, 100, 0.5) is None


def test_records_at_hand_are_counted(tiny):
    pretrain = estimate(tiny.recipe("stages.0.steps=null", "stages.0.epochs=2"), length=32)[0]
    assert pretrain.samples == 24


def test_a_file_at_hand_is_counted_though_its_name_is_known(tiny, tmp_path):
    known = tmp_path / "llava_v1_5_mix665k.json"
    known.write_bytes(tiny.data.read_bytes())
    for path, samples in ((known, 12), ("elsewhere/llava_v1_5_mix665k.json", 665_298)):
        recipe = tiny.recipe("stages.0.steps=null", f"stages.0.data.path={path}")
        assert estimate(recipe, length=32)[0].samples == samples


def test_the_command_says_whether_it_fits(tiny):
    split = [word for stage in (0, 1) for word in ("--set", f"stages.{stage}.micro_batch_size=2")]
    arguments = ["estimate", str(tiny.recipe_file), "--length", "64", "--gpus", "2"]
    shown = CliRunner().invoke(app, [*arguments, *split])
    assert shown.exit_code == 0, shown.stderr
    assert "each of 2 devices (ddp), GB of 80" in shown.stdout and "Does not fit" not in shown.stdout
    assert "2 x 64" in shown.stdout and "visual_qkv" in shown.stdout
    refused = CliRunner().invoke(app, arguments)
    assert (
        refused.exit_code == 2
        and "micro-batches of 4 on 2 processes; set micro_batch_size to 2" in refused.stderr
    )
    shown = CliRunner().invoke(
        app, ["estimate", str(tiny.recipe_file), "--length", "64", "--memory", "0.0001"]
    )
    assert "NO" in shown.stdout and "Does not fit: try" in shown.stdout


def test_a_model_out_of_reach_is_named_with_what_to_do(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = ["estimate", str(tiny.recipe_file), "--set", "model.llm=some/llm", "--length", "64"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 2
    assert "'some/llm' is out of reach" in shown.stderr and "--config-dir DIR" in shown.stderr
    (tmp_path / "some/llm").mkdir(parents=True)
    AutoConfig.from_pretrained(tiny.llm).save_pretrained(tmp_path / "some/llm")
    shown = CliRunner().invoke(app, [*arguments, "--config-dir", str(tmp_path)])
    assert shown.exit_code == 0, shown.stderr


def test_a_checkpoint_is_estimated_from_its_configuration(tiny, tmp_path):
    tiny.build().model.config.save_pretrained(tmp_path)
    recipe = tiny.recipe(f"model={{checkpoint: {tmp_path}}}")
    assert [stage.memory.parameters for stage in estimate(recipe, length=64)] == [
        {
            part: sum(p.numel() for p in members.values())
            for part, members in parameters_by_part(model).items()
        }
        for model in [tiny.build().model] * 2
    ]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llavit"


def test_rows_without_room_for_an_image_are_an_error(recipe_file):
    with pytest.raises(ValueError, match="expected rows of more than the 1369 tokens of an image, got 100"):
        estimate(load_recipe(recipe_file), length=100)
