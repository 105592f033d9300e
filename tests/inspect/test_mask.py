"""Which token sees which: what the attention function does, in words, whatever the configuration says."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from llavit.cli import app
from llavit.inspect.blocking import Block, knockout
from llavit.inspect.mask import Mask, attention_mask, read_mask, recorded_masks
from llavit.inspect.mask_words import verdict
from tests.inspect.test_attention import eager_attentions, prompt_of
from tests.inspect.test_report import external
from tests.model.families import LLMS, tiny

SWITCHED = [True, False]


def looked(model, inputs) -> Mask:
    """The mask of a tiny model's prompt, two images in it."""
    words = SimpleNamespace(batch_decode=lambda ids: [str(i) for (i,) in ids])
    processor = SimpleNamespace(
        encode=lambda messages, **_: inputs, tokenizer=words, render=lambda *_: "prompt"
    )
    return attention_mask(model, processor, [])


def wanted(inputs, bidirectional: bool, window: int | None) -> np.ndarray:
    """The paper's rule, pair by pair; a window cuts the past, and never an image."""
    images = inputs["image_ids"].tolist()
    table = np.zeros((len(images), len(images)), bool)
    for row, mine in enumerate(images):
        for column, other in enumerate(images):
            past = column <= row and (window is None or row - column < window)
            table[row, column] = past or (bidirectional and mine == other >= 0)
    return table


@pytest.mark.parametrize("bidirectional", SWITCHED)
@pytest.mark.parametrize("llm", LLMS)
def test_every_layer_of_every_family_sees_what_the_paper_says(llm, bidirectional):
    model, inputs = tiny(llm, bidirectional_visual_attention=bidirectional), prompt_of(llm)
    mask = looked(model, inputs)
    config = model.config.llm
    types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    if llm == "mistral-sliding":
        types = ["sliding_attention"] * config.num_hidden_layers
    assert sorted(layer for layers in mask.layers for layer in layers) == list(
        range(config.num_hidden_layers)
    )
    for sees, layers in zip(mask.sees_mll, mask.layers, strict=True):
        for layer in layers:
            window = config.sliding_window if types[layer] == "sliding_attention" else None
            np.testing.assert_array_equal(sees, wanted(inputs, bidirectional, window))
    np.testing.assert_array_equal(mask.sees_mll, mask.said_mll)
    assert mask.bidirectional is bidirectional
    assert not any("WARNING" in sentence or "LEAK" in sentence for sentence in mask.sentences())


@pytest.mark.parametrize("llm", ["llama", "gemma3", "qwen2-sliding"])
def test_it_is_where_eager_attention_has_weights(llm):
    model, inputs = tiny(llm, gain=1.0), prompt_of(llm)
    weights = eager_attentions(model, inputs)
    for layer, found in enumerate(recorded_masks(model, inputs)):
        np.testing.assert_array_equal(found.sees, (weights[layer] > 0).any(0))


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_the_backend_is_named_and_the_model_left_as_it_was(backend):
    model, inputs = tiny("llama", backend=backend), prompt_of("llama")
    batch = {"input_ids": inputs["input_ids"][None], "pixel_values": inputs["pixel_values"]}
    with torch.no_grad():
        before = model(**batch).logits
        mask = looked(model, inputs)
        assert torch.equal(model(**batch).logits, before)
    assert mask.backend == backend and f"Attention implementation: {backend}." in mask.sentences()
    assert mask.forms[0].startswith("bool tensor" if backend == "sdpa" else "float32 tensor")


def test_no_mask_under_sdpa_is_causal_in_words_too():
    mask = looked(tiny("llama", backend="sdpa", bidirectional_visual_attention=False), prompt_of("llama"))
    assert mask.forms == ("no mask",)
    np.testing.assert_array_equal(mask.sees_mll[0], np.tril(np.ones((25, 25), bool)))
    text = " ".join(mask.sentences())
    assert "In all 3 layers bidirectional visual attention is OFF" in text
    assert "got no mask, which it takes as causal" in text and "Text sees everything before it." in text


def test_layers_with_a_sliding_window_are_told_apart():
    mask = looked(tiny("gemma3"), prompt_of("gemma3"))
    assert dict(zip(mask.kinds, mask.layers, strict=True)) == {
        "sliding_attention": (0, 2),
        "full_attention": (1,),
    }
    text = " ".join(mask.sentences())
    assert "In layers 0, 2 (sliding_attention) bidirectional visual attention is ON" in text
    assert "Text sees at most the last 8 tokens" in text


@pytest.mark.parametrize("llm", ["mistral", "mistral-sliding"])
def test_a_window_in_all_layers_is_no_full_attention(llm):
    """Such a configuration names no types of layers."""
    kind = "sliding_attention" if llm == "mistral-sliding" else "full_attention"
    mask = looked(tiny(llm), prompt_of(llm))
    assert mask.kinds == (kind,) and kind in mask.figure().axes[0].get_title()


@pytest.mark.parametrize(
    ("what", "visual", "text"),
    [
        ("visual_to_visual", "is OFF: a visual token sees no other", "Text sees everything before it."),
        ("bidirectional", "is OFF: a visual token sees the earlier", "Text sees everything before it."),
        (
            "text_to_visual",
            "is ON: every visual token sees all",
            "Text sees all of itself and the text before it and none of the visual tokens before it.",
        ),
    ],
)
def test_what_a_knockout_leaves_is_what_is_said(what, visual, text):
    model = tiny("llama")
    with knockout(model, Block(what)):
        said = " ".join(looked(model, prompt_of("llama")).sentences())
    assert visual in said and text in said and "sliding" not in said


def test_a_window_shorter_than_an_image_hides_earlier_patches():
    mask = looked(tiny("mistral-sliding", bidirectional_visual_attention=False), prompt_of("llama"))
    pairs, hidden = 9 * 8 / 2, 1  # of nine patches the last does not see the first
    assert f"is OFF: a visual token sees {(pairs - hidden) / pairs:.1%} of the earlier" in mask.sentences()[1]
    assert "Text sees at most the last 8 tokens, itself included (a sliding window)." in mask.sentences()[2]


def test_the_configuration_is_not_believed():
    """The switch says on, the mask that is made is causal: the trap of backends that drop it."""
    model, inputs = tiny("llama", bidirectional_visual_attention=False), prompt_of("llama")
    model.config.bidirectional_visual_attention = True
    from llavit.model import modeling

    def causal(*args):
        return None

    before = modeling.visual_attention_mask
    modeling.visual_attention_mask = causal
    try:
        mask = looked(model, inputs)
    finally:
        modeling.visual_attention_mask = before
    assert mask.configured and mask.bidirectional is False
    assert "the configuration says bidirectional_visual_attention: true" in mask.sentences()[-1]


def test_a_backend_that_ignores_its_mask_is_found_out():
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface, sdpa_attention_forward

    def careless(module, query, key, value, mask, **kwargs):
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    AttentionInterface.register("careless_sdpa", careless)
    AttentionMaskInterface.register("careless_sdpa", sdpa_mask)
    try:
        model = tiny("llama", backend="careless_sdpa")
        mask = looked(model, prompt_of("llama"))
    finally:
        del AttentionInterface._global_mapping["careless_sdpa"]
        del AttentionMaskInterface._global_mapping["careless_sdpa"]
    assert (
        verdict(mask.said_mll[0], mask.image_l) == "on" and verdict(mask.sees_mll[0], mask.image_l) == "off"
    )
    text = " ".join(mask.sentences())
    assert "is OFF" in text and "careless_sdpa does not do what its mask says" in text
    assert "not what happens" in text


def test_a_leak_is_said():
    mask = looked(tiny("llama", bidirectional_visual_attention=False), prompt_of("llama"))
    leaky = mask.sees_mll.copy()
    leaky[0, 0, -1] = True
    from dataclasses import replace

    assert any("LEAK" in sentence for sentence in replace(mask, sees_mll=leaky, said_mll=leaky).sentences())


def test_masks_of_every_kind_are_read():
    causal = np.tril(np.ones((3, 3), bool))
    boolean = torch.from_numpy(causal)[None, None]
    additive = torch.zeros(1, 1, 3, 3).masked_fill(~boolean, torch.finfo(torch.float32).min)
    for given in (None, boolean, additive):
        np.testing.assert_array_equal(read_mask(given, 3), causal)
    padded = read_mask(torch.tensor([[0, 1, 1]]), 3, "flash_attention_2")
    np.testing.assert_array_equal(padded, causal & [False, True, True])
    assert read_mask(None, 3, "sdpa", is_causal=False).all()
    window = read_mask(None, 3, "flash_attention_2", sliding_window=2)
    np.testing.assert_array_equal(window, causal & ~np.tril(np.ones((3, 3), bool), -2))
    np.testing.assert_array_equal(
        read_mask(boolean, 3, "sdpa", sliding_window=2), causal
    )  # it is in the mask
    with pytest.raises(ValueError, match="got str"):
        read_mask("causal", 3)


def test_a_block_mask_is_read():
    from torch.nn.attention.flex_attention import create_block_mask

    image = torch.tensor([-1, 0, 0, -1])

    def rule(b, h, q, k):
        return (q >= k) | ((image[q] == image[k]) & (image[q] >= 0))

    made = create_block_mask(rule, 1, None, 4, 4, device="cpu")
    np.testing.assert_array_equal(
        read_mask(made, 4, "flex_attention"), wanted({"image_ids": image}, True, None)
    )


@pytest.mark.slow  # compiling takes a minute
def test_under_flex_attention_it_is_what_the_block_mask_says():
    mask = looked(tiny("llama", backend="flex_attention"), prompt_of("llama"))
    assert mask.backend == "flex_attention" and mask.forms == ("BlockMask",)
    np.testing.assert_array_equal(mask.sees_mll[0], wanted(prompt_of("llama"), True, None))
    np.testing.assert_array_equal(mask.sees_mll, mask.said_mll)


def test_a_text_only_conversation_has_no_verdict(tiny):
    model, processor = tiny.build()
    mask = attention_mask(model.eval(), processor, [{"role": "user", "content": "Hi"}])
    assert mask.bidirectional is None and "does not show" in " ".join(mask.sentences())
    assert not any("WARNING" in sentence for sentence in mask.sentences())


def test_the_drawing_shows_runs_and_tokens():
    mask = looked(tiny("llama"), prompt_of("llama"))
    lines = mask.drawing(width=25).splitlines()
    assert [line.split() for line in lines[1:6]] == [
        ["1", "text", "0-1", "\u25e3", *"\u00b7" * 4],
        ["2", "image", "1", "2-10", "\u2588", "\u2588", *"\u00b7" * 3],
        ["3", "text", "11-11", *"\u2588" * 3, *"\u00b7" * 2],
        ["4", "image", "2", "12-20", *"\u2588" * 4, "\u00b7"],
        ["5", "text", "21-24", *"\u2588" * 4, "\u25e3"],
    ]
    assert lines[8].startswith("\u2588\u2584 ") and len(lines) == 8 + 13 and lines[-1] == "\u2580" * 25
    assert len(mask.drawing(width=24).splitlines()) == 7


def test_the_command_prints_draws_and_says(tiny, tmp_path):
    model, processor = tiny.build(dtype=torch.float32)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    Path(tmp_path / "messages.json").write_text(
        json.dumps(
            [{"role": "user", "content": [{"type": "image", "image": str(tiny.data.parent / "0.png")}]}]
        )
    )
    options = f"--messages {tmp_path / 'messages.json'} --attention eager -o {tmp_path / 'out'}"
    done = CliRunner().invoke(app, f"inspect mask {tmp_path / 'model'} {options}".split())
    assert done.exit_code == 0, done.output
    assert "bidirectional visual attention is ON" in done.output and "implementation: eager" in done.output
    assert "\u25e3" in done.output
    page = (tmp_path / "out/mask.html").read_text()
    assert external(page) == [] and "is ON" in page
    facts = json.loads((tmp_path / "out/mask.json").read_text())
    assert facts["bidirectional"] is True and facts["backend"] == "eager"
    assert np.load(tmp_path / "out/mask.npz")["sees_mll"].shape[0] == 1
