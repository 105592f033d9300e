"""Files that others send: six formats are decoded, whatever a file is called."""

import pytest

from llavit.serve.formats import load_upload
from tests.serve.parts import picture


@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO"])
def test_other_decoders_stay_shut_for_a_file_that_calls_itself_a_png(kind, tmp_path):
    path = tmp_path / "cat.png"
    picture(1).resize((16, 16)).save(path, kind)
    with pytest.raises(ValueError, match=r"cat.png: not an image in a format that is known \(PNG, JPEG"):
        load_upload(path)


def test_a_png_is_read_and_a_broken_or_huge_one_says_what_it_is(tmp_path, monkeypatch):
    path = tmp_path / "cat.png"
    picture(1).save(path)
    assert load_upload(path).tobytes() == picture(1).tobytes()
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"cat.png: cannot read image .*pixels"):
        load_upload(path)
    path.write_bytes(path.read_bytes()[:-40])
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"cat.png: cannot read image .*truncated"):
        load_upload(path)
