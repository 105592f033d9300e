"""Patches in colours: alike patches have one colour, different ones another, in every place."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from llavit.inspect.pca import _matched, components, patch_pca


def test_components_are_scikit_learns():
    x = np.random.default_rng(0).standard_normal((40, 7)) @ np.diag([5, 3, 2, 1, 1, 1, 1])
    scores, shares = components(x)
    theirs = PCA(3).fit(x)
    np.testing.assert_allclose(np.abs(scores), np.abs(theirs.transform(x)), atol=1e-10)
    np.testing.assert_allclose(shares, theirs.explained_variance_ratio_)


def test_too_few_rows_give_zeros():
    scores, shares = components(np.array([[1.0, 2.0]]))
    assert scores.tolist() == [[0, 0, 0]] and shares.tolist() == [0, 0, 0]


def test_swapped_and_mirrored_components_are_matched_again():
    x = np.random.default_rng(0).standard_normal((50, 3))
    np.testing.assert_allclose(_matched(x[:, [2, 0, 1]] * [-1, 1, -1], x), x)


def test_patches_that_look_alike_have_one_colour(tiny):
    """Left half red, right half blue: two colours, the same ones in both pictures, in every place."""
    model, processor = tiny.build(dtype=torch.float32)
    for layer in model.model.vision_tower.encoder.layers:  # patches see only themselves
        layer.self_attn.out_proj.weight.data.zero_()
    model.model.vision_tower.embeddings.position_embedding.weight.data.zero_()
    one, other = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    one.paste("blue", (8, 0, 16, 16))
    other.paste("red", (8, 0, 16, 16))
    found = patch_pca(model.eval(), processor, [one, other], layers=[0], tower_layers=[0, 3])
    assert found.rgb.shape == (4, 2, 2, 2, 3) and found.places[-1] == "LLM 0"
    for rgb in found.rgb:
        np.testing.assert_allclose(rgb[0, :, 0], rgb[1, :, 1], atol=1e-2)
        np.testing.assert_allclose(rgb[0, :, 1], rgb[1, :, 0], atol=1e-2)
        assert np.abs(rgb[0, 0, 0] - rgb[0, 0, 1]).max() > 0.9
    assert (found.explained[:, 0] > 0.99).all()  # one difference, one component
    assert found.seen.shape == (2, 112, 112, 3)
    assert found.seen[0, 50, 20].tolist() == [255, 0, 0] and found.seen[0, 50, 90].tolist() == [0, 0, 255]


def test_a_result_saves_a_picture_with_a_row_for_each_image(tiny, tmp_path):
    model, processor = tiny.build(dtype=torch.float32)
    images = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "white")]
    found = patch_pca(model.eval(), processor, images, layers=[0, 2], tower_layers=[])
    assert len(found.figure().axes) == 3 * (1 + 3)
    page = found.save(tmp_path)
    assert page.name == "pca.html" and np.load(tmp_path / "pca.npz")["rgb"].shape == found.rgb.shape
    with pytest.raises(ValueError, match="at least one picture"):
        patch_pca(model, processor, [])
