"""LoRA: what trains, what is saved, that it loads, merges and resumes."""

import json
import re
import shutil
import sys

import pytest
import torch
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from llavit import LlavitForConditionalGeneration, LlavitProcessor
from llavit.cli import app
from llavit.model.adapters import (
    ADAPTER,
    ADAPTER_CONFIG,
    TRAINED,
    add_lora,
    has_adapters,
    is_adapter,
    lora_targets,
    merge_adapters,
)
from llavit.train.parts import freeze, optimizer_groups, parameters_by_part, parts_table
from llavit.train.run import train
from llavit.train.trainer import LlavitTrainer
from tests.model.families import LLMS
from tests.model.families import tiny as tiny_family
from tests.train.lora_parts import load, logits, losses, own

LORA = "stages.1.lora={rank: 4, alpha: 8, dropout: 0.1}"
STEPS = ["stages.0.steps=2", "stages.1.steps=4"]
RATES = {"projector": 1e-3, "visual_qkv": 5e-4, "llm": 2e-3}


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A full pretrain stage, then LoRA in the instruct stage."""
    folder = tmp_path_factory.mktemp("lora") / "out"
    train(tiny.recipe(LORA, *STEPS), output=folder, progress=False)
    return folder


@pytest.mark.parametrize("name", LLMS)
def test_adapters_stand_on_every_linear_layer_of_the_llm_but_the_visual_ones(name):
    model = tiny_family(name)
    add_lora(model, base="b", rank=2, alpha=4)
    layers = model.get_decoder().layers
    for layer in layers:
        adapted = {word.split(".lora_")[0] for word, _ in layer.named_parameters() if is_adapter(word)}
        linear = {word for word, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
        plain = {word.removesuffix(".base_layer") for word in linear if ".lora_" not in word}
        assert adapted == {word for word in plain if not word.endswith(".visual")}
        assert any(word.endswith(".text") for word in adapted)
    adapters = sum(is_adapter(word) for word, _ in model.named_parameters())
    assert adapters == 2 * len(layers) * len(lora_targets(tiny_family(name)))


def test_targets_can_be_named_and_a_wrong_name_lists_the_right_ones(tiny):
    model = tiny.build().model
    assert lora_targets(model, ["q_proj", "down_proj"]) == [
        "layers.*.mlp.down_proj",
        "layers.*.self_attn.q_proj.text",
    ]
    with pytest.raises(
        ValueError, match=r"no linear layer 'qproj'; it has down_proj, gate_proj, k_proj, .*v_proj"
    ):
        lora_targets(model, ["qproj"])
    with pytest.raises(ValueError, match="no linear layer 'visual'"):
        lora_targets(model, ["visual"])


def test_without_peft_the_extra_is_named(tiny, monkeypatch):
    model = tiny.build().model
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'llavit\[lora\]'"):
        add_lora(model, base="b", rank=2, alpha=4)


def test_only_adapters_projector_and_visual_qkv_move(run):
    before, after = own(load(run / "pretrain")), own(load(run / "instruct"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    # Queries of visual tokens in the last layer change visual tokens only, which nothing reads any more.
    last = "model.language_model.layers.1.self_attn.q_proj.visual.weight"
    should = {name for name in before if "multi_modal_projector" in name or ".visual." in name} - {last}
    assert moved == should
    adapters = {name: p for name, p in load(run / "instruct").named_parameters() if is_adapter(name)}
    assert adapters and all(bool(p.any()) for p in adapters.values())  # B started as zeros


def test_the_rate_of_the_llm_is_that_of_its_adapters(tiny):
    model = tiny.build().model
    add_lora(model, base="b", rank=4, alpha=8)
    freeze(model, RATES)
    groups = {group["part"]: group for group in optimizer_groups(model, RATES, 0.0)}
    names = {id(p): name for name, p in model.named_parameters()}
    assert groups["llm"]["lr"] == 2e-3
    assert {names[id(p)] for p in groups["llm"]["params"]} == {n for n in names.values() if is_adapter(n)}
    assert all(".visual." in names[id(p)] for p in groups["visual_qkv"]["params"])


def test_the_table_of_parts_shows_adapters(tiny):
    model = tiny.build().model
    add_lora(model, base="b", rank=4, alpha=8)
    freeze(model, RATES)
    adapters = sum(p.numel() for name, p in model.named_parameters() if is_adapter(name))
    columns = [list(column.cells) for column in parts_table(model, RATES, "t").columns]
    row = columns[0].index("llm")
    assert columns[2][row] == f"{adapters:,} in adapters train"
    assert columns[3][row] == "0.002"
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert parts_table(model, RATES, "t").columns[2].footer == f"{trained:,} train"
    assert sum(p.numel() for p in parameters_by_part(model)["llm"].values()) > adapters


def test_a_folder_holds_what_training_changed_and_names_its_base(run):
    folder = run / "instruct"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"config.json", TRAINED, f"{ADAPTER}/adapter_model.safetensors", "tokenizer.json"} <= files
    assert not any(name.startswith("model") for name in files)
    record = json.loads((folder / ADAPTER / ADAPTER_CONFIG).read_text())
    assert record["base_model_name_or_path"] == "../pretrain"
    assert (record["r"], record["lora_alpha"], record["lora_dropout"]) == (4, 8, 0.1)
    LlavitProcessor.from_pretrained(folder)


def test_saved_and_loaded_by_either_class_it_gives_the_same_logits(run, tmp_path, sample):
    model = load(run / "instruct")
    expected = logits(model, sample)
    assert not torch.equal(expected, logits(load(run / "pretrain"), sample))
    assert torch.equal(
        logits(AutoModelForImageTextToText.from_pretrained(run / "instruct").eval(), sample), expected
    )
    model.requires_grad_(False)  # as someone does who only wants answers: nothing may get lost
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again"), sample), expected)
    _, info = load_with_info(tmp_path / "again")
    assert not any(info.values())


def load_with_info(folder):
    return LlavitForConditionalGeneration.from_pretrained(folder, output_loading_info=True)


def test_peft_itself_reads_the_adapters(run, sample):
    from peft import PeftModel
    from safetensors.torch import load_file

    model = load(run / "pretrain")
    model.load_state_dict(load_file(run / "instruct" / TRAINED), strict=False)
    model = PeftModel.from_pretrained(model, run / "instruct" / ADAPTER).eval()
    assert torch.equal(logits(model, sample), logits(load(run / "instruct"), sample))


def test_merged_it_is_an_ordinary_model_of_the_same_logits(run, tmp_path, sample):
    expected = logits(load(run / "instruct"), sample)
    shown = CliRunner().invoke(app, ["merge", str(run / "instruct"), str(tmp_path / "merged")])
    assert (shown.exit_code, shown.stdout) == (0, f"{tmp_path / 'merged'}\n"), shown.stderr
    merged = load(tmp_path / "merged")
    assert not has_adapters(merged) and not (tmp_path / "merged" / ADAPTER).exists()
    assert own(merged).keys() == own(load(run / "pretrain")).keys()
    torch.testing.assert_close(logits(merged, sample), expected, atol=1e-5, rtol=0)
    LlavitProcessor.from_pretrained(tmp_path / "merged")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("pretrain", "new", "nothing to merge: .*pretrain has no adapters"),
        ("instruct", "taken", "taken is there already"),
        ("absent", "new", "no such model folder: .*absent"),
    ],
)
def test_merge_refuses_what_it_cannot_do(run, tmp_path, source, target, message):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.txt").write_text("mine")
    shown = CliRunner().invoke(app, ["merge", str(run / source), str(tmp_path / target)])
    assert shown.exit_code == 2
    assert re.search(message, shown.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_a_base_that_has_moved_is_named_and_can_be_told(run, tmp_path, sample):
    expected = logits(load(run / "instruct"), sample)
    alone = tmp_path / "alone"
    shutil.copytree(run / "instruct", alone)
    with pytest.raises(
        FileNotFoundError, match=r"alone holds adapters for the model '../pretrain'.*no such folder"
    ):
        load(alone)
    record = alone / ADAPTER / ADAPTER_CONFIG
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "base_model_name_or_path": str(run / "pretrain")}))
    assert torch.equal(logits(load(alone), sample), expected)


def test_adapters_that_do_not_fit_are_an_error(run):
    with pytest.raises(ValueError, match=r"do not fit the model.*switch such as visual_qkv"):
        load(run / "instruct", visual_qkv=False)


def test_adapters_are_not_saved_over_a_whole_model(run, tmp_path):
    load(run / "pretrain").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a whole model; save the adapters somewhere else"):
        load(run / "instruct").save_pretrained(tmp_path)


def test_a_stopped_run_resumes_to_the_bit(run, tiny, tmp_path, monkeypatch):
    recipe = tiny.recipe(LORA, *STEPS, "stages.1.save_every=2")
    step = LlavitTrainer.training_step

    def until(self, *args):
        if self.stage.name == "instruct" and self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LlavitTrainer, "training_step", until)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, output=tmp_path, progress=False)
    assert (tmp_path / "instruct.work/checkpoint-2" / ADAPTER).is_dir()
    train(recipe, output=tmp_path, progress=False)
    assert losses(tmp_path / "instruct") == losses(run / "instruct")
    for name in (TRAINED, f"{ADAPTER}/adapter_model.safetensors"):
        assert (tmp_path / "instruct" / name).read_bytes() == (run / "instruct" / name).read_bytes()


def test_a_first_stage_keeps_its_base_and_a_later_one_builds_on_its_adapters(tiny, tmp_path, sample):
    first = ["stages.0.lora={rank: 2, alpha: 4}", "stages.0.learning_rates={projector: 1e-3, llm: 1e-2}"]
    train(tiny.recipe(*first, LORA, *STEPS), output=tmp_path / "run", progress=False)
    shutil.move(tmp_path / "run", tmp_path / "moved")  # references are relative
    base, one, two = (load(tmp_path / "moved" / name) for name in ("pretrain/base", "pretrain", "instruct"))
    merge_adapters(one)
    a, b, c = own(base), own(one), own(two)
    text = "model.language_model.layers.0.self_attn.q_proj.text.weight"
    assert not torch.equal(a[text], b[text]) and torch.equal(b[text], c[text])
    assert two.peft_config["default"].r == 4
    shown = logits(two, sample)
    merge_adapters(two)
    torch.testing.assert_close(logits(two, sample), shown, atol=1e-5, rtol=0)


def test_gradient_checkpointing_changes_nothing(run, tiny, tmp_path):
    train(tiny.recipe(LORA, *STEPS, "stages.1.gradient_checkpointing=true"), output=tmp_path, progress=False)
    for (_, a, _), (_, b, _) in zip(losses(tmp_path / "instruct"), losses(run / "instruct"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)  # sums in another order


def test_gradient_checkpointing_runs_no_backward_pass_through_a_frozen_tower(tiny, tmp_path, monkeypatch):
    needs = []
    step = LlavitTrainer.training_step

    def watched(self, model, *args):
        hook = model.model.vision_tower.register_forward_hook(
            lambda module, inputs, output: needs.append(output.last_hidden_state.requires_grad)
        )
        try:
            return step(self, model, *args)
        finally:
            hook.remove()

    monkeypatch.setattr(LlavitTrainer, "training_step", watched)
    recipe = tiny.recipe(
        *STEPS, "stages.0.gradient_checkpointing=true", "stages.1.gradient_checkpointing=true"
    )
    train(recipe, output=tmp_path, progress=False)
    assert needs and not any(needs)
