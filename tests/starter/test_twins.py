"""No drawing of training looks like one of the test: 24 x 24 pixels correlate by 0.96 at most."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("resvg_py", reason="of the extra `starter`, which a core install lacks")

from llavit.starter.gallery import open_gallery
from llavit.starter.kit import Drawing
from llavit.starter.packages import missing_packages
from llavit.starter.twins import LIMIT, closest, fingerprint, twins


class Two:
    """A gallery with one drawing of training and one of the test, both made of the same picture or not."""

    edition = "starter"

    def __init__(self, same: bool):
        self.same = same

    def drawings(self, split):
        source = "mine" if split == "train" else "theirs"
        return () if split == "val" else (Drawing(source, "a", "a"),)

    def pictures(self, split):
        return ()

    def render(self, drawing, size, tint=None):
        rng = np.random.default_rng(0 if self.same or drawing.source == "mine" else 1)
        return Image.fromarray(rng.integers(0, 255, (size, size, 4), dtype=np.uint8), "RGBA")


def test_a_copy_is_found_and_another_picture_is_not():
    assert [(one.source, other.source) for one, other, _ in twins(Two(True))] == [("mine", "theirs")]
    assert twins(Two(False)) == []


def test_the_closest_row_is_the_one_that_correlates_most():
    rows = np.stack([fingerprint(Image.new("RGBA", (9, 9), (40 * n, 0, 0, 255))) for n in range(2)])
    noise = [fingerprint(Image.effect_noise((32, 32), 90).convert("RGBA")) for _ in range(3)]
    best, place = closest(np.stack([noise[2], noise[0]]), np.stack(noise))
    assert place.tolist() == [2, 0] and np.allclose(best, 1, atol=1e-5)
    assert rows.shape == (2, 24 * 24 * 3)


def test_the_starter_edition_has_no_twins_between_training_and_test():
    gallery = open_gallery("starter")
    assert [(one.name, other.source, value) for one, other, value in twins(gallery) if value > LIMIT] == []


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_packages()), reason="needs the packages of `llavit starter build --full`")
def test_the_full_edition_has_no_twins_between_training_and_test():
    gallery = open_gallery("full")
    assert [(one.source, one.key) for one, _, _ in twins(gallery)] == []
