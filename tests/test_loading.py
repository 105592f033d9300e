"""Loading a model to be asked."""

import pytest
import torch

from llavit.loading import load_model
from llavit.model.adapters import has_adapters, merge_adapters
from llavit.model.quantize import is_int8, quantize_int8
from tests.adapted import save_adapted


def test_a_llava_checkpoint_answers_as_llava_and_a_llavit_as_it_was_trained(tiny, tmp_path):
    from tests.model.test_conformance import LLAVA, llava_twin
    from tests.model.test_conformance import tiny as tiny_model

    llava_twin(tiny_model("llama", **LLAVA, vision_feature_layer=-2)).save_pretrained(tmp_path / "llava")
    model, processor = tiny.build()
    model.save_pretrained(tmp_path / "llavit")
    for name in ("llava", "llavit"):
        processor.save_pretrained(tmp_path / name)
        loaded, _ = load_model(tmp_path / name, dtype="float32", device="cpu")
        assert loaded.config.visual_qkv == loaded.config.bidirectional_visual_attention == (name == "llavit")
    forced, _ = load_model(tmp_path / "llava", dtype="bfloat16", device="cpu", visual_qkv=True)
    assert forced.config.visual_qkv and forced.dtype == torch.bfloat16


def test_what_cannot_be_loaded_says_so(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        load_model(tmp_path / "gone")
    with pytest.raises(ValueError, match="dtype='int8': expected one of auto"):
        load_model(tmp_path, dtype="int8")


def test_a_model_with_adapters_is_merged_and_then_made_int8(tiny, tmp_path):
    model = save_adapted(tiny, tmp_path)
    loaded, _ = load_model(tmp_path / "adapted", dtype="float32", device="cpu", quantize="int8")
    merge_adapters(model)
    assert is_int8(loaded) and not has_adapters(loaded)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded(input_ids=ids).logits, quantize_int8(model)(input_ids=ids).logits)


def test_another_quantisation_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="quantize='int4': expected None or one of int8"):
        load_model(tmp_path, quantize="int4")


@pytest.mark.parametrize(
    "stated",
    [{}, {"patch_size": 8, "vision_feature_select_strategy": "default"}],
    ids=["nothing", "no CLS token"],
)
def test_what_the_processor_of_an_older_llava_does_not_state_is_in_the_models_config(stated, tiny, tmp_path):
    from PIL import Image
    from transformers import LlavaProcessor

    model, processor = tiny.build()
    model.save_pretrained(tmp_path)
    template = processor.chat_template
    LlavaProcessor(
        processor.image_processor, processor.tokenizer, chat_template=template, **stated
    ).save_pretrained(tmp_path)
    _, loaded = load_model(tmp_path, dtype="float32", device="cpu")
    messages = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (9, 9))}]}]
    assert torch.equal(loaded.encode(messages)["input_ids"], processor.encode(messages)["input_ids"])


def test_a_model_that_is_spread_by_a_device_map_is_left_where_it_is(tiny, tmp_path, monkeypatch):
    for part in tiny.build():
        part.save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # there is none: moving to it would raise
    model, _ = load_model(tmp_path, dtype="float32", device_map={"": "cpu"})
    assert model.device.type == "cpu" and not model.training
    with pytest.raises(ValueError, match="device='cuda' and device_map='auto': expected one of them"):
        load_model(tmp_path, device="cuda", device_map="auto")


def test_a_model_in_a_folder_of_a_repository_is_loaded_with_its_processor(tiny, tmp_path):
    model, processor = tiny.build()
    model.save_pretrained(tmp_path / "inside")
    processor.save_pretrained(tmp_path / "inside")
    _, again = load_model(tmp_path, subfolder="inside", dtype="float32", device="cpu")
    assert again.image_seq_length == processor.image_seq_length


def test_so_is_a_model_with_adapters(tiny, tmp_path):
    model = save_adapted(tiny, tmp_path)
    again, _ = load_model(tmp_path, subfolder="adapted", dtype="float32", device="cpu")
    assert has_adapters(again)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
