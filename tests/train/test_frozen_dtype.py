"""Frozen parts held in bfloat16: which, what it saves, and what it changes."""

import pytest
import torch
from safetensors import safe_open

from llavit.train.lora import hold_frozen
from llavit.train.parts import freeze
from llavit.train.run import train
from tests.train.lora_parts import load, losses, own


def test_frozen_parts_are_held_as_their_bfloat16_cast_and_trained_ones_are_not(tiny):
    model = tiny.build(dtype=torch.float32).model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    freeze(model, {"projector": 1e-3, "visual_qkv": 1e-3})
    hold_frozen(model, torch.bfloat16, computes_in=torch.bfloat16)
    held = {name for name, p in model.named_parameters() if p.dtype is torch.bfloat16}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name].to(parameter.dtype)), name
        if parameter.requires_grad or parameter.ndim < 2 or "position" in name:
            assert name not in held
    assert "model.language_model.embed_tokens.weight" in held
    assert "model.language_model.layers.0.self_attn.q_proj.text.weight" in held
    assert "model.vision_tower.encoder.layers.0.mlp.fc1.weight" in held
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_frozen_in_bfloat16_a_run_has_nearly_the_same_losses_and_half_of_the_frozen_bytes(tiny, tmp_path):
    bf16 = ["dtype=bfloat16", "stages.0.steps=3", "stages.1.steps=1"]
    train(tiny.recipe(*bf16), output=tmp_path / "a", progress=False)
    train(tiny.recipe(*bf16, "stages.0.frozen_dtype=bfloat16"), output=tmp_path / "b", progress=False)
    for (_, a, _), (_, b, _) in zip(
        losses(tmp_path / "a/pretrain"), losses(tmp_path / "b/pretrain"), strict=True
    ):
        assert a == pytest.approx(b, rel=5e-3)  # only the embeddings are rounded anew
    size = [(tmp_path / run / "pretrain/model.safetensors").stat().st_size for run in "ab"]
    assert size[1] < 0.75 * size[0]
    one, two = own(load(tmp_path / "a/pretrain")), own(load(tmp_path / "b/pretrain", dtype=torch.float32))
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(two[name], one[name].bfloat16().float())


def test_weights_that_are_bfloat16_already_give_the_same_loss_to_the_bit(tiny, sample):
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = tiny.build(dtype=torch.float32).model
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
        freeze(model, {"projector": 1e-3, "visual_qkv": 1e-3})
        hold_frozen(model, dtype, computes_in=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(model.train()(**sample).loss.item())
    assert results[0] == results[1]


def test_frozen_bfloat16_in_a_float32_run_says_what_to_set(tiny, tmp_path):
    with pytest.raises(
        ValueError, match="needs a run that computes in bfloat16, this one computes in float32"
    ):
        train(tiny.recipe("stages.0.frozen_dtype=bfloat16"), output=tmp_path, progress=False)


def test_frozen_auto_is_what_the_run_computes_in(tiny, tmp_path):
    name = "model.vision_tower.encoder.layers.0.mlp.fc1.weight"
    for dtype in ("float32", "bfloat16"):
        few = [f"dtype={dtype}", "stages.0.frozen_dtype=auto", "stages.0.steps=1", "stages.1.steps=1"]
        train(tiny.recipe(*few), output=tmp_path / dtype, progress=False)
        with safe_open(tmp_path / dtype / "pretrain/model.safetensors", "pt") as saved:
            assert saved.get_tensor(name).dtype is getattr(torch, dtype)
