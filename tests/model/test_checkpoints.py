"""Checkpoints that are not what they seem: parts switched off, weights missing, another format."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from llavit import LlavitForConditionalGeneration

from .families import tiny


@pytest.mark.parametrize("llm", ["llama", "phi3"])
def test_a_llavit_without_its_visual_qkv_keeps_its_text_qkv(llm, tmp_path):
    model = tiny(llm)
    model.save_pretrained(tmp_path)
    plain, info = LlavitForConditionalGeneration.from_pretrained(
        tmp_path, visual_qkv=False, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.tensor([[1, 5, 6, 7]])
    torch.testing.assert_close(plain(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("loader", [LlavitForConditionalGeneration, AutoModelForImageTextToText])
def test_keyword_arguments_change_fields_of_the_configuration(loader, tmp_path):
    model = tiny("llama").eval()
    model.save_pretrained(tmp_path)
    changes = {"projector_hidden_act": "relu", "text_config": {"rms_norm_eps": 0.5}}
    loaded = loader.from_pretrained(tmp_path, output_hidden_states=True, dtype=torch.float32, **changes)
    assert isinstance(loaded.model.multi_modal_projector.act, torch.nn.ReLU)
    assert loaded.config.llm.rms_norm_eps == 0.5
    assert loaded.config.llm.hidden_size == model.config.llm.hidden_size
    assert loaded.config.output_hidden_states
    with pytest.raises(TypeError, match="projector_hidden_actt"):
        loader.from_pretrained(tmp_path, projector_hidden_actt="relu")


def test_a_dtype_is_that_of_the_weights_whatever_the_configuration_says(tmp_path):
    tiny("llama").to(torch.float32).save_pretrained(tmp_path)
    loaded = LlavitForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.bfloat16, output_attentions=True
    )
    assert loaded.dtype == torch.bfloat16


def test_a_checkpoint_that_lacks_weights_is_refused_by_their_names(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "multi_modal_projector" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"4 weights are not in the checkpoint.*multi_modal_projector\.linear_1"
    ):
        LlavitForConditionalGeneration.from_pretrained(tmp_path)
    _, info = LlavitForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert len(info["missing_keys"]) == 4


@pytest.mark.parametrize("kind", ["llava", "llava_llama"])
def test_the_format_of_llavas_own_repository_is_named(kind, tmp_path):
    stated = {"model_type": kind, "mm_vision_tower": "openai/clip-vit-large-patch14-336", "hidden_size": 4096}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with pytest.raises(ValueError, match=r"LLaVA's own repository: llavit convert .* --to"):
        LlavitForConditionalGeneration.from_pretrained(tmp_path)
