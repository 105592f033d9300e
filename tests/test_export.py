"""A whole folder of a run: it loads everywhere, says what is on record, and appears whole or not at all."""

import json
import os
import re

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from llavit import Engine, LlavitForConditionalGeneration
from llavit.card import Base
from llavit.cli import app
from llavit.evaluate import evaluate, load_bench
from llavit.export import export
from llavit.folders import whole_folder
from llavit.loading import load_model
from llavit.model.adapters import merge_adapters
from llavit.model.quantize import is_int8, quantize_int8
from llavit.train.run import train
from tests.adapted import save_adapted
from tests.evaluate.small_bench import save_bench

QUESTION = {"input_ids": torch.tensor([[5, 6, 7, 8]])}


@torch.no_grad()
def logits(model):
    return model.eval()(**QUESTION).logits


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run of two stages, evaluated."""
    folder = train(tiny.recipe(), output=tmp_path_factory.mktemp("run"), progress=False)
    model, processor = load_model(folder, dtype="bfloat16", device="cpu")
    tasks = load_bench(save_bench(tmp_path_factory.mktemp("bench")), "all")
    evaluate(model, processor, tasks[:2], baselines=[], output=folder / "eval.json", name="tiny")
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export(run, tmp_path_factory.mktemp("exported") / "mine")


def test_it_loads_as_what_it_was_by_every_way_and_in_the_engine(run, exported, tiny):
    model = LlavitForConditionalGeneration.from_pretrained(run)
    for way in (LlavitForConditionalGeneration, AutoModelForImageTextToText):
        loaded, info = way.from_pretrained(exported, output_loading_info=True)
        assert loaded.dtype == model.dtype and not any(info.values())
        assert torch.equal(logits(loaded), logits(model))
    assert type(AutoProcessor.from_pretrained(exported)).__name__ == "LlavitProcessor"
    answers = []
    for folder in (run, exported):
        with Engine.load(folder, dtype="float32", compile="never", progress=False) as engine:
            answers.append(engine.answer("What?", [tiny.data.parent / "0.png"], max_new_tokens=4).token_ids)
    assert answers[0] == answers[1]


def test_it_holds_nothing_but_what_a_model_needs_and_no_place_of_this_machine(exported, tiny):
    assert {path.name for path in exported.iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for path in exported.glob("*.json"):
        assert str(tiny.llm.parent) not in path.read_text(), path.name
    assert str(tiny.llm.parent) not in (exported / "README.md").read_text()


def test_the_card_states_what_is_on_record(run, exported):
    card = ModelCard.load(exported / "README.md")
    assert card.data.to_dict() == {
        "license": "unknown",
        "library_name": "llavit",
        "pipeline_tag": "image-text-to-text",
        "tags": ["llavit", "llava", "vision-language"],
    }
    text = card.text
    log = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    mean = sum(row["loss"] for row in log) / len(log)
    for words in (
        "# mine",
        "**pretrain**",
        "**instruct**",
        "`data.json`",
        "12 records in all, fingerprint `",
        "Recipe `tiny`, seed 0, dtype float32",
        "| trains | projector at 0.01, visual_qkv at 0.005 |",
        "| trains | projector at 0.001, visual_qkv at 0.001, llm at 0.001 |",
        f"| log: loss, mean of the last 2 steps | {mean:.3f} |",
        "- LLM: llm; licence not known",
        "Licence of this model: not known.",
        "Measured on the weights that were exported, by their fingerprint.",
        "made 16 x 16 pixels in size and 4 visual tokens",
        "at most 512 tokens",
    ):
        assert words in text, words
    scores = json.loads((run / "eval.json").read_text())["tasks"]
    for name, task in scores.items():
        assert re.search(rf"\| {name} \|.* {100 * task['score']:.1f} \(", text), name
        guessing = task["family"] != "anchor" and task["low"] <= task["chance"]
        assert guessing == bool(re.search(rf"No better than guessing.*{name}", text))
    assert "\n\n\n" not in text.strip()


def test_what_is_not_on_record_is_not_known(tiny, tmp_path):
    model, processor = tiny.build()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "out", name="bare", licence="mit", languages=["en", "de"])
    card = ModelCard.load(tmp_path / "out/README.md")
    assert (card.data.license, card.data.language) == ("mit", ["en", "de"])
    sections = dict(re.findall(r"^## ([^\n]+)\n\n(.*?)(?=^## |\Z)", card.text, re.MULTILINE | re.DOTALL))
    assert sections["Data"].strip() == sections["Recipe"].strip() == "Not known."
    assert sections["Scores"].strip() == "Not known: no result of `llavit eval` was at hand."


def test_hub_ids_of_bases_and_data_are_in_the_header(tiny, run, tmp_path):
    from llavit.card import collect_facts, model_card

    recipe = (run.parent / "recipe.yaml").read_text()
    recipe = recipe.replace(str(tiny.llm), "Qwen/Qwen2.5-0.5B").replace(str(tiny.vision), "openai/clip-vit")
    recipe = recipe.replace(f"path: {tiny.data}", "path: org/captions").replace("format: null", "format: hf")
    (tmp_path / "instruct").mkdir()
    (tmp_path / "recipe.yaml").write_text(recipe)
    facts = collect_facts(tmp_path / "instruct")
    card = model_card("m", facts, [], model=tiny.build().model, processor=tiny.build().processor, version="1")
    data = ModelCard(card).data
    assert data.base_model == ["Qwen/Qwen2.5-0.5B", "openai/clip-vit"] and data.datasets == ["org/captions"]


def test_scores_of_other_weights_are_said_to_be_that(run, tmp_path):
    result = json.loads((run / "eval.json").read_text())
    result["settings"]["model"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(result))
    export(run, tmp_path / "out", scores=[tmp_path / "other.json"])
    text = (tmp_path / "out/README.md").read_text()
    assert "`other.json`" in text and "`eval.json`" not in text
    assert "does not name these weights" in text and "by their fingerprint." not in text


def test_int8_is_half_the_llm_and_the_same_as_loading_in_int8(run, tmp_path):
    shown = CliRunner().invoke(app, ["export", str(run), "--to", str(tmp_path / "small"), "--int8"])
    assert (shown.exit_code, shown.stdout) == (0, f"{tmp_path / 'small'}\n"), shown.stderr
    loaded, _ = load_model(tmp_path / "small", dtype="bfloat16", device="cpu")
    twin, _ = load_model(run, dtype="bfloat16", device="cpu", quantize="int8")
    assert is_int8(loaded) and torch.equal(logits(loaded), logits(twin))
    assert (
        "int8 in the LLM (one scale per row), bfloat16 elsewhere"
        in (tmp_path / "small/README.md").read_text()
    )
    with pytest.raises(ValueError, match="small is int8 already"):
        export(tmp_path / "small", tmp_path / "again", int8=True)
    assert not (tmp_path / "again").exists()


def test_the_engine_answers_alike_from_an_int8_folder_and_in_int8_made_at_load(run, tiny, tmp_path):
    folder = export(run, tmp_path / "small", int8=True)
    answers = []
    for source, quantize in ((folder, None), (run, "int8")):
        options = {"dtype": "bfloat16", "quantize": quantize, "compile": "never", "progress": False}
        with Engine.load(source, **options) as engine:
            assert is_int8(engine.model)
            answers.append(engine.answer("What?", [tiny.data.parent / "0.png"], max_new_tokens=6).token_ids)
    assert answers[0] == answers[1] and answers[0]


def test_adapters_are_merged_into_every_type(tiny, tmp_path):
    model = save_adapted(tiny, tmp_path)
    merge_adapters(model)
    for dtype in ("auto", "bfloat16"):
        export(tmp_path / "adapted", tmp_path / dtype, dtype=dtype)
    whole = LlavitForConditionalGeneration.from_pretrained(tmp_path / "auto")
    assert torch.equal(logits(whole), logits(model))
    half = LlavitForConditionalGeneration.from_pretrained(tmp_path / "bfloat16")
    assert half.dtype == torch.bfloat16
    export(tmp_path / "adapted", tmp_path / "int8", dtype="float32", int8=True)
    int8 = LlavitForConditionalGeneration.from_pretrained(tmp_path / "int8")
    assert torch.equal(logits(int8), logits(quantize_int8(model)))


def test_what_cannot_be_exported_says_so_and_leaves_nothing(run, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/thesis.txt").write_text("mine")
    (tmp_path / "wrong.json").write_text("{}")
    for source, target, scores, message in (
        (run, "taken", None, "taken is there already; choose another folder"),
        (tmp_path / "absent", "new", None, "no such folder"),
        (run, "new", [tmp_path / "wrong.json"], "no result file of this version"),
        (run, "new", [tmp_path / "absent.json"], "no such result file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            export(source, tmp_path / target, scores=scores)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken", "wrong.json"]
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.txt"]


def test_an_error_in_the_middle_leaves_nothing_and_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="disk full"), whole_folder(tmp_path / "empty") as folder:
        (folder / "half").write_text("of it")
        assert not any((tmp_path / "empty").iterdir())
        raise OSError("disk full")
    assert os.listdir(tmp_path) == ["empty"] and not any((tmp_path / "empty").iterdir())
    with whole_folder(tmp_path / "empty") as folder:
        (folder / "whole").write_text("all of it")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["whole"]


@pytest.mark.parametrize("name", ["link", "."])
def test_an_empty_folder_that_must_stay_is_filled(tmp_path, monkeypatch, name):
    (tmp_path / "volume").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "volume")
    monkeypatch.chdir(tmp_path / "volume")
    with whole_folder("." if name == "." else tmp_path / name) as folder:
        (folder / "inner").mkdir()
        (folder / "inner/model").write_text("it")
    assert (tmp_path / "volume/inner/model").read_text() == "it"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "volume"]


def test_a_folder_is_no_id_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = Base("LLM", "parts/llm")
    assert base.hub
    (tmp_path / "parts/llm").mkdir(parents=True)
    assert not base.hub
