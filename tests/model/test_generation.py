"""`generate` beyond one greedy answer a row."""

import pytest
import torch
from transformers import DynamicCache

from llavit.model.compat import cache_argument

from .families import IMAGE, image_prompt, pixels, tiny


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
