"""Projector: LLaVA's unless told to weigh layers of different scale alike."""

import torch

from llavit.model.projector import LlavitProjector

from .families import config_of, inputs_of_one_image, tiny


@torch.no_grad()
def test_with_the_norm_the_scale_of_a_layer_does_not_matter():
    projector = LlavitProjector(config_of("llama", vision_feature_norm=True))
    features = torch.randn(2, 9, 64)
    louder = features.clone()
    louder[..., :32] *= 100
    # 1e-3: LayerNorm's epsilon of 1e-5 weighs a little more in the fainter layer.
    torch.testing.assert_close(projector(features), projector(louder), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_without_the_norm_it_is_llavas_projector():
    projector = LlavitProjector(config_of("llama"))
    features = torch.randn(2, 9, 64)
    expected = projector.linear_2(projector.act(projector.linear_1(features)))
    assert torch.equal(projector(features), expected)


@torch.no_grad()
def test_the_switch_changes_the_logits():
    batch = inputs_of_one_image()
    assert not torch.allclose(
        tiny("llama")(**batch).logits, tiny("llama", vision_feature_norm=True)(**batch).logits
    )
