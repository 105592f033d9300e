"""Attention maps: eager attention's weights on the right patches and words, rolled out as the paper does, on a page."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import llavit.inspect.weights as weights_module
from llavit.cli import app
from llavit.inspect import (
    answer_attention,
    attention_maps,
    attention_rollout,
    attention_weights,
    watch_attention,
)
from llavit.inspect.blocking import Block, knockout
from llavit.inspect.heat import heat
from llavit.inspect.inputs import one_image
from llavit.inspect.report import figure_png
from llavit.inspect.tokens import token_statistics
from tests.inspect.test_attention import SWITCHES, conversation, eager_attentions, prompt_of
from tests.model.families import LLMS
from tests.model.families import tiny as tiny_of

CLOSE = dict(atol=2e-6, rtol=1e-4)  # fp32 rounding


@pytest.fixture(scope="module")
def built(tiny):
    """A model whose attention is far from even."""
    model, processor = tiny.build(dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj" in name and parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model.eval(), processor


def all_weights(built, messages, answer) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Eager attention's (layers, heads, l, l), image ids, and the prompt's length."""
    model, processor = built
    prompt = processor.encode(messages, add_generation_prompt=True)
    ids = torch.cat([prompt["input_ids"], torch.tensor(processor.tokenizer.encode(answer))])
    image_ids = torch.nn.functional.pad(prompt["image_ids"], (0, len(answer)), value=-1)
    inputs = {"input_ids": ids, "pixel_values": prompt["pixel_values"]}
    return eager_attentions(model, inputs), image_ids, len(prompt["input_ids"])


def rolled_by_hand(weights: torch.Tensor) -> torch.Tensor:
    """Abnar and Zuidema's recursion in float64, with the residual as half of an identity."""
    product, found = torch.eye(weights.shape[-1], dtype=torch.float64), []
    for layer in weights.double():
        product = (0.5 * layer.mean(0) + 0.5 * torch.eye(len(product), dtype=torch.float64)) @ product
        found.append(product)
    return torch.stack(found).float()


@pytest.mark.parametrize("switches", SWITCHES, ids=["llavit", "llava"])
@pytest.mark.parametrize("llm", ["llama", "gemma2", "mistral-sliding"])
def test_rollout_is_the_product_over_eager_attentions(llm, switches):
    model, inputs = tiny_of(llm, **switches), prompt_of(llm)
    expected = rolled_by_hand(eager_attentions(model, inputs))
    found = attention_rollout(model, inputs, layers=[2, 0])
    torch.testing.assert_close(found, expected[[2, 0]], **CLOSE)
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    assert torch.equal(attention_rollout(model, inputs), found[:1])


@pytest.mark.parametrize("llm", LLMS)
def test_watching_gives_every_row_of_every_layer_in_pieces(llm, monkeypatch):
    model, inputs = tiny_of(llm), prompt_of(llm)
    expected, seen = eager_attentions(model, inputs), []
    monkeypatch.setattr(weights_module, "PIECE", 7 * 4 * 25)  # seven rows of 4 heads and 25 tokens
    watch_attention(model, inputs, lambda layer, rows, weights: seen.append((layer, rows.tolist(), weights)))
    assert {len(rows) for _, rows, _ in seen} == {7, 4} and len(seen) == 4 * len(expected)
    for layer, rows, weights in seen:
        torch.testing.assert_close(weights, expected[layer][:, rows], **CLOSE)


def test_only_the_keys_that_are_asked_for_are_kept():
    model, inputs = tiny_of("llama"), prompt_of("llama")
    whole = attention_weights(model, inputs, range(25))
    some = attention_weights(model, inputs, [20, -1], layers=[1], keys=[3, -2])
    # Not to the bit: a product of fewer rows may add up in another order.
    torch.testing.assert_close(some, whole[[1]][:, :, [20, 24]][..., [3, 23]], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="key 25"):
        attention_weights(model, inputs, [0], keys=[25])


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_maps_are_eager_attention_between_the_words_and_patches_in_question(built, backend):
    model, processor = built
    model.set_attn_implementation({"text_config": backend})
    messages, answer = conversation(2), "A red cat"
    weights, image_ids, prompt = all_weights(built, messages, answer)
    places = (image_ids == 1).nonzero().flatten()
    found = attention_maps(
        model, processor, messages, answer, word="red", patch=(1, 0), image=1, keep_all=True
    )
    assert found.words == ["A", "red", "cat"] and found.word == 1 and found.patch == 2
    assert found.word_maps.shape == (3, 2, 2, 2) and found.grid == (2, 2) and found.layers == [0, 1]
    rows = [prompt + token - 1 for token in (2, 3, 4)]  # a token a byte: those before "r", "e", "d"
    word = weights[:, :, rows].mean(2)[..., places]
    rolled = rolled_by_hand(weights)
    for mine, theirs in [
        (found.word_heads, word),
        (found.word_maps[1], word.mean(1)),
        (found.word_rollout[1], rolled[:, rows].mean(1)[..., places]),
        (found.patch_maps, weights.mean(1)[:, places][..., places]),
        (found.patch_looks, weights[:, :, places[2]][..., places]),
        (found.patch_seen, weights[:, :, places, places[2]]),
        (found.patch_rollout, rolled[:, places[2]][:, places]),
        (found.full, weights),
    ]:
        torch.testing.assert_close(torch.from_numpy(mine).flatten(), theirs.flatten(), **CLOSE)
    (same,) = answer_attention(model, processor, messages, answer, token=range(2, 5))[1:]
    np.testing.assert_allclose(found.word_maps[1].mean(0), same, rtol=1e-4)
    assert len(found.tokens) == weights.shape[-1] and "".join(found.tokens[-3:]) == "cat"


def test_layers_are_those_asked_for_and_the_whole_is_kept_only_if_asked_for(built):
    every = attention_maps(*built, conversation(), "A cat")
    last = attention_maps(*built, conversation(), "A cat", layers=[-1])
    assert last.layers == [1] and last.full is None and "full" not in last.arrays()
    for name in ("word_maps", "word_rollout"):
        np.testing.assert_array_equal(getattr(last, name)[:, 0], getattr(every, name)[:, 1])
    np.testing.assert_array_equal(last.patch_maps[0], every.patch_maps[1])


def test_word_and_patch_are_by_default_those_with_most_attention(built):
    found = attention_maps(*built, conversation(), "A cat, red.")
    share = found.word_maps.sum((1, 2, 3))
    spoken = [k for k, word in enumerate(found.words) if word.isalpha()]
    assert found.word == max(spoken, key=lambda k: share[k])
    assert found.patch == found.word_maps[found.word].mean(0).argmax()


def test_a_models_own_answer_is_that_of_generate(built, monkeypatch):
    model, processor = built
    letters = processor.tokenizer.encode("abcdefghijklmnopqrstuvwxyz")
    others = [token for token in range(len(processor.tokenizer)) if token not in letters]
    monkeypatch.setattr(model.generation_config, "suppress_tokens", others)  # so that it says words
    encoded = processor.encode(conversation(), add_generation_prompt=True)
    out = model.generate(
        input_ids=encoded["input_ids"][None],
        attention_mask=torch.ones(1, len(encoded["input_ids"]), dtype=torch.long),
        pixel_values=encoded["pixel_values"],
        max_new_tokens=12,
        do_sample=False,
    )[0, len(encoded["input_ids"]) :]
    text = processor.tokenizer.decode(out, skip_special_tokens=True)
    found = attention_maps(model, processor, conversation(), max_new_tokens=12)
    assert found.answer == text and not found.settings["answer_given"]


def test_a_record_of_training_data_is_looked_at_with_its_own_answer(built):
    """It ends with an answer: no second one is asked for behind it."""
    said = [*conversation(), {"role": "assistant", "content": [{"type": "text", "text": "A cat"}]}]
    found, expected = attention_maps(*built, said), attention_maps(*built, conversation(), "A cat")
    assert found.settings == expected.settings and found.words == ["A", "cat"]
    assert found.tokens == expected.tokens
    np.testing.assert_array_equal(found.word_maps, expected.word_maps)
    other = attention_maps(*built, said, "A dog")
    assert other.words == ["A", "dog"] and len(other.tokens) == len(expected.tokens)
    with pytest.raises(ValueError, match="ends with the assistant's turn"):
        answer_attention(*built, said, "A dog")
    statistics = [token_statistics(*built, [talk]) for talk in (said, conversation())]
    assert statistics[0].tokens == statistics[1].tokens


def test_a_knockout_shows_in_the_maps(built):
    model, processor = built
    with knockout(model, Block("visual_to_visual", [1])):
        found = attention_maps(model, processor, conversation(), "A cat", patch=1)
    assert found.patch_looks[0].astype(bool).sum() == 4 * 4  # all patches, in all heads
    assert found.patch_looks[1].astype(bool).sum() == 4 and (found.patch_looks[1, :, 0, 1] > 0).all()


def test_mistakes_are_named(built):
    for wrong, message in [
        (dict(word="dog"), "the answer has A, cat"),
        (dict(word=2), "2 words, expected 0 to 1"),
        (dict(patch=(2, 0)), "2 rows of 2 patches"),
        (dict(patch=4), "2 rows of 2 patches"),
        (dict(image=1), "the conversation has 1 images"),
        (dict(layers=[2]), "layer 2: there are 2 layers"),
    ]:
        with pytest.raises(ValueError, match=message):
            attention_maps(*built, conversation(), "A cat", **wrong)
    with pytest.raises(ValueError, match="the conversation has 0 images"):
        attention_maps(*built, [{"role": "user", "content": "Hi"}], "A")
    with pytest.raises(ValueError, match="at least one word"):
        attention_maps(*built, conversation(), " ")


def test_heat_is_clear_where_nothing_is_and_deepest_at_the_top():
    image = np.asarray(heat(np.array([[0.0, 1.0, 2.0, 4.0]])))
    assert image[0, 0, 3] == 0 and list(image[0, :, 3]) == sorted(image[0, :, 3])
    assert (np.asarray(heat(np.zeros((1, 2))))[..., 3] == 0).all()


def test_dollar_signs_are_drawn_as_they_are_and_not_as_a_formula(built):
    question = one_image(Image.new("RGB", (16, 16), "red"), "Does it cost $^$?")
    figure = attention_maps(*built, question, "No, $_$.").figure()
    assert figure_png(figure)[:4] == b"\x89PNG"
    assert "$^$" in figure.get_suptitle()


def test_the_page_has_a_choice_for_each_word_a_slider_and_heads_and_needs_nothing_else(built, tmp_path):
    found = attention_maps(*built, conversation(), "A <b> cat", word="cat", name="<model>")
    page = found.save(tmp_path).read_text()
    assert page.count('type="radio"') == len(found.words) and "<b> cat" not in page
    assert (
        page.count("checked") == 1 + len(found.words) * 2
    )  # the button, and two rules of style for each word
    assert not re.search(r'(src|href)="(?!data:)|url\((?!data:)|https?://', page)
    heads = page[page.index("<h3>Heads") : page.index("<h3>Patch in row")]
    assert heads.count('class="map') == 2 * 4
    facts, arrays = json.loads((tmp_path / "attention.json").read_text()), np.load(tmp_path / "attention.npz")
    assert facts["words"] == found.words and facts["settings"]["question"] == "What?"
    np.testing.assert_array_equal(arrays["patch_maps"], found.patch_maps)
    assert Image.open(tmp_path / "attention.png").size[0] > 300
    titles = [axis.get_title() for axis in found.figure().axes]
    assert titles == ["all layers", "layer 0", "layer 1", *[""] * 9]


def test_the_command_looks_at_two_models(tiny, tmp_path):
    for name, switches in zip(("llavit", "llava"), SWITCHES, strict=True):
        model, processor = tiny.build(dtype=torch.float32, **switches)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    command = (
        f"inspect attention {tmp_path}/llavit {tmp_path}/llava --image {tmp_path}/red.png --dtype float32"
    )
    command += f" --question What? --word red --patch 1,1 --layers -1 -o {tmp_path}/out"
    shown = CliRunner().invoke(app, [*command.split(), "--answer", "A red dot"])
    assert shown.exit_code == 0, shown.output
    assert shown.output.splitlines()[-1] == f"{tmp_path}/out/attention.html" and "red" in shown.output
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"attention.html", "attention-1.npz", "attention-2.json", "attention-2.png"} <= files
    wrong = CliRunner().invoke(app, [*command.replace("1,1", "1").split(), "--answer", "A red dot"])
    assert wrong.exit_code == 2 and "expected ROW,COLUMN" in wrong.output
