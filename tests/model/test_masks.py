"""The mask itself, and packed documents."""

import pytest
import torch

from llavit.model.masks import TEXT, image_ids_from_counts, visual_attention_mask

from .families import IMAGE, PATCHES, config_of, image_prompt, inputs_of_one_image, pixels, tiny


def drawn(image_ids: list[int], **options) -> list[str]:
    """Draw the mask of one row, `1` where a row's token sees a column's."""
    config = config_of("llama").text_config
    config._attn_implementation = "sdpa"
    ids = torch.tensor([image_ids])
    arguments = {"attention_mask": None, "cache": None, "position_ids": None, **options}
    mask = visual_attention_mask(config, ids, torch.zeros(1, len(image_ids), 8), **arguments)
    return ["".join("1" if seen else "0" for seen in row) for row in mask[0, 0]]


def test_text_is_causal_and_an_image_is_a_block():
    assert drawn([TEXT, 0, 0, TEXT]) == ["1000", "1110", "1110", "1111"]


def test_neighbouring_images_do_not_merge():
    assert drawn([0, 0, 1, 1]) == ["1100", "1100", "1111", "1111"]


def test_packed_documents_do_not_see_each_other():
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    assert drawn([0, 0, TEXT, 1, 1, TEXT], position_ids=positions) == [
        "110000",
        "110000",
        "111000",
        "000110",
        "000110",
        "000111",
    ]


def test_image_ids_follow_reading_order_over_rows_and_unequal_images():
    mask = torch.tensor([[True, True, False, True], [False, True, True, True]])
    assert image_ids_from_counts(mask, torch.tensor([2, 1, 3])).tolist() == [[0, 0, TEXT, 1], [TEXT, 2, 2, 2]]


@torch.no_grad()
def test_packed_samples_give_the_logits_of_the_samples_alone():
    model = tiny("llama")
    first, second = image_prompt([1, 5], 1, [7]), image_prompt([1], 1, [8, 9])
    packed = torch.tensor([first + second])
    positions = torch.tensor([[*range(len(first)), *range(len(second))]])
    logits = model(input_ids=packed, pixel_values=pixels(2), position_ids=positions, use_cache=False).logits[
        0
    ]
    for ids, image, got in ((first, 0, logits[: len(first)]), (second, 1, logits[len(first) :])):
        alone = model(input_ids=torch.tensor([ids]), pixel_values=pixels(2)[image : image + 1]).logits[0]
        torch.testing.assert_close(got, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("switches", [{}, {"visual_qkv": False, "bidirectional_visual_attention": False}])
@torch.no_grad()
def test_packed_text_is_kept_apart_also_where_nobody_says_use_cache(switches):
    model = tiny("llama", **switches)
    first, second = [1, 5, 6, 7], [1, 8, 9]
    positions = torch.tensor([[*range(4), *range(3)]])
    packed = model(input_ids=torch.tensor([first + second]), position_ids=positions).logits[0, 4:]
    alone = model(input_ids=torch.tensor([second])).logits[0]
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


def test_a_count_of_features_that_differs_from_the_tokens_says_both():
    model = tiny("llama")
    with pytest.raises(
        ValueError, match=rf"{PATCHES} image tokens, the 2 images give {2 * PATCHES} features"
    ):
        model(input_ids=torch.tensor([image_prompt([1])]), pixel_values=pixels(2))
    with pytest.raises(ValueError, match="image_ids: expected shape"):
        model(input_ids=torch.tensor([[1, IMAGE]]), image_ids=torch.tensor([[0]]))


@torch.no_grad()
def test_a_ready_made_mask_is_refused_where_it_would_make_images_causal():
    model, batch = tiny("llama"), inputs_of_one_image()
    length = batch["input_ids"].shape[1]
    causal = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    for mask, got in (
        (causal, rf"got \(1, 1, {length}, {length}\)"),
        ({"full_attention": causal}, "got dict"),
    ):
        with pytest.raises(
            ValueError, match=rf"attention_mask: expected \(b, past \+ l\).*{got}.*Give the padding mask"
        ):
            model(**batch, attention_mask=mask)
    text = {"input_ids": torch.tensor([[1, 5, 7]])}
    torch.testing.assert_close(
        model(**text, attention_mask=causal[..., :3, :3]).logits, model(**text).logits, atol=1e-5, rtol=1e-5
    )
    model = tiny("llama", bidirectional_visual_attention=False)
    masked, plain = model(**batch, attention_mask=causal).logits, model(**batch).logits
    torch.testing.assert_close(masked, plain, atol=1e-5, rtol=1e-5)
