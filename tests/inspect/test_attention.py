"""Attention from an answer's words to patches: exact, on the right patches, under any attention implementation."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llavit.inspect.attention import answer_attention, answer_words, seen_box
from llavit.inspect.running import around_attention
from llavit.inspect.weights import attention_weights, watch_attention
from tests.model.families import LLMS, image_prompt, pixels, tiny

SWITCHES = [
    {},
    {"visual_qkv": False, "bidirectional_visual_attention": False},
]


def conversation(images: int = 1) -> list[dict]:
    colours = ["red", "blue", "green"][:images]
    parts = [{"type": "image", "image": Image.new("RGB", (16, 16), colour)} for colour in colours]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]


def prompt_of(llm: str) -> dict[str, torch.Tensor]:
    ids = torch.tensor(image_prompt([1, 5], 2, [7, 8, 9]))
    image_ids = torch.full_like(ids, -1)
    image_ids[2:11], image_ids[12:21] = 0, 1
    return {"input_ids": ids, "image_ids": image_ids, "pixel_values": pixels(2)}


def eager_attentions(model, inputs) -> torch.Tensor:
    """transformers' own (layers, heads, l, l)."""
    before = model.model.language_model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(
            input_ids=inputs["input_ids"][None], pixel_values=inputs["pixel_values"], output_attentions=True
        )
    model.set_attn_implementation(before)
    return torch.stack(out.attentions)[:, 0]


@pytest.mark.parametrize("switches", SWITCHES, ids=["llavit", "llava"])
@pytest.mark.parametrize("llm", LLMS)
def test_weights_are_those_of_eager_attention(llm, switches):
    model = tiny(llm, **switches)
    inputs = prompt_of(llm)
    expected = eager_attentions(model, inputs)
    queries = [3, 15, -1]
    found = attention_weights(model, inputs, queries)
    torch.testing.assert_close(found, expected[:, :, queries], atol=2e-6, rtol=1e-4)  # fp32 rounding
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))


@pytest.mark.parametrize("llm", ["llama", "gemma3"])
def test_looking_leaves_the_model_and_its_attention_implementation_alone(llm):
    model = tiny(llm, backend="sdpa")
    inputs = prompt_of(llm)

    def logits():
        with torch.no_grad():
            return model(input_ids=inputs["input_ids"][None], pixel_values=inputs["pixel_values"]).logits

    before = logits()
    attention_weights(model, inputs, [-1], layers=[1])
    assert model.model.language_model.config._attn_implementation == "sdpa"
    assert torch.equal(logits(), before)


def test_compiled_layers_record_as_well_and_stay_compiled():
    model, inputs = tiny("llama", backend="sdpa"), prompt_of("llama")
    expected = attention_weights(model, inputs, [-1])
    layers, runs = model.model.language_model.layers, []

    def backend(graph, example_inputs):
        runs.append(graph)
        return graph.forward

    for layer in layers:
        layer.compile(backend=backend)
    assert torch.equal(attention_weights(model, inputs, [-1]), expected)
    assert runs == []
    with torch.no_grad():
        model(input_ids=inputs["input_ids"][None], pixel_values=inputs["pixel_values"])
    assert runs
    assert torch.equal(attention_weights(model, inputs, [-1]), expected)


def test_nothing_is_left_behind_after_an_error():
    model = tiny("llama", backend="sdpa")
    inputs = prompt_of("llama")
    with pytest.raises(KeyError):
        watch_attention(model, inputs, lambda layer, rows, weights: {}[layer])
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    with pytest.raises(ValueError, match="differ"):
        attention_weights(model.train(), inputs, [-1])
    assert model.model.language_model.config._attn_implementation == "sdpa"
    assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)
    assert all(module.training for module in model.modules())


def test_two_threads_look_at_one_model_and_leave_it_as_it_was():
    model, inputs = tiny("llama", backend="sdpa"), prompt_of("llama")
    expected, found, meets = attention_weights(model, inputs, [-1]), {}, threading.Barrier(2, timeout=60)

    def look(name):
        def see(layer, rows, weights):
            meets.wait()  # both are in the middle of their pass
            found.setdefault(name, []).append(weights)

        watch_attention(model, inputs, see, [-1])

    threads = [threading.Thread(target=look, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(torch.stack(found[name]), expected) for name in "ab")
    assert model.model.language_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("backend", ["sdpa", "eager", "documents"])
def test_weights_are_made_of_the_mask_that_reaches_the_attention_function(backend):
    """Whoever changes that mask, as somebody's own attention function might: the weights follow."""
    model, inputs = tiny("llama", backend="sdpa"), prompt_of("llama")
    model.set_attn_implementation({"text_config": backend})

    def only_itself(base, name, module, query, key, value, mask, **kwargs):
        if mask is not None and hasattr(module, "layer_idx"):
            hidden = ~torch.eye(25, dtype=torch.bool)
            mask = mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, -1e30)
        return base(module, query, key, value, mask, **kwargs)

    with around_attention(only_itself):
        found = attention_weights(model, inputs, range(25))
    torch.testing.assert_close(found, torch.eye(25).expand_as(found))


@pytest.mark.slow  # compiling takes a minute
def test_weights_under_flex_attention_are_those_of_its_block_mask():
    model, inputs = tiny("llama", backend="flex_attention"), prompt_of("llama")
    expected = eager_attentions(tiny("llama"), inputs)
    torch.testing.assert_close(attention_weights(model, inputs, range(25)), expected, atol=2e-6, rtol=1e-4)


def test_layers_are_those_asked_for_in_that_order():
    model, inputs = tiny("llama"), prompt_of("llama")
    all_layers = attention_weights(model, inputs, [-1])
    assert torch.equal(attention_weights(model, inputs, [-1], layers=[-1, 0]), all_layers[[2, 0]])
    with pytest.raises(ValueError, match="layer 3: there are 3 layers, expected -3 to 2"):
        attention_weights(model, inputs, [-1], layers=[3])
    with pytest.raises(ValueError, match="query 25"):
        attention_weights(model, inputs, [25])


@pytest.mark.parametrize("position", ["predicting", "token"])
def test_each_image_has_a_map_with_the_rows_of_eager_attention(tiny, position):
    built = tiny.build()
    model, processor = built
    model.eval()
    messages, answer = conversation(2), "A cat"  # a token a byte
    maps = answer_attention(model, processor, messages, answer, token=2, average=False, position=position)
    prompt = processor.encode(messages, add_generation_prompt=True)
    ids = torch.cat([prompt["input_ids"], torch.tensor(processor.tokenizer.encode(answer))])
    expected = eager_attentions(model, {"input_ids": ids, "pixel_values": prompt["pixel_values"]})
    row = len(prompt["input_ids"]) + 2 - (position == "predicting")
    for image, found in enumerate(maps):
        places = (prompt["image_ids"] == image).nonzero().flatten()
        assert found.shape == (2, 4, 2, 2)  # layers, heads, patches
        want = expected[:, :, row, places].unflatten(-1, (2, 2))
        torch.testing.assert_close(torch.from_numpy(found), want, atol=2e-6, rtol=1e-5)
        assert not np.allclose(found, found.mean())  # a random model does not look evenly


def test_averages_are_means_over_layers_heads_and_tokens(tiny):
    model, processor = tiny.build()
    ask = dict(answer="A cat", layers=[1])
    (each,) = answer_attention(model, processor, conversation(), token=1, average=False, **ask)
    (mean,) = answer_attention(model, processor, conversation(), token=1, **ask)
    np.testing.assert_allclose(mean, each.mean((0, 1)), rtol=1e-6)
    maps = [answer_attention(model, processor, conversation(), token=t, **ask)[0] for t in (3, 4)]
    (both,) = answer_attention(model, processor, conversation(), token=range(3, 5), **ask)
    np.testing.assert_allclose(both, (maps[0] + maps[1]) / 2, rtol=1e-5)
    everything = [answer_attention(model, processor, conversation(), token=t, **ask)[0] for t in range(5)]
    (whole,) = answer_attention(model, processor, conversation(), **ask)
    np.testing.assert_allclose(whole, np.mean(everything, 0), rtol=1e-5)


def test_what_the_answer_says_later_does_not_change_a_map(tiny):
    model, processor = tiny.build()
    short, long = (
        answer_attention(model, processor, conversation(), answer, token=1) for answer in ("Ab", "Abcdef")
    )
    np.testing.assert_array_equal(short[0], long[0])


def test_token_ids_and_text_of_an_answer_give_the_same_map(tiny):
    model, processor = tiny.build()
    ids = processor.tokenizer.encode("A cat")
    by_ids, by_text = (
        answer_attention(model, processor, conversation(), answer, token=4) for answer in (ids, "A cat")
    )
    np.testing.assert_array_equal(by_ids[0], by_text[0])


def test_mistakes_are_named(tiny):
    model, processor = tiny.build()
    ask = [model, processor]
    with pytest.raises(ValueError, match="at least one image, got none"):
        answer_attention(*ask, [{"role": "user", "content": "Hi"}], "A")
    with pytest.raises(ValueError, match="token 5: the answer has 5 tokens, expected 0 to 4"):
        answer_attention(*ask, conversation(), "A cat", token=5)
    with pytest.raises(ValueError, match="answer: expected at least one token"):
        answer_attention(*ask, conversation(), "")
    with pytest.raises(ValueError, match="token: expected at least one"):
        answer_attention(*ask, conversation(), "A", token=[])
    with pytest.raises(ValueError, match="layers: expected at least one"):
        answer_attention(*ask, conversation(), "A", layers=[])


def test_words_know_their_tokens_also_where_a_character_takes_several(tiny):
    _, processor = tiny.build()
    answer = "It's a café, 猫と 3.5 – ½!"
    ids = processor.tokenizer.encode(answer)
    text, words = answer_words(processor.tokenizer, [*ids, processor.tokenizer.eos_token_id])
    assert text == answer
    assert [word.text for word in words] == ["It's", "a", "café", ",", "猫", "と", "3.5", "–", "½", "!"]
    for word in words:
        assert text[word.start :].startswith(word.text)
        written = processor.tokenizer.decode([ids[token] for token in word.tokens])
        assert written == word.text


def test_a_cut_off_character_at_the_end_is_no_trouble(tiny):
    _, processor = tiny.build()
    ids = processor.tokenizer.encode("Ab é")[:-1]
    text, words = answer_words(processor.tokenizer, ids)
    assert words[0].text == "Ab" and words[0].tokens == range(0, 2)
    assert text.startswith("Ab ")
    assert answer_words(processor.tokenizer, []) == ("", [])


def test_the_box_is_what_the_image_processor_lets_the_model_see():
    size = {"height": 16, "width": 16}
    crops = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    assert seen_box(crops, 100, 100) == (0.25, 0.25, 0.75, 0.75)
    # Ink only inside the box changes pixels; ink outside does not.
    picture = Image.new("RGB", (200, 100), "white")
    left, top, right, bottom = (
        round(v * s) for v, s in zip(seen_box(crops, 200, 100), (200, 100) * 2, strict=True)
    )
    outside = picture.copy()
    outside.paste("black", (0, 0, left - 8, 100))
    outside.paste("black", (right + 8, 0, 200, 100))
    outside.paste("black", (0, 0, 200, top - 8))
    outside.paste("black", (0, bottom + 8, 200, 100))

    def values(image):
        return crops(image, return_tensors="pt")["pixel_values"]

    assert torch.allclose(values(picture), values(outside), atol=0.05)  # resampling reaches over a few pixels
    edge = picture.copy()
    edge.paste("black", (left, top, left + 8, bottom))
    assert (values(picture) - values(edge))[..., 0].abs().min() > 1
    stretches = SiglipImageProcessorPil(size=size)
    assert seen_box(stretches, 300, 100) == (0.0, 0.0, 1.0, 1.0)
    assert seen_box(stretches, 300, 100, patch_size=5) == (0.0, 0.0, 15 / 16, 15 / 16)
    assert seen_box(crops, 200, 100, patch_size=6) == (0.375, 0.25, 0.5625, 0.625)
    varies = CLIPImageProcessorPil(size={"shortest_edge": 16}, do_center_crop=False)
    assert seen_box(varies, 200, 100, patch_size=5) == (0.0, 0.0, 30 / 32, 15 / 16)


def test_the_box_of_a_picture_that_is_padded_to_a_square_reaches_beyond_it():
    size = {"height": 16, "width": 16}
    pads = LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 16}, crop_size=size)
    assert seen_box(pads, 100, 100) == (0.0, 0.0, 1.0, 1.0)
    assert seen_box(pads, 200, 100) == (0.0, -0.5, 1.0, 1.5)
    assert seen_box(pads, 100, 400) == (-1.5, 0.0, 2.5, 1.0)
    # The picture's own rows are where the box says, and nowhere else.
    seen = pads(Image.new("RGB", (200, 100), "white"), return_tensors="pt")["pixel_values"][0, 0]
    assert (seen[4:12] > 1.5).all() and (seen[:4] < 0.5).all() and (seen[12:] < 0.5).all()


def test_an_answer_that_copies_a_patch_is_traced_to_that_patch(tiny):
    """Queries and keys set by hand, so that the last layer looks at the brightest patch and nowhere else."""
    model, processor = tiny.build(visual_qkv=False, bidirectional_visual_attention=False)
    picture = Image.new("RGB", (16, 16), "black")
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "?"}]}
    ]
    attention = model.model.language_model.layers[-1].self_attn
    patch, hidden = 2, {}

    def keep(module, args, kwargs):
        hidden["x"] = (args[0] if args else kwargs["hidden_states"]).detach()

    hook = attention.register_forward_pre_hook(keep, with_kwargs=True)
    answer_attention(model, processor, messages, "A", token=0)
    hook.remove()
    encoded = processor.encode(messages, add_generation_prompt=True)
    place = int((encoded["image_ids"] == 0).nonzero()[patch])
    x_ld = hidden["x"][0]
    with torch.no_grad():
        # Keys: how much a token is like the chosen patch and unlike the others. Queries: constant, made of the bias.
        target = torch.zeros(len(x_ld))
        target[place] = 1
        direction = torch.linalg.lstsq(x_ld, target[:, None]).solution[:, 0]
        row = torch.linalg.lstsq(x_ld[-1:], torch.ones(1, 1)).solution[:, 0]
        head = attention.head_dim
        # the slowest rotary pair hardly turns over so few tokens
        for h in range(4):
            attention.q_proj.weight[h * head : (h + 1) * head] = 0
            attention.q_proj.weight[(h + 1) * head - 1] = 60 * row
        for g in range(2):
            attention.k_proj.weight[g * head : (g + 1) * head] = 0
            attention.k_proj.weight[(g + 1) * head - 1] = direction
    (found,) = answer_attention(model, processor, messages, "A", token=0, layers=[-1])
    assert found.argmax() == patch and found.sum() > 0.9
