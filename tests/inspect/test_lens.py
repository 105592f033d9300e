"""The vocabulary lens: a word on every patch, at the input and behind each layer, of LLaVA and LLaViT."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from llavit.cli import app
from llavit.inspect.inputs import one_image
from llavit.inspect.lens import vocabulary_lens
from llavit.inspect.lens_page import shown
from tests.inspect.test_attention import conversation
from tests.inspect.test_report import external


@pytest.fixture(scope="module")
def built(tiny):
    model, processor = tiny.build(dtype=torch.float32)
    return model.eval(), processor


@pytest.fixture(scope="module")
def saved(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llavit"
    for part in built:
        part.save_pretrained(folder)
    return folder


def test_every_patch_has_k_words_in_every_view(built):
    lens = vocabulary_lens(*built, conversation(), k=3, whole_words=False)
    assert lens.views == ("input", "layer 0", "layer 1")
    assert lens.ids_nvk.shape == lens.scores_nvk.shape == (3, 4, 3)
    assert (np.diff(lens.scores_nvk, axis=-1) <= 0).all()
    words = lens.words("layer 1")
    assert len(words) == 2 and all(len(row) == 2 and len(row[0]) == 3 for row in words)
    assert sum(count for _, count in lens.common("layer 1", 100)) == 4


def test_the_last_view_is_what_the_model_would_write_there(built):
    model, processor = built
    lens = vocabulary_lens(
        model, processor, conversation(), layers=[-1], at_input=False, k=1, whole_words=False
    )
    encoded = processor.encode(conversation(), add_generation_prompt=True)
    with torch.no_grad():
        logits = model(input_ids=encoded["input_ids"][None], pixel_values=encoded["pixel_values"]).logits[0]
    logits = logits[encoded["image_ids"] >= 0]
    logits[:, [0, 1, 2, processor.image_token_id]] = -torch.inf
    assert lens.views == ("layer 1",)
    np.testing.assert_array_equal(lens.ids_nvk[0, :, 0], logits.argmax(-1))


def test_a_patch_that_is_a_words_embedding_is_read_as_that_word(tiny):
    """A projector that gives one word's embedding whatever it sees."""
    model, processor = tiny.build(dtype=torch.float32)
    (cat,) = processor.tokenizer.encode("c")
    with torch.no_grad():
        last = model.model.multi_modal_projector.linear_2
        last.weight.zero_()
        last.bias.copy_(0.01 * model.get_input_embeddings().weight[cat])  # a cosine does not mind the length
    lens = vocabulary_lens(model.eval(), processor, conversation(), layers=[], whole_words=False, find=["c"])
    assert lens.views == ("input",)
    assert [[patch[0] for patch in row] for row in lens.words("input")] == [["c", "c"], ["c", "c"]]
    np.testing.assert_allclose(lens.scores_nvk[..., 0], 1, rtol=1e-5)
    assert lens.found_nvk[..., 0].all()
    assert "100% of the patches" in lens.body()


def test_the_page_says_by_which_tokens_a_word_is_found(built):
    model, processor = built
    lens = vocabulary_lens(model, processor, conversation(), k=1, whole_words=False, find=["c", "cat<"])
    assert lens.settings["found as"] == {
        "c": ["C", "c"],
        "cat<": [],
    }  # a token is a byte: no beginning of three letters
    page = lens.body()
    assert "Looked for: c as &#x27;C&#x27;, &#x27;c&#x27;; cat&lt;: no token of this vocabulary" in page
    assert "Looked for" not in vocabulary_lens(*built, conversation(), k=1, whole_words=False).body()


def test_a_later_question_changes_nothing_and_an_earlier_one_may(built):
    def lens(question):
        return vocabulary_lens(
            *built, one_image(Image.new("RGB", (16, 16), "red"), question), whole_words=False
        )

    np.testing.assert_array_equal(lens("What?").scores_nvk, lens("Is it a cat or a dog?").scores_nvk)
    first = [{"role": "user", "content": [{"type": "text", "text": "Look:"}, *conversation()[0]["content"]]}]
    assert not np.allclose(
        lens("What?").scores_nvk, vocabulary_lens(*built, first, whole_words=False).scores_nvk
    )


def test_each_image_has_its_own_patches_and_picture(built):
    lens = vocabulary_lens(*built, conversation(2), k=2, whole_words=False)
    assert len(lens.pictures) == 2 and lens.image_v.tolist() == [0] * 4 + [1] * 4
    assert lens.pictures[1].getpixel((0, 0)) == (0, 0, 255)
    ids = [[processor_id for row in lens.words("layer 0", image) for processor_id in row] for image in (0, 1)]
    flat = [[lens.text[int(i)] for i in token] for token in lens.ids_nvk[1]]
    assert [*ids[0], *ids[1]] == flat
    for image in (0, 1):
        nearest = [token[0] for token in ids[image]]
        common = dict(lens.common("layer 0", 100, image))
        assert common == {word: [shown(t) for t in nearest].count(word) for word in map(shown, nearest)}
    with pytest.raises(ValueError, match="image 2: there are 2"):
        lens.words("layer 0", 2)


def test_mistakes_are_named(built):
    with pytest.raises(ValueError, match="at least one image, got none"):
        vocabulary_lens(*built, [{"role": "user", "content": "Hi"}])
    with pytest.raises(ValueError, match="layer 7: there are 2 layers"):
        vocabulary_lens(*built, conversation(), layers=[7])
    with pytest.raises(ValueError, match="or the input, got neither"):
        vocabulary_lens(*built, conversation(), layers=[], at_input=False, whole_words=False)
    with pytest.raises(ValueError, match="k=0: expected 1 to"):
        vocabulary_lens(*built, conversation(), k=0, whole_words=False)
    with pytest.raises(ValueError, match="view 'layer 9': expected one of input, layer 0"):
        vocabulary_lens(*built, conversation(), whole_words=False).words("layer 9")


def test_the_page_has_a_frame_for_each_view_with_every_word_and_needs_nothing_else(built, tmp_path):
    lens = vocabulary_lens(*built, conversation(2), k=3, whole_words=False)
    page = lens.save(tmp_path).read_text()
    assert page.count('class="frame"') == 2 * 3 and page.count('<div class="lens seen-') == 2 * 3
    cells = re.findall(r'<span style="[^"]*" title="([^"]*)">', page)
    assert len(cells) == 3 * 8 and all(len(cell.split("\n")) == 3 for cell in cells)
    assert external(page) == [] and page.count("url(data:image/png") == 2
    for frame in page.split('class="frame"')[1:]:  # of the image's own four patches, not of both images'
        assert 1 <= sum(int(count) for count in re.findall(r"&times; (\d+)", frame)) <= 4
    arrays = np.load(tmp_path / "lens.npz")
    assert {"ids_nvk", "scores_nvk", "found_nvk", "image_v"} == set(arrays.files)
    facts = json.loads((tmp_path / "lens.json").read_text())
    assert facts["views"] == list(lens.views) and facts["settings"]["k"] == 3
    assert {int(i): text for i, text in facts["text"].items()} == lens.text and "pictures" not in facts
    with Image.open(tmp_path / "lens.png") as picture:
        assert picture.width > 3 * 300


def test_what_a_token_writes_can_be_seen():
    assert [shown(text) for text in (" cat", "\n", " ", "", "$x$")] == [
        "cat",
        "\u23ce",
        "\u2423",
        "\u2205",
        "$x$",
    ]


def test_the_command_sets_models_side_by_side(saved, tiny, tmp_path):
    picture = tiny.data.parent / "0.png"
    done = CliRunner().invoke(
        app,
        f"inspect lens {saved} {saved} --image {picture} --layers -1 -k 2 --all-tokens --dtype float32"
        f" -o {tmp_path}".split(),
    )
    assert done.exit_code == 0, done.output
    page = tmp_path / "lens.html"
    assert done.output.strip().endswith(str(page)) or str(page) in done.output.replace("\n", "")
    assert "layer 1" in done.output and "llavit (2)" in done.output
    assert page.read_text().count('<section class="result">') == 2
    assert (tmp_path / "lens-2.npz").is_file()


def test_the_command_says_what_is_missing(saved):
    for options, message in [
        ("", "expected one of --image FILE and --messages FILE"),
        ("--image none.png", "no such image: none.png"),
        ("--image none.png --messages m.json", "expected one of"),
    ]:
        done = CliRunner().invoke(app, f"inspect lens {saved} {options}".split())
        assert done.exit_code == 2 and message in done.output
