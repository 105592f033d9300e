import functools
import json
import re

import pytest
import torch
from transformers import Trainer, TrainerCallback

from llavit import LlavitForConditionalGeneration
from llavit.data import Collator, ConversationDataset, SkipLog, open_reader
from llavit.model.compat import recompute_activations
from llavit.train import arguments as arguments_module
from llavit.train import trainer as trainer_module
from llavit.train.arguments import total_samples, training_arguments
from llavit.train.order import SeededOrder
from llavit.train.store import checkpoints
from llavit.train.trainer import LlavitTrainer, load_weights
from tests.model.families import LLMS, config_of


class Watch(TrainerCallback):
    """Keeps the gradients before each optimizer step, and the logs."""

    def __init__(self):
        self.gradients, self.logs = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        named = model.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.logs.append(logs)


def test_the_first_process_says_how_far_lengths_are_read(trainer, monkeypatch, caplog):
    monkeypatch.setattr(
        trainer_module, "now_and_then", functools.partial(trainer_module.now_and_then, every=0)
    )
    made = trainer("stages.0.group_by_length=true")
    with caplog.at_level("INFO", logger="llavit"):
        made.get_train_dataloader()
        first = list(caplog.messages)
        monkeypatch.setattr(made, "is_world_process_zero", lambda: False)
        made.get_train_dataloader()
    assert first[-1] == "stage pretrain: lengths of the records: 12 of 12" and len(first) == 12
    assert caplog.messages == first


@pytest.fixture
def trainer(tiny, tmp_path):
    def make(*overrides, stage=0, model=None, data=None, dtype=torch.float32, fsdp2=False):
        if model is None:
            torch.manual_seed(0)
            model = tiny.build().model
        made = tiny.recipe(*overrides).stages[stage]
        reader = open_reader(data or tiny.data)
        dataset = ConversationDataset(reader, tiny.build().processor, on_error=made.data.on_error)
        args = training_arguments(made, tmp_path, records=len(reader), seed=0, dtype=dtype)
        watch = Watch()
        log = SkipLog(max_skipped=made.data.max_skipped)
        built = LlavitTrainer(model, made, args, dataset, Collator(0), log, callbacks=[watch], fsdp2=fsdp2)
        built.watch = watch
        return built

    return make


def test_loss_and_gradient_are_the_same_for_any_split_into_micro_batches(trainer):
    seen = {}
    for micro in (4, 2, 1):
        run = trainer(f"stages.0.micro_batch_size={micro}", "stages.0.steps=1", "stages.0.max_grad_norm=0")
        run.train()
        seen[micro] = run.watch
    for micro in (2, 1):
        assert seen[micro].logs[0]["loss"] == pytest.approx(seen[4].logs[0]["loss"], rel=1e-5)
        assert seen[micro].logs[0]["supervised_tokens"] == seen[4].logs[0]["supervised_tokens"]
        assert seen[micro].gradients[0].keys() == seen[4].gradients[0].keys()
        for name, gradient in seen[4].gradients[0].items():
            # float32: sums in another order
            torch.testing.assert_close(seen[micro].gradients[0][name], gradient, rtol=1e-3, atol=1e-7)


def test_the_loss_is_the_mean_over_supervised_tokens_of_the_whole_batch(trainer, tiny):
    run = trainer("stages.0.micro_batch_size=1", "stages.0.steps=1")
    order = list(run._get_train_sampler())
    batch = Collator(0)([run.train_dataset[i] for i in order])
    with torch.no_grad():
        keys = ("input_ids", "attention_mask", "image_ids", "labels", "pixel_values")
        expected = run.model(**{key: batch[key] for key in keys}).loss.item()
    run.train()
    assert run.watch.logs[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert run.watch.logs[0]["supervised_tokens"] == (batch["labels"] != -100).sum()
    assert run.watch.logs[0]["samples"] == 4


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_and_names_the_samples(trainer):
    run = trainer("stages.0.steps=2", "stages.0.micro_batch_size=2")
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    run.model.lm_head.register_forward_hook(lambda module, args, output: output * float("nan"))
    order = list(run._get_train_sampler())
    with pytest.raises(FloatingPointError, match="stage pretrain, step 1: the loss is nan") as error:
        run.train()
    for index in order[:4]:
        assert f"(#{index})" in str(error.value)
    assert all(torch.equal(before[name], p) for name, p in run.model.named_parameters())


def test_a_gradient_that_is_not_finite_stops_before_the_optimizer(trainer):
    run = trainer("stages.0.steps=2")
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    weight = run.model.model.multi_modal_projector.linear_1.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="step 1: the gradient norm is"):
        run.train()
    assert all(torch.equal(before[name], p) for name, p in run.model.named_parameters())


def test_the_order_of_samples_depends_on_the_seed_alone():
    order = list(SeededOrder(10, 25, seed=1))
    assert order == list(SeededOrder(10, 25, seed=1))
    assert order != list(SeededOrder(10, 25, seed=2))
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert order == list(SeededOrder(10, 40, seed=1))[:25]


@pytest.mark.parametrize(
    ("overrides", "samples"),
    [
        (["steps=3"], 12),
        (["steps=null", "epochs=2"], 24),
        (["steps=null", "epochs=0.5"], 6),
        (["steps=5"], 20),
    ],
)
def test_a_stage_draws_the_samples_of_its_steps_or_epochs(trainer, overrides, samples):
    run = trainer(*(f"stages.0.{override}" for override in overrides))
    assert total_samples(run.stage, 12) == samples
    run.train()
    assert sum(log["samples"] for log in run.watch.logs) == samples
    assert run.state.global_step == -(-samples // 4)


def test_each_part_follows_the_schedule_at_its_own_rate(trainer):
    run = trainer("stages.0.steps=4", "stages.0.warmup_ratio=0.5", "stages.0.schedule=linear")
    run.train()
    assert [log["lr_projector"] for log in run.watch.logs] == pytest.approx([0, 5e-3, 1e-2, 5e-3])
    assert [log["lr_visual_qkv"] for log in run.watch.logs] == pytest.approx([0, 2.5e-3, 5e-3, 2.5e-3])
    assert all("lr_llm" not in log for log in run.watch.logs)


def bad_data(folder, bad):
    rows = [
        {"id": i, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": f"word {i}"}]}
        for i in range(8)
    ]
    for index in bad:
        rows[index] |= {"image": "absent.png"}
        rows[index]["conversations"][0]["value"] = "<image>"
    (folder / "bad.json").write_text(json.dumps(rows))
    return folder / "bad.json"


SKIP = ("stages.0.data.on_error=skip", "stages.0.micro_batch_size=1")


def test_bad_records_are_left_out_and_counted(trainer, tmp_path):
    run = trainer(*SKIP, data=bad_data(tmp_path, [1, 6]))  # micro-batches of one: some are empty
    run.train()
    assert sorted(run.skip_log.skipped) == ["1 (#1)", "6 (#6)"]
    assert "absent.png" in run.skip_log.skipped["1 (#1)"].reason
    assert sum(log["samples"] for log in run.watch.logs) == 2 * 8 - 2 * 2
    assert all(torch.isfinite(torch.tensor(log["loss"])) for log in run.watch.logs)


def test_a_left_out_record_changes_the_step_as_if_it_were_not_there(trainer, tmp_path):
    run = trainer(*SKIP, "stages.0.steps=1", "stages.0.batch_size=8", data=bad_data(tmp_path, [1]))
    run.train()
    good = Collator(0)([run.train_dataset[i] for i in (0, 2, 3, 4, 5, 6, 7)])
    torch.manual_seed(0)
    fresh = trainer("stages.0.steps=1").model
    with torch.no_grad():
        expected = fresh(
            **{key: good[key] for key in ("input_ids", "attention_mask", "image_ids", "labels")}
        ).loss
    assert run.watch.logs[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_step_without_any_good_record_teaches_nothing(trainer, tmp_path):
    run = trainer(*SKIP, "stages.0.steps=2", data=bad_data(tmp_path, range(8)))
    run.train()
    assert [log["loss"] for log in run.watch.logs] == [0, 0]
    assert [log["samples"] for log in run.watch.logs] == [0, 0]


def test_too_many_bad_records_stop_the_run(trainer, tmp_path):
    with pytest.raises(ValueError, match="2 bad records, more than max_skipped = 1"):
        trainer(*SKIP, "stages.0.data.max_skipped=1", data=bad_data(tmp_path, [0, 1, 2])).train()


def test_a_bad_record_stops_the_run_where_it_is_not_to_be_skipped(trainer, tmp_path):
    with pytest.raises(ValueError, match=r"1 \(#1\).*absent.png"):
        trainer("stages.0.steps=4", data=bad_data(tmp_path, [1])).train()


def test_gradient_checkpointing_changes_no_gradient(trainer):
    plain = trainer("stages.0.steps=1", stage=0)
    plain.train()
    saving = trainer("stages.0.steps=1", stage=0)
    recompute_activations(saving.model)
    saving.train()
    for name, gradient in plain.watch.gradients[0].items():
        torch.testing.assert_close(saving.watch.gradients[0][name], gradient)


def test_bfloat16_is_autocast_over_float32_weights(trainer):
    run = trainer("stages.0.steps=1", dtype=torch.bfloat16)
    dtypes = []
    layer = run.model.model.language_model.layers[0].mlp
    layer.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    run.train()
    assert set(dtypes) == {torch.bfloat16}
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}


def test_training_leaves_the_configuration_alone(trainer):
    run = trainer("stages.0.steps=1")
    before = trainer("stages.0.steps=1").model.config.to_dict()
    run.train()
    assert "use_cache" not in run.model.config.__dict__
    assert run.model.config.to_dict() == before


def test_checkpoints_are_whole_and_only_the_newest_are_kept(trainer, tmp_path):
    trainer("stages.0.steps=5", "stages.0.save_every=1", "stages.0.keep_checkpoints=2").train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-5"]
    assert not (tmp_path / "unfinished").exists()
    for path in checkpoints(tmp_path):
        assert {
            "model.safetensors",
            "optimizer.pt",
            "scheduler.pt",
            "rng_state.pth",
            "trainer_state.json",
        } <= {file.name for file in path.iterdir()}


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_damaged_checkpoint_says_which_it_is_and_what_to_do(trainer, tmp_path, file):
    trainer("stages.0.steps=1", "stages.0.save_every=1").train()
    saved = tmp_path / "checkpoint-1"
    (saved / file).write_bytes((saved / file).read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"checkpoint-1 cannot be read: .*Delete it: the same command then goes on"
    ):
        trainer("stages.0.steps=2").train(resume_from_checkpoint=str(saved))


def test_an_optimizer_that_lacks_the_state_of_a_weight_does_not_pass_for_a_whole_one(trainer, tmp_path):
    # Of a tower that trains, what nothing reads has none, and the file says so.
    options = ("stages.0.save_every=1", "stages.0.learning_rates.vision_tower=1e-3")
    trainer("stages.0.steps=1", *options).train()
    file = tmp_path / "checkpoint-1/optimizer.pt"
    saved = torch.load(file, weights_only=True)
    assert saved["without"] and all(".vision_tower." in name for name in saved["without"])
    name = next(name for name in saved["state"] if "projector" in name)
    del saved["state"][name]
    torch.save(saved, file)
    with pytest.raises(
        ValueError, match=f"optimizer.pt lacks the state of 1 parameters, first {re.escape(name)}"
    ):
        trainer("stages.0.steps=2", *options).train(resume_from_checkpoint=str(file.parent))


@pytest.mark.parametrize(
    ("llm", "tower"), [*((llm, "clip") for llm in LLMS), ("llama", "siglip"), ("llama", "dinov2")]
)
def test_a_checkpoint_has_all_weights_in_every_family(llm, tower, tmp_path):
    torch.manual_seed(0)
    model, other = (LlavitForConditionalGeneration(config_of(llm, tower)) for _ in range(2))
    model.save_pretrained(tmp_path)
    load_weights(other, tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name


@pytest.mark.parametrize("size", ["50GB", "20KB"])  # one file, and several as for a model of 13B
def test_a_checkpoint_that_lacks_weights_does_not_pass_for_a_whole_one(trainer, tmp_path, size):
    run = trainer("stages.0.steps=2")
    run.model.save_pretrained(tmp_path / "whole", max_shard_size=size)
    run._load_from_checkpoint(str(tmp_path / "whole"))  # the head is tied, and not in it
    layers = run.model.model.language_model.layers
    lacking = {name: p for name, p in run.model.state_dict().items() if ".layers.1.mlp.up_proj" not in name}
    run.model.save_pretrained(tmp_path / "part", state_dict=lacking, max_shard_size=size)
    before = layers[0].mlp.up_proj.weight.clone()
    with pytest.raises(
        ValueError, match=r"part cannot be read: 1 weights are missing or unknown, first model\.lang"
    ):
        run._load_from_checkpoint(str(tmp_path / "part"))
    assert torch.equal(layers[0].mlp.up_proj.weight, before)


def test_a_batch_that_does_not_divide_says_so(trainer, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        ValueError, match="batch_size 4 does not divide into micro-batches of 4 on 3 processes"
    ):
        trainer()


def test_processes_that_do_not_find_each_other_do_not_train_alone(trainer, monkeypatch):
    # On a GPU accelerate goes by LOCAL_RANK: with WORLD_SIZE alone each process would take itself for the only one.
    monkeypatch.setattr(arguments_module, "world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"WORLD_SIZE is 2, but accelerate finds 1 processes: .*torchrun"):
        trainer("stages.0.micro_batch_size=2")


@pytest.mark.parametrize("fsdp2", [False, True])
def test_a_model_that_is_to_be_cut_up_is_not_put_on_a_device_as_a_whole(trainer, monkeypatch, fsdp2):
    moved = []
    monkeypatch.setattr(Trainer, "_move_model_to_device", lambda self, model, device: moved.append(device))
    monkeypatch.setattr(trainer_module, "world_size", lambda: 2)
    trainer(fsdp2=fsdp2)
    assert len(moved) == (not fsdp2)


def test_features_are_standardised_by_the_first_images_of_the_data(tiny, tmp_path):
    from llavit import LlavitForConditionalGeneration
    from llavit.train.run import train

    overrides = ["model.vision_feature_norm=true", "stages.0.steps=1", "stages.1.steps=1"]
    folder = train(tiny.recipe(*overrides), output=tmp_path, progress=False)
    projector = LlavitForConditionalGeneration.from_pretrained(folder).model.multi_modal_projector
    assert projector.feature_std.min() > 0 and not (projector.feature_std == 1).any()
    assert (projector.feature_mean != 0).any()
