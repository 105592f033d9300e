"""The truth of a picture on the patches that a model sees."""

from types import SimpleNamespace

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from llavit.inspect.truth import BACKGROUND, cover, patch_objects

CROPS = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 42, "width": 42})
STRETCHES = SiglipImageProcessorPil(size={"height": 42, "width": 28})
UNEVEN = SiglipImageProcessorPil(size={"height": 50, "width": 40})  # as 384 pixels and patches of 14


def looks(image_processor) -> SimpleNamespace:
    return SimpleNamespace(image_processor=image_processor, patch_size=14)


def ink_shares(image_processor, box, size) -> np.ndarray:
    """Draw the box black on white, and measure each patch of what the tower gets."""
    picture = Image.new("RGB", size, "white")
    picture.paste("black", tuple(box))
    values = image_processor(picture, return_tensors="np")["pixel_values"][0, 0]
    white, black = values.max(), values.min()
    h, w = (side // 14 for side in values.shape)
    whole = values[: 14 * h, : 14 * w]  # a tower leaves out what is no whole patch
    return ((white - whole) / (white - black)).reshape(h, 14, w, 14).mean((1, 3))


def test_cover_is_what_the_image_processor_really_shows():
    for processor, size, box in [
        (CROPS, (112, 112), (30, 20, 70, 77)),
        (CROPS, (200, 100), (60, 10, 120, 90)),
        (STRETCHES, (112, 112), (10, 40, 63, 100)),
        (STRETCHES, (80, 300), (0, 0, 41, 120)),
        (UNEVEN, (100, 100), (50, 40, 90, 84)),
    ]:
        found = cover([{"box": box}], looks(processor), *size)[0]
        np.testing.assert_allclose(
            found, ink_shares(processor, box, size), atol=0.03
        )  # resampling blurs edges
        assert found.max() > found.min() and found.max() <= 1


def test_what_is_cut_off_is_on_no_patch():
    assert (cover([{"box": (0, 0, 20, 100)}], looks(CROPS), 200, 100) == 0).all()


def test_a_patch_is_the_objects_that_covers_most_of_it():
    things = [{"box": (0, 0, 56, 56)}, {"box": (56, 56, 112, 112)}]
    found = patch_objects(things, looks(STRETCHES), 112, 112)
    assert found.tolist() == [[0, -1], [0, 1], [-1, 1]] and BACKGROUND == -1
    assert (patch_objects(things, looks(STRETCHES), 112, 112, least=0.6)[1] == -1).all()
    assert patch_objects([], looks(STRETCHES), 112, 112).tolist() == [[-1, -1]] * 3
