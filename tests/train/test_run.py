import json
import os
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
import yaml
from PIL import Image
from transformers import CLIPImageProcessorPil, Dinov2Model, TrainerCallback

from llavit import LlavitForConditionalGeneration, LlavitProcessor, precision
from llavit.train import run as run_module
from llavit.train.parts import parameters_by_part
from llavit.train.progress import read_step_log
from llavit.train.recipe import RECIPES, load_recipe
from llavit.train.run import train
from llavit.train.stopping import EXIT_STATUS
from llavit.train.store import checkpoints
from llavit.train.trainer import LlavitTrainer
from tests.model.families import SIDE, TOWERS
from tests.train.processes import train_in


def losses(folder):
    rows = read_step_log(folder / "train_log.jsonl")
    return [(row["step"], row["loss"], row["grad_norm"], row["lr_projector"]) for row in rows]


def weights(folder):
    model = LlavitForConditionalGeneration.from_pretrained(folder)
    return {
        part: {name: parameter.detach() for name, parameter in parameters.items()}
        for part, parameters in parameters_by_part(model).items()
    }


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """Both stages, trained once."""
    folder = tmp_path_factory.mktemp("run") / "out"
    result = train(tiny.recipe(), output=folder, progress=False)
    assert result == folder / "instruct"
    return folder


def test_a_stage_may_pad_images_and_its_model_does_so_from_then_on(tiny, tmp_path):
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    seen = {}
    step = LlavitTrainer.training_step

    def watched(self, model, inputs, *args):
        seen[self.stage.name] = inputs["pixel_values"]
        return step(self, model, inputs, *args)

    recipe = tiny.recipe("stages.1.image_aspect_ratio=pad", "stages.0.steps=1", "stages.1.steps=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlavitTrainer, "training_step", watched)
        train(recipe, output=tmp_path, progress=False)
    # The pictures are 20 x 18 and of one colour each: padded, they have a margin above and below.
    edges = {name: (pixels[0][:, 0] - pixels[0][:, 8]).abs().max() for name, pixels in seen.items()}
    assert edges["pretrain"] < 1e-3 and edges["instruct"] > 0.1
    processors = [LlavitProcessor.from_pretrained(tmp_path / name) for name in ("pretrain", "instruct")]
    assert torch.equal(
        processors[0].with_padding().pixel_values([image]), processors[1].pixel_values([image])
    )
    assert not torch.equal(processors[0].pixel_values([image]), processors[1].pixel_values([image]))


def test_each_stage_moves_what_trains_and_leaves_the_rest_equal_to_the_bit(run, tiny):
    torch.manual_seed(0)
    start = {
        part: {name: parameter.detach() for name, parameter in parameters.items()}
        for part, parameters in parameters_by_part(tiny.build().model).items()
    }
    pretrained, instructed = weights(run / "pretrain"), weights(run / "instruct")

    def moved(before, after, part):
        assert before[part].keys() == after[part].keys()
        return [not torch.equal(before[part][name], after[part][name]) for name in before[part]]

    assert not any(moved(start, pretrained, "vision_tower"))
    assert not any(moved(start, pretrained, "llm"))
    assert all(moved(start, pretrained, "projector"))
    # What visual tokens look for in the last layer changes visual tokens only, which nothing reads any more.
    still = [
        name
        for name in start["visual_qkv"]
        if torch.equal(*(w["visual_qkv"][name] for w in (start, pretrained)))
    ]
    assert still == ["model.language_model.layers.1.self_attn.q_proj.visual.weight"]
    assert not any(moved(pretrained, instructed, "vision_tower"))
    assert all(moved(pretrained, instructed, "projector"))
    assert all(moved(pretrained, instructed, "llm"))


def test_a_stage_folder_holds_model_processor_log_and_recipe(run, tiny):
    for stage, steps in (("pretrain", 4), ("instruct", 2)):
        _, info = LlavitForConditionalGeneration.from_pretrained(run / stage, output_loading_info=True)
        assert not any(info.values())
        processor = LlavitProcessor.from_pretrained(run / stage)
        assert processor.encode([{"role": "user", "content": "Hi"}])["input_ids"].numel()
        rows = read_step_log(run / stage / "train_log.jsonl")
        assert [row["step"] for row in rows] == list(range(1, steps + 1))
        assert {"loss", "grad_norm", "lr_projector", "seconds", "samples", "supervised_tokens"} <= rows[
            0
        ].keys()
        assert not (run / stage / "training_args.bin").exists()
        assert not (run / f"{stage}.work").exists()
    assert load_recipe(run / "recipe.yaml").stages == tiny.recipe().stages


def test_the_same_recipe_gives_the_same_run_to_the_bit(run, tiny, tmp_path):
    train(tiny.recipe(), output=tmp_path, progress=False)
    assert losses(tmp_path / "instruct") == losses(run / "instruct")
    assert (tmp_path / "instruct/model.safetensors").read_bytes() == (
        run / "instruct/model.safetensors"
    ).read_bytes()


def test_a_second_run_trains_nothing(run, tiny, monkeypatch):
    monkeypatch.setattr(LlavitTrainer, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    before = (run / "instruct/model.safetensors").stat().st_mtime_ns
    assert train(tiny.recipe(), output=run, progress=False) == run / "instruct"
    assert train(tiny.recipe("stages.0.micro_batch_size=2"), output=run, progress=False) == run / "instruct"
    assert (run / "instruct/model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        (
            "stages.0.learning_rates.projector=0.5",
            "pretrain .*stage.learning_rates.projector: 0.01 there, 0.5 here",
        ),
        ("stages.1.batch_size=2", "instruct .*stage.batch_size: 4 there, 2 here"),
        ("seed=1", "pretrain .*seed: 0 there, 1 here"),
        ("model.visual_qkv=false", "pretrain .*model.visual_qkv: True there, False here"),
        ("stages.1.data.limit=3", "instruct .*stage.data.records: "),
    ],
)
def test_another_recipe_does_not_pass_for_the_one_that_was_run(run, tiny, override, difference):
    with pytest.raises(ValueError, match=f"(?s){difference}") as error:
        train(tiny.recipe(override), output=run, progress=False)
    assert "Choose another output folder, or delete" in str(error.value)


def test_other_data_in_the_same_place_does_not_pass_for_the_same(run, tiny, tmp_path):
    moved = tmp_path / "moved.json"
    moved.write_bytes(tiny.data.read_bytes())
    stays = f"stages.0.data={{path: {moved}, image_folder: null}}"
    assert train(tiny.recipe(stays), output=run, progress=False) == run / "instruct"
    moved.write_text(json.dumps(json.loads(tiny.data.read_text())[::-1]))
    with pytest.raises(ValueError, match=r"pretrain comes from another training:\s+stage.data.records: "):
        train(tiny.recipe(stays), output=run, progress=False)


def test_a_folder_that_is_no_run_is_left_alone(tiny, tmp_path):
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain/thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="pretrain exists and was not made by a training run"):
        train(tiny.recipe(), output=tmp_path, progress=False)
    assert (tmp_path / "pretrain/thesis.txt").read_text() == "mine"


def test_a_fresh_run_can_be_asked_for(run, tiny):
    with pytest.raises(ValueError, match="already holds a run; choose another output folder, or resume"):
        train(tiny.recipe(), output=run, progress=False, resume=False)


EVERY_OTHER_STEP = [(0, "pretrain", 1), (1, "pretrain", 0), (2, "pretrain", 1), (4, "instruct", 0)]


@pytest.mark.parametrize(
    ("step", "stage", "workers"),
    [
        (3, "pretrain", 0),
        (5, "instruct", 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in EVERY_OTHER_STEP),
    ],
)
def test_a_killed_run_resumes_to_the_same_losses_and_weights_to_the_bit(
    run, tiny, tmp_path, step, stage, workers
):
    overrides = [
        f"stages.{index}.{option}" for index in (0, 1) for option in ("save_every=1", f"workers={workers}")
    ]
    overrides[0] = "stages.0.save_every=2"
    statuses = train_in(tmp_path, tiny.recipe_file, *overrides, send=signal.SIGKILL, step=step)
    assert statuses == [-signal.SIGKILL]
    assert not (tmp_path / stage).exists()
    assert len(losses(tmp_path / f"{stage}.work")) == (step if stage == "pretrain" else step - 4)
    (tmp_path / f"{stage}.work/unfinished/checkpoint-9").mkdir(parents=True)  # as if killed while saving

    train(tiny.recipe(*overrides), output=tmp_path, progress=False)
    assert losses(tmp_path / "pretrain") == losses(run / "pretrain")
    assert losses(tmp_path / "instruct") == losses(run / "instruct")
    assert (tmp_path / "instruct/model.safetensors").read_bytes() == (
        run / "instruct/model.safetensors"
    ).read_bytes()
    assert not (tmp_path / f"{stage}.work").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_is_told_to_stop_saves_leaves_and_goes_on_to_the_bit(run, tiny, tmp_path, workers):
    overrides = [f"stages.0.workers={workers}", f"stages.1.workers={workers}"]  # and no `save_every`
    statuses = train_in(tmp_path, tiny.recipe_file, *overrides, send=signal.SIGTERM, step=1, group=True)
    assert statuses == [EXIT_STATUS]
    assert [path.name for path in checkpoints(tmp_path / "pretrain.work")] == ["checkpoint-2"]
    train(tiny.recipe(*overrides), output=tmp_path, progress=False)
    assert losses(tmp_path / "pretrain") == losses(run / "pretrain")
    assert (tmp_path / "instruct/model.safetensors").read_bytes() == (
        run / "instruct/model.safetensors"
    ).read_bytes()


def test_a_run_that_trains_a_dinov2_goes_on_to_the_bit(tiny, tmp_path):
    tower = tmp_path / "tower"
    torch.manual_seed(0)
    Dinov2Model(TOWERS["dinov2"]()).save_pretrained(tower)  # its weights have other names on disk
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(tower)
    overrides = [
        f"model.vision={tower}",
        "stages.0.learning_rates.vision_tower=1e-2",
        "stages.0.save_every=2",
    ]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(tiny.recipe(*overrides), output=whole, progress=False)
    assert train_in(killed, tiny.recipe_file, *overrides, send=signal.SIGKILL, step=3) == [-signal.SIGKILL]
    train(tiny.recipe(*overrides), output=killed, progress=False)
    for stage in ("pretrain", "instruct"):
        assert losses(killed / stage) == losses(whole / stage)
    file = "instruct/model.safetensors"
    assert (killed / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.slow  # torchrun starts three Python processes, one after the other
def test_torchrun_passes_sigterm_on_and_the_same_command_goes_on(run, tiny, tmp_path):
    overrides = ["stages.0.micro_batch_size=2", "stages.1.micro_batch_size=2", "stages.0.steps=150"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "llavit.cli", "train", str(tiny.recipe_file), "--output", str(tmp_path)]
    command += [word for override in overrides for word in ("--set", override)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    log = tmp_path / "pretrain.work/train_log.jsonl"
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not read_step_log(log) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "was told to stop and saved step" in err
    (saved,) = checkpoints(tmp_path / "pretrain.work")
    step = int(saved.name.rpartition("-")[2])
    assert 0 < step < 150
    subprocess.run(command, env=environment, timeout=240, check=True, capture_output=True)
    assert [row["step"] for row in read_step_log(tmp_path / "pretrain/train_log.jsonl")] == list(
        range(1, 151)
    )


def test_worker_processes_change_nothing(run, tiny, tmp_path):
    train(tiny.recipe("stages.0.workers=1", "stages.1.workers=1"), output=tmp_path, progress=False)
    assert losses(tmp_path / "instruct") == losses(run / "instruct")


def test_a_run_stopped_after_its_last_checkpoint_only_publishes(run, tiny, tmp_path, monkeypatch):
    recipe = tiny.recipe("stages.0.save_every=2")
    with monkeypatch.context() as patch:
        patch.setattr(
            LlavitTrainer, "save_model", lambda self, folder, _internal_call=False: crash(self, folder)
        )
        with pytest.raises(KeyboardInterrupt):
            train(recipe, output=tmp_path, progress=False)
    train(recipe, output=tmp_path, progress=False)
    assert losses(tmp_path / "pretrain") == losses(run / "pretrain")
    assert (tmp_path / "pretrain/model.safetensors").read_bytes() == (
        run / "pretrain/model.safetensors"
    ).read_bytes()


def crash(trainer, folder):
    """Save checkpoints, but stop halfway through the result."""
    if "checkpoint" in folder:
        trainer.model.save_pretrained(folder)
    else:
        trainer.model.config.save_pretrained(folder)
        raise KeyboardInterrupt


def test_a_typo_in_the_last_stage_shows_before_the_first_one_runs(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such data file: absent.json"):
        train(tiny.recipe("stages.1.data.path=absent.json"), output=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_training_goes_on_from_a_checkpoint(run, tiny, tmp_path):
    recipe = tiny.recipe(f"model={{checkpoint: {run / 'pretrain'}}}", "stages.0.steps=1", "stages.1.steps=1")
    train(recipe, output=tmp_path, progress=False)
    before, after = weights(run / "pretrain"), weights(tmp_path / "pretrain")
    assert all(torch.equal(before["llm"][name], after["llm"][name]) for name in before["llm"])


def test_left_out_records_are_written_beside_the_result(tiny, tmp_path):
    rows = json.loads(tiny.data.read_text())
    rows[0]["image"] = "absent.png"
    data = tiny.data.with_name("torn.json")
    data.write_text(json.dumps(rows))
    recipe = tiny.recipe(f"stages.0.data={{path: {data}, on_error: skip}}", "stages.1.steps=1")
    train(recipe, output=tmp_path, progress=False)
    skipped = [json.loads(line) for line in (tmp_path / "pretrain/skipped.jsonl").read_text().splitlines()]
    assert [row["id"] for row in skipped] == ["i0 (#0)"]
    assert "absent.png" in skipped[0]["reason"]


def test_a_run_that_a_bad_record_stopped_goes_on_when_told_to_skip_it(tiny, tmp_path):
    rows = json.loads(tiny.data.read_text())
    rows[0]["image"] = "absent.png"
    data = tiny.data.with_name("torn.json")
    data.write_text(json.dumps(rows))
    stops = ["stages.0.save_every=1", f"stages.0.data={{path: {data}}}", "stages.1.steps=1"]
    with pytest.raises(ValueError, match=r"i0 \(#0\).*absent.png"):
        train(tiny.recipe(*stops), output=tmp_path, progress=False)
    train(tiny.recipe(*stops, "stages.0.data.on_error=skip"), output=tmp_path, progress=False)
    assert [row["step"] for row in read_step_log(tmp_path / "pretrain/train_log.jsonl")] == [1, 2, 3, 4]


def test_the_readme_runs(monkeypatch):
    called = []
    monkeypatch.setattr("llavit.train.run.train", lambda recipe, **options: called.append((recipe, options)))
    text = (RECIPES.parent / "README.md").read_text()
    exec(text.split("```python\n")[1].split("```")[0], {})
    ((recipe, options),) = called
    assert (recipe.stages[0].steps, recipe.stages[1].learning_rates.llm) == (100, 1e-5)
    assert options == {"output": "runs/try"}


def test_an_unknown_starter_part_is_an_error(tiny, tmp_path):
    with pytest.raises(
        ValueError, match="unknown starter part 'starter:eye', expected one of starter:llm, starter:tower"
    ):
        train(tiny.recipe("model.vision=starter:eye"), output=tmp_path, progress=False)


def test_the_recipe_in_the_folder_is_complete(run):
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    assert values["stages"][0]["schedule"] == "cosine"
    assert values["output"] == str(run)


def test_progress_is_plain_lines_where_there_is_no_terminal(tiny, tmp_path, capfd):
    train(tiny.recipe("stages.1.steps=1"), output=tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Stage pretrain: 12 records" in err
    assert "pretrain  step 4/4  loss " in err and "supervised tokens/s" in err
    assert "\x1b" not in err and "it/s" not in err


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"avx512f", "amx_bf16"}, torch.bfloat16),
        ({"avx512_bf16"}, torch.bfloat16),
        ({"avx512f"}, torch.float32),
        (set(), torch.float32),
    ],
)
def test_auto_computes_in_bfloat16_only_where_the_cpu_is_fast_at_it(monkeypatch, flags, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags))
    assert precision.resolve_dtype("auto")[0] is dtype
    assert precision.resolve_dtype("bfloat16") == (torch.bfloat16, "as asked")


@pytest.mark.parametrize(("options", "seconds"), [((), 7200), (("timeout_minutes=0.5",), 30)])
def test_processes_wait_for_each_other_as_long_as_the_recipe_says(tiny, tmp_path, options, seconds):
    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            raise Waits(args.ddp_timeout)

    class Waits(Exception):
        pass

    with pytest.raises(Waits, match=f"^{seconds}$"):
        train(tiny.recipe(*options), output=tmp_path, progress=False, callbacks=[Watch()])


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_process_says_what_it_computes_in(tiny, tmp_path, monkeypatch, caplog, first):
    monkeypatch.setattr("llavit.train.run.is_first_process", lambda: first)
    monkeypatch.setattr("llavit.train.run._train", lambda *args: tmp_path)
    with caplog.at_level("INFO", logger="llavit"):
        train(tiny.recipe("dtype=float32"), output=tmp_path, progress=False)
    assert caplog.messages == (["computing in float32: as asked"] if first else [])


def test_nothing_of_a_stage_lives_on_in_the_next_one_or_after_the_last(tiny, tmp_path, monkeypatch):
    """Weights, gradients, optimizer, data: the memory of a run is that of its largest stage."""
    alive = []
    loaded = []

    class Watched(LlavitTrainer):
        def train(self, *args, **kwargs):
            result = super().train(*args, **kwargs)
            parts = {
                "trainer": self,
                "model": self.model,
                "optimizer": self.optimizer,
                "data": self.train_dataset,
            }
            parts["optimizer state"] = next(iter(self.optimizer.optimizer.state.values()))["exp_avg"]
            alive.extend((f"{self.stage.name}'s {name}", weakref.ref(part)) for name, part in parts.items())
            return result

    def load(source):
        loaded.append([name for name, part in alive if part() is not None])
        return original(source)

    original = run_module._load
    monkeypatch.setattr(run_module, "LlavitTrainer", Watched)
    monkeypatch.setattr(run_module, "_load", load)
    train(tiny.recipe("compile=never"), output=tmp_path, progress=False)
    assert loaded == [[]]
    assert [name for name, part in alive if part() is not None] == []


@pytest.mark.parametrize("pack", ["null", "64"])
def test_attention_over_documents_trains_as_sdpa_does(tiny, tmp_path, pack):
    losses = {}
    for attention in ("sdpa", "documents"):
        recipe = tiny.recipe(
            f"attention={attention}", f"stages.0.pack_length={pack}", f"stages.1.pack_length={pack}"
        )
        train(recipe, output=tmp_path / attention, progress=False)
        rows = [
            row
            for stage in ("pretrain", "instruct")
            for row in read_step_log(tmp_path / attention / stage / "train_log.jsonl")
        ]
        losses[attention] = [row["loss"] for row in rows]
    assert losses["documents"] == pytest.approx(losses["sdpa"], rel=1e-5)  # float32: sums in another order


def test_the_names_of_a_run_are_those_before_new_options_came(run, tiny):
    record = json.loads((run / "pretrain/stage.json").read_text())
    assert set(record["stage"]["learning_rates"]) == {"vision_tower", "projector", "visual_qkv", "llm"}
    assert not {"projector_width", "visual_qkv_start"} & set(record["model"])


def test_callbacks_are_called_in_every_stage(tiny, tmp_path):
    class Steps(TrainerCallback):
        seen: ClassVar[list] = []

        def on_step_end(self, args, state, control, **kwargs):
            self.seen.append((os.path.basename(args.output_dir), state.global_step))

    overrides = ("stages.0.steps=1", "stages.1.steps=2", "model.projector_width=40")
    folder = train(tiny.recipe(*overrides), output=tmp_path, progress=False, callbacks=[Steps()])
    assert Steps.seen == [("pretrain.work", 1), ("instruct.work", 1), ("instruct.work", 2)]
    model = LlavitForConditionalGeneration.from_pretrained(folder)
    assert model.model.multi_modal_projector.linear_1.out_features == 40


def test_an_llm_that_knows_no_sdpa_trains_where_attention_is_left_to_choose(tiny, tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from tests.tiny import HEAD_DIM, tokenizer

    words = tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": HEAD_DIM}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(words)}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, **ends)).save_pretrained(tmp_path / "llm")
    words.save_pretrained(tmp_path / "llm")
    recipe = tiny.recipe(f"model.llm={tmp_path / 'llm'}", "stages.0.steps=1", "stages.1.steps=1")
    assert (train(recipe, output=tmp_path / "run", progress=False) / "config.json").is_file()


def test_a_checkpoint_whose_template_ends_no_answer_is_told_and_may_have_another(tiny, tmp_path, caplog):
    model, processor = tiny.build()
    model.save_pretrained(tmp_path / "llava")
    turn = "{{ m['role'] }}: {% generation %}{{ m['content'] }} {% endgeneration %}"  # as llava-hf's
    endless = f"{{% for m in messages %}}{turn}{{% endfor %}}"
    processor.with_chat_template(endless).save_pretrained(tmp_path / "llava")
    changes = ["model.vision=null", "model.llm=null", "model.vision_feature_layer=-2", "stages.0.steps=1"]
    recipe = tiny.recipe(f"model.checkpoint={tmp_path / 'llava'}", *changes, "stages.1.steps=1")
    with caplog.at_level("WARNING", "llavit"):
        train(recipe, output=tmp_path / "endless", progress=False)
        assert "stage pretrain: no end-of-turn token is among what is learned" in caplog.text
        caplog.clear()
        another = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        ended = replace(recipe, model=replace(recipe.model, chat_template=another))
        train(ended, output=tmp_path / "ended", progress=False)
    assert "end-of-turn" not in caplog.text
