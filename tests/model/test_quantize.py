"""int8 weights: what they compute, what they take, and that they come back from disk."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from llavit import LlavitForConditionalGeneration
from llavit.model.quantize import Int8Config, Int8Embedding, Int8Linear, is_int8, quantize_int8, quantize_rows
from tests.model.families import LLMS, inputs_of_one_image, tiny
from tests.processes import printed


def rounded(model):
    """Give a copy in floating point with the very weights that int8 stands for."""
    copied = copy.deepcopy(model)
    decoder = copied.get_decoder()
    weights = [module.weight for module in decoder.modules() if type(module) is nn.Linear]
    weights.append(copied.lm_head.weight)
    for weight in weights:
        numbers, scale = quantize_rows(weight)
        weight.data = numbers.to(scale.dtype) * scale[:, None]
    return copied


@torch.no_grad()
def logits(model):
    return model(**inputs_of_one_image()).logits


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", LLMS)
def test_int8_computes_with_the_rounded_weights_and_comes_back_from_disk(family, tied, tmp_path):
    model = tiny(family)
    if model.config.tie_word_embeddings != tied:
        model = tiny_with_ties(family, tied)
    expected = logits(rounded(model))
    quantize_int8(model)
    torch.testing.assert_close(logits(model), expected, atol=2e-4, rtol=2e-4)

    model.save_pretrained(tmp_path)
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(again), logits(model))
    if tied:
        embeddings = again.get_input_embeddings()
        assert again.lm_head.weight is embeddings.weight and again.lm_head.scale is embeddings.scale


def tiny_with_ties(family, tied):
    """A tiny model of a family with the other kind of head."""
    from tests.model import families

    config = families.config_of(family)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    torch.manual_seed(0)
    return LlavitForConditionalGeneration._from_config(config).eval()


def test_text_and_visual_projections_head_and_tied_embeddings_are_int8_and_nothing_else():
    model = quantize_int8(tiny_with_ties("llama", True))
    int8 = {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.int8}
    layers = {
        f"model.language_model.layers.{number}.{name}.weight"
        for number in range(3)
        for name in (
            *(f"self_attn.{which}_proj.{kind}" for which in "qkv" for kind in ("text", "visual")),
            "self_attn.o_proj",
            *(f"mlp.{which}_proj" for which in ("gate", "up", "down")),
        )
    }
    assert int8 == layers | {"model.language_model.embed_tokens.weight", "lm_head.weight"}
    assert isinstance(model.get_input_embeddings(), Int8Embedding)
    untied = quantize_int8(tiny_with_ties("llama", False))
    assert isinstance(untied.get_input_embeddings(), nn.Embedding) and isinstance(untied.lm_head, Int8Linear)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 40], ids=["of the kernel", "not of the kernel"])
@pytest.mark.parametrize("rows", [1, 8, 9, 50])
def test_few_and_many_rows_of_any_width_give_the_same(rows, width, dtype):
    torch.manual_seed(0)
    linear = nn.Linear(width, 24)
    made = Int8Linear.from_float(linear).to(dtype)
    x = torch.randn(rows, width).to(dtype)
    exact = x.double() @ (made.weight.double() * made.scale.double()[:, None]).T + made.bias.double()
    # bfloat16 rounds products, sums and results to 8 bits.
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(made(x).double(), exact, atol=tolerance, rtol=tolerance)
    assert made(x).dtype == dtype


OFF_THE_GRID = """
import torch
from llavit.model.quantize import Int8Linear
layer = Int8Linear.from_float(torch.nn.Linear(576, 4097))
memory = torch.empty(layer.weight.numel() + 64, dtype=torch.int8)
x = torch.randn(1, 576)
expected = layer(x)
for offset in range(1, 17):
    place = memory[offset : offset + layer.weight.numel()].view_as(layer.weight)
    place.copy_(layer.weight)
    moved = Int8Linear.from_float(torch.nn.Linear(576, 4097))
    moved.weight.data, moved.scale, moved.bias = place, layer.scale, layer.bias
    torch.testing.assert_close(moved(x), expected, atol=1e-5, rtol=1e-5)
"""


def test_weights_at_any_address_are_safe():
    """torch's kernel ends the process over an odd number of rows at an odd address; a file has them there."""
    assert printed(OFF_THE_GRID) == ""


def test_what_is_loaded_lies_where_the_kernel_can_read_it(tmp_path):
    quantize_int8(tiny("llama")).save_pretrained(tmp_path)
    loaded = LlavitForConditionalGeneration.from_pretrained(tmp_path)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.parameters())


def test_rounding_is_within_half_a_step_and_exact_for_what_int8_holds():
    torch.manual_seed(0)
    weight = torch.randn(50, 70)
    numbers, scale = quantize_rows(weight)
    error = (numbers * scale[:, None] - weight).abs()
    # The scale was rounded to bfloat16, at most 1/256: the largest number of a row may be cut by 127/256 of a step.
    assert (error <= scale[:, None] * 0.5001).all()
    again, scale_again = quantize_rows(numbers * scale[:, None])
    same = numbers.abs().amax(1) == 127
    assert same.any() and torch.equal(again[same], numbers[same])
    assert torch.equal(scale_again[same], scale[same])


def test_a_row_of_zeros_stays_zeros():
    numbers, scale = quantize_rows(torch.zeros(2, 32))
    assert (numbers == 0).all() and torch.isfinite(scale).all() and (scale > 0).all()


def test_from_pretrained_quantises_a_model_in_floating_point(tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path)
    loaded = LlavitForConditionalGeneration.from_pretrained(tmp_path, quantization_config=Int8Config())
    assert is_int8(loaded)
    assert torch.equal(logits(loaded), logits(quantize_int8(model)))
    loaded.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again/config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "llavit_int8"}
    assert is_int8(LlavitForConditionalGeneration.from_pretrained(tmp_path / "again"))


def test_visual_weights_that_an_int8_llava_lacks_are_copies_of_its_text_weights(tmp_path):
    off = {"visual_qkv": False, "bidirectional_visual_attention": False}
    llava = quantize_int8(tiny("qwen2", **off))
    llava.save_pretrained(tmp_path)
    llavit = LlavitForConditionalGeneration.from_pretrained(
        tmp_path, visual_qkv=True, bidirectional_visual_attention=False
    )
    torch.testing.assert_close(logits(llavit), logits(llava), atol=1e-4, rtol=1e-4)


def test_generation_with_a_cache_is_generation_without():
    model = quantize_int8(tiny("llama"))
    inputs = inputs_of_one_image()
    answers = [
        model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=cached, suppress_tokens=[99])
        for cached in (True, False)
    ]
    assert torch.equal(*answers)


def test_int8_twice_is_an_error():
    model = quantize_int8(tiny("llama"))
    with pytest.raises(ValueError, match="not quantised, got one that is"):
        quantize_int8(model)


@pytest.mark.extras
def test_numbers_and_scales_are_those_of_torchao():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    torch.manual_seed(0)
    linear = nn.Linear(576, 1536, bias=False, dtype=torch.bfloat16)
    numbers, scale = quantize_rows(linear.weight)
    quantize_(linear, Int8WeightOnlyConfig(version=2))
    assert torch.equal(linear.weight.qdata, numbers)
    assert torch.equal(linear.weight.scale.flatten().to(scale.dtype), scale)
