"""The small decoder from scratch."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llavit.compare.grid import Scratch, load_grid
from llavit.compare.material import Material
from llavit.compare.small_llm import train_small_llm

from .parts import save_grid

SPEC = Scratch(width=32, layers=1, vocabulary=300, steps=30, batch_size=4, row=16, learning_rate=1e-2)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return train_small_llm([tiny.data], tmp_path_factory.mktemp("small") / "llm", SPEC)


def test_it_learns_the_text_and_is_an_ordinary_folder(folder):
    about = json.loads((folder / "scratch.json").read_text())
    assert about["losses"][-1] < 0.6 * about["losses"][0] and len(about["losses"]) == 30
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "Say it 42."}, {"role": "assistant", "content": "word"}]
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
    assert tokenizer.decode(ids[0]) == "<|user|>Say it 42.<|end|><|assistant|>word<|end|>"
    assert model(ids).logits.shape == (1, ids.shape[1], len(tokenizer))
    assert about["parameters"] == model.num_parameters()


def test_the_same_settings_give_the_same_decoder_and_the_callers_chance_is_untouched(tiny, folder, tmp_path):
    torch.manual_seed(5)
    train_small_llm([tiny.data], tmp_path / "again", SPEC)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert (tmp_path / "again/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_too_little_text_is_an_error(tiny, tmp_path):
    with pytest.raises(ValueError, match="expected at least 5001 tokens of text"):
        train_small_llm([tiny.data], tmp_path / "llm", Scratch(row=5000, steps=1))
    assert not (tmp_path / "llm").exists()


def test_its_folder_is_named_by_what_it_is_made_of(tiny, tmp_path):
    scratch = "llms:\n  small: {scratch: {width: 32, steps: STEPS}}\n"
    corpus = "corpus: {pretrain: 1, instruct: 1, val: 1, test: 1}\n"
    names = []
    for steps in ("3", "3", "4"):
        grid = save_grid(tiny, tmp_path / f"grid{len(names)}")
        text = grid.read_text()
        start, end = text.index("llms:"), text.index("sizes:")
        grid.write_text(text[:start] + scratch.replace("STEPS", steps) + text[end:] + corpus)
        names.append(Material(load_grid(grid), tmp_path / "out").llm("small").name)
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 40}, "a multiple of 32"),
        ({"steps": 0}, "steps: expected more"),
        ({"vocabulary": 99}, "at least 300"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Scratch(**values)


def test_described_conversations_begin_with_the_scene_in_words(tmp_path):
    from llavit.compare.small_llm import _conversations
    from llavit.starter.corpus import build_corpus

    kinds = {"place": 1, "word": 1, "chart": 1}
    corpus = build_corpus(tmp_path, pretrain=0, instruct=9, val=0, test=0, kinds=kinds, workers=1)
    plain = list(_conversations([corpus.instruct], Scratch()))
    said = list(_conversations([corpus.instruct], Scratch(described=1.0)))
    for before, after in zip(plain, said, strict=True):
        facts, question = after[0]["content"].split("\n", 1)
        assert question == before[0]["content"] and after[1:] == before[1:]
        assert " background" in facts
    told = "\n".join(turns[0]["content"] for turns in said)
    assert " at the " in told and " word " in told and " high" in told
    some = list(_conversations([corpus.instruct], Scratch(described=0.5)))
    assert some == list(_conversations([corpus.instruct], Scratch(described=0.5))) != said
    assert any(one == other for one, other in zip(some, plain, strict=True))


def test_descriptions_take_a_corpus_of_the_starter(tiny, tmp_path):
    with pytest.raises(ValueError, match="described: expected data of a starter corpus"):
        train_small_llm([tiny.data], tmp_path / "llm", Scratch(described=0.5))
    with pytest.raises(ValueError, match="expected a share from 0 to 1, got 2"):
        Scratch(described=2)
