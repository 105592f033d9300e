"""`generate` beyond one greedy answer a row."""

import pytest
import torch
from transformers import DynamicCache

from llavit.model.compat import cache_argument

from .families import IMAGE, image_prompt, inputs_of_one_image, pixels, tiny


def test_each_of_several_answers_sees_its_rows_own_images():
    model = tiny("llama")
    model.generation_config.eos_token_id = None
    two, one = image_prompt([1, 5], 2, [7]), image_prompt([1, 5], 1, [7])
    ids = torch.tensor([two, [0] * (len(two) - len(one)) + one])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels(3)}
    options = {"max_new_tokens": 4, "pad_token_id": 0}
    alone = model.generate(**batch, **options, do_sample=False)
    drawn = model.generate(**batch, **options, do_sample=True, top_k=1, num_return_sequences=2)
    assert drawn.tolist() == alone.repeat_interleave(2, dim=0).tolist()
    assert (
        alone.tolist()
        != model.generate(**{**batch, "pixel_values": pixels(3)[[0, 0, 1]]}, **options).tolist()
    )


WAYS = [{}, {"use_cache": False}, {"prompt_lookup_num_tokens": 3}, {"num_beams": 2}]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("as_features", [False, True])
def test_what_the_processor_encodes_can_be_generated_from(way, as_features):
    model = tiny("llama")
    model.generation_config.eos_token_id = None
    # The word before the image ends the prompt, and is said again: prompt lookup then proposes image tokens.
    ids = torch.tensor([image_prompt([1, 29], 1, [7, 29])])
    options = {"input_ids": ids, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**options, pixel_values=pixels(1), **(way if "num_beams" in way else {}))
    images = {"pixel_values": pixels(1)}
    if as_features:
        images = {"image_features": model.model.encode_images(pixels(1))}
    image_ids = torch.where(ids == IMAGE, 0, -1)
    assert model.generate(**options, **images, image_ids=image_ids, **way).tolist() == expected.tolist()


def test_image_ids_of_a_whole_conversation_continue_a_cache():
    model = tiny("llama")
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [IMAGE]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    first = torch.tensor([image_prompt([1, 5], 1, [7])])
    cache = DynamicCache(config=model.config)
    said = model.generate(input_ids=first, pixel_values=pixels(1), **cache_argument(cache), **options)
    both = torch.cat([said, torch.tensor([image_prompt([8], 1, [9])])], 1)
    image_ids = torch.where(both == IMAGE, 1, -1)
    image_ids[:, : first.shape[1]] = torch.where(first == IMAGE, 0, -1)
    expected = model.generate(input_ids=both, image_ids=image_ids, pixel_values=pixels(2), **options)
    continued = model.generate(
        input_ids=both, image_ids=image_ids, pixel_values=pixels(2)[1:], **cache_argument(cache), **options
    )
    assert continued.tolist() == expected.tolist()


LLAVA = {"visual_qkv": False, "bidirectional_visual_attention": False}


@pytest.mark.parametrize("switches", [{}, LLAVA])
def test_generate_takes_what_llavas_takes(switches):
    model = tiny("llama", **switches)
    model.generation_config.eos_token_id = None
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    one = inputs_of_one_image()
    answer = model.generate(**one, **options)

    same = {"vision_feature_layer": [1, -2], "vision_feature_select_strategy": "default"}
    assert torch.equal(model.generate(**one, **same, **options), answer)
    other = model.generate(**one, vision_feature_layer=[0, -1], **options)
    model.config.vision_feature_layer = [0, -1]
    assert torch.equal(model.generate(**one, **options), other) and not torch.equal(other, answer)
    with pytest.raises(ValueError, match=r"as many layers as the configuration has \(\[0, -1\]\).*got -2"):
        model.generate(**one, vision_feature_layer=-2, **options)
    # With the CLS token beside the patches an image has a token more.
    more = torch.cat([one["input_ids"][:, :2], one["input_ids"][:, 2:3], one["input_ids"][:, 2:]], 1)
    strategy = {"pixel_values": one["pixel_values"], "vision_feature_select_strategy": "full"}
    assert model.generate(input_ids=more, **strategy, **options).shape == (1, more.shape[1] + 4)
    with pytest.raises(ValueError, match="image tokens and image features differ"):
        model.generate(input_ids=one["input_ids"], **strategy, **options)


@pytest.mark.parametrize(
    "way", [{}, {"num_beams": 2}, {"cache_implementation": "static", "disable_compile": True}]
)
def test_embeddings_give_the_answer_of_their_tokens(way):
    model = tiny("llama")
    model.generation_config.eos_token_id = None
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, **way}
    embed = model.get_input_embeddings()

    text = torch.tensor([[1, 5, 7]])
    said = model.generate(inputs_embeds=embed(text), **options)
    assert torch.equal(said, model.generate(input_ids=text, **options)[:, 3:])

    one = inputs_of_one_image()
    ids, images = one["input_ids"], {"pixel_values": one["pixel_values"]}
    image_ids = torch.where(ids == IMAGE, 0, -1)
    said = model.generate(inputs_embeds=embed(ids), image_ids=image_ids, **images, **options)
    assert torch.equal(said, model.generate(**one, **options)[:, ids.shape[1] :])
    with pytest.raises(ValueError, match="expected image_ids, to know where they go"):
        model.generate(inputs_embeds=embed(ids), **images, **options)


def test_a_prompt_with_images_is_not_cut_into_chunks_which_would_hide_later_patches_from_earlier_ones():
    model, one = tiny("llama"), inputs_of_one_image()
    options = {"max_new_tokens": 2, "prefill_chunk_size": 5, "pad_token_id": 0}
    ids = {"input_ids": one["input_ids"]}
    features = {**ids, "image_features": model.model.encode_images(one["pixel_values"])}
    image_ids = {"image_ids": torch.where(one["input_ids"] == IMAGE, 0, -1)}
    for inputs in (one, features, {**one, **image_ids}, {**features, **image_ids}):
        with pytest.raises(ValueError):
            model.generate(**inputs, **options)
