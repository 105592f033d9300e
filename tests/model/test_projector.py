"""Projector: LLaVA's unless told to weigh layers of different scale alike."""

import pytest
import torch

from llavit.model.projector import LlavitProjector

from .families import config_of, inputs_of_one_image, pixels, tiny


@torch.no_grad()
def test_with_the_norm_the_scale_and_offset_of_a_feature_do_not_matter():
    torch.manual_seed(0)
    features = torch.randn(2, 9, 64)
    scale, offset = torch.rand(64) + 0.5, torch.randn(64)
    projector = LlavitProjector(config_of("llama", vision_feature_norm=True))
    projector.calibrate(features)
    plain = projector(features)
    projector.calibrate(features * scale + offset)
    torch.testing.assert_close(projector(features * scale + offset), plain, atol=1e-5, rtol=1e-4)


def test_calibrating_without_the_norm_is_refused():
    with pytest.raises(ValueError, match="vision_feature_norm=True"):
        LlavitProjector(config_of("llama")).calibrate(torch.randn(2, 9, 64))


@torch.no_grad()
def test_the_statistics_are_measured_on_images_and_saved(tmp_path):
    model = tiny("llama", vision_feature_norm=True)
    batch = inputs_of_one_image()
    before = model(**batch).logits
    model.model.calibrate_features(pixels(4))
    after = model(**batch).logits
    assert not torch.allclose(before, after)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(**batch).logits, after)


@torch.no_grad()
def test_without_the_norm_it_is_llavas_projector():
    projector = LlavitProjector(config_of("llama"))
    features = torch.randn(2, 9, 64)
    expected = projector.linear_2(projector.act(projector.linear_1(features)))
    assert torch.equal(projector(features), expected)


@torch.no_grad()
def test_a_wider_projector_is_saved_and_loaded(tmp_path):
    model = tiny("llama", projector_width=80)
    assert model.model.multi_modal_projector.linear_1.out_features == 80
    batch = inputs_of_one_image()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(**batch).logits, model(**batch).logits)
