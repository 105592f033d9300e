"""`generate` beyond one greedy answer a row."""

import torch

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


def test_what_the_processor_encodes_can_be_generated_from():
    model = tiny("llama")
    ids = torch.tensor([image_prompt([1, 5], 1, [7])])
    options = {"pixel_values": pixels(1), "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    image_ids = torch.where(ids == IMAGE, 0, -1)
    with_ids = model.generate(input_ids=ids, image_ids=image_ids, **options)
    assert torch.equal(with_ids, model.generate(input_ids=ids, **options))
