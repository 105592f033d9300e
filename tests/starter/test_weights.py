"""Starter weights: the conversions agree with llama.cpp and onnxruntime."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from llavit.starter import weights
from llavit.starter.weights import starter_llm, starter_tower

# Token ids by llama.cpp (llama-cpp-python 0.3.36, `tokenize(..., add_bos=False, special=True)`).
TOKENS_BY_LLAMA_CPP = {
    "\n\n1. foo  12 bar": [1116, 33, 30, 29856, 256, 33, 34, 2753],
    "a1b2 2024-11-23": [81, 33, 82, 34, 216, 34, 32, 34, 36, 29, 33, 33, 29, 34, 35],
    "  42": [256, 36, 34],
    "x = 3.14159\n\n\n10": [104, 446, 216, 35, 30, 33, 36, 33, 37, 41, 16506, 33, 32],
    "Hello world! It's 5 o'clock; don't.": [
        19556,
        905,
        17,
        657,
        506,
        216,
        37,
        263,
        23,
        17466,
        43,
        1326,
        982,
        30,
    ],
    "<|im_start|>user\nHi<|im_end|>\n": [1, 4093, 198, 26843, 2, 198],
    "½ ² ٣ 12³": [16738, 216, 19133, 216, 164, 113, 216, 33, 34, 39050],
    "naïve café 日本語 🙂  \t tab": [
        *[3546, 46494, 37366, 17097, 241, 115, 40993, 179, 120, 248, 47526, 256, 197, 10147]
    ],
    "   leading": [256, 2899],
    "trailing   ": [4861, 4966, 333],
    "\r\n\r\n7\r\n": [18682, 39, 2738],
    "def f(x):\n    return x**2 + 10\n": [
        1604,
        275,
        24,
        104,
        727,
        472,
        1003,
        1792,
        828,
        34,
        1232,
        216,
        33,
        32,
        198,
    ],
}

TEXT = """The sun rises in the east and sets in the west. Water boils at 100 degrees Celsius at sea level.
A list of primes: 2, 3, 5, 7, 11, 13.

1. First, open the door.
2. Then walk in, and close it behind you.
"""
NLL_BY_LLAMA_CPP = 2.0596  # nats per token of TEXT

SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(starter_llm())


@pytest.fixture(scope="module")
def llm():
    model, report = AutoModelForCausalLM.from_pretrained(starter_llm(), output_loading_info=True)
    assert not any(report.values()), report  # no missing, unexpected or mismatched weights
    return model.eval()


@pytest.fixture(scope="module")
def tower():
    model, report = AutoModel.from_pretrained(starter_tower(), output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


# --- the language model -------------------------------------------------------------------------------------


def test_the_llm_is_smollm2_in_its_own_dtype(llm):
    assert type(llm).__name__ == "LlamaForCausalLM"
    assert llm.dtype == torch.bfloat16
    assert llm.num_parameters() == 134_515_008
    assert llm.get_output_embeddings().weight is llm.get_input_embeddings().weight
    config = llm.config
    assert config.rope_parameters["rope_theta"] == 100_000
    assert config.rms_norm_eps == 1e-5
    assert config.max_position_embeddings == 8192


def test_the_llm_answers(llm, tokenizer):
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = llm.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(output) == "The capital of France is Paris.<|im_end|>"


def test_the_llm_predicts_like_llama_cpp_on_the_same_file(llm, tokenizer):
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = llm(ids, labels=ids).loss.item()
    # llama.cpp rounds activations to 8 bits, we compute in bfloat16: measured 0.1 % apart. A head left
    # interleaved, a missing scale or a swapped matrix costs more than a nat.
    assert loss == pytest.approx(NLL_BY_LLAMA_CPP, abs=0.02)


@pytest.mark.slow
def test_the_weights_are_those_of_transformers_gguf_loader_to_the_bit(llm):
    from transformers import GgufConfig

    path = weights._source_file(weights.LLM)
    reference = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    ours = llm.state_dict()
    assert ours.keys() == reference.state_dict().keys()
    for name, value in reference.state_dict().items():
        assert torch.equal(ours[name], value.to(torch.bfloat16)), name


# --- its tokenizer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TOKENS_BY_LLAMA_CPP, ids=ascii)
def test_text_is_split_as_llama_cpp_splits_it(tokenizer, text):
    assert tokenizer(text).input_ids == TOKENS_BY_LLAMA_CPP[text]


@pytest.mark.parametrize("text", [*TOKENS_BY_LLAMA_CPP, TEXT, "a , b .  c ' s\t\n", ""], ids=ascii)
def test_decoding_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_roles_of_special_tokens(tokenizer):
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0)
    assert tokenizer.model_max_length == 8192


def test_model_generation_and_tokenizer_name_the_same_special_tokens(llm, tokenizer):
    for config in (llm.config, llm.generation_config):
        ids = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
        assert ids == (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_special_tokens_stay_whole_and_can_be_skipped(tokenizer):
    added = tokenizer.added_tokens_decoder
    assert len(added) == 17
    for index, token in added.items():
        assert token.special
        assert tokenizer(f"a{token.content}b").input_ids == [81, index, 82]
        assert tokenizer.decode([81, index, 82], skip_special_tokens=True) == "ab"
    assert len(tokenizer) == 49_152  # as many as the model has embeddings


def test_nothing_is_added_around_a_text(tokenizer):
    assert tokenizer("Hi").input_ids == [26843]


def test_chat_template_is_smollm2s_with_its_default_system_prompt(tokenizer):
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    expected = (
        f"{SYSTEM}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n"
    )
    assert tokenizer.apply_chat_template(chat, tokenize=False) == expected
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == expected + "<|im_start|>assistant\n"


def test_a_system_message_replaces_the_default_one(tokenizer):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == expected


# --- the vision tower ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx_tower():
    """The tower in onnxruntime, with the state after the embedding, each layer and the last norm as outputs."""
    onnx = pytest.importorskip("onnx", reason="of the extra `starter`")
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="of the extra `dev`: the reference to compare with"
    )
    model = onnx.load(weights._source_file(weights.TOWER))
    names = ["embeddings/Add", *(f"encoder/layer.{i}/Add_1" for i in range(12)), "layernorm/Add_1"]
    names = [f"/backbone/{name}_output_0" for name in names]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    for name, dim in zip("hw", model.graph.input[0].type.tensor_type.shape.dim[2:], strict=True):
        dim.dim_param = name  # the file says 224, its graph takes any size
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(names, {"input_image": pixels})


@pytest.mark.parametrize(("height", "width"), [(112, 112), (224, 224), (98, 140)])
def test_every_layer_of_the_tower_equals_onnxruntime(tower, onnx_tower, height, width):
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = tower(pixels, output_hidden_states=True)
    ours = [*output.hidden_states, output.last_hidden_state]  # each (b, 1 + patches, d)
    reference = onnx_tower(pixels.numpy())
    assert len(ours) == len(reference) == 14
    for index, (a, b) in enumerate(zip(ours, reference, strict=True)):
        assert a.shape == b.shape == (2, 1 + (height // 14) * (width // 14), 384)
        # float32 in another order of operations: measured up to 3.4e-5, for values up to 17
        np.testing.assert_allclose(a.numpy(), b, atol=1e-4, rtol=0, err_msg=f"hidden state {index}")


def test_the_tower_is_a_dinov2_of_22_million_parameters(tower):
    assert type(tower).__name__ == "Dinov2Model"
    assert tower.dtype == torch.float32
    assert tower.num_parameters() == 22_056_192
    assert tower.config.image_size == 518


@pytest.mark.parametrize("size", [(50, 90), (300, 200), (112, 112)])
def test_images_are_squashed_to_112_pixels_and_normalised(size):
    processor = AutoImageProcessor.from_pretrained(starter_tower(), backend="pil")
    assert type(processor).__name__ == "BitImageProcessorPil"  # needs no torchvision
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    ours = processor(image, return_tensors="np")["pixel_values"]
    expected = np.asarray(image.resize((112, 112), Image.Resampling.BICUBIC)) / 255
    expected = (expected - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert ours.shape == (1, 3, 112, 112)
    np.testing.assert_allclose(ours[0].transpose(1, 2, 0), expected, atol=1e-5)  # float32 against float64
