"""Loading a model to be asked."""

import pytest
import torch

from llavit.loading import load_model


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
