"""Pictures that are shown again: what is kept, what is told apart, and that answers stay the same."""

import base64
import os
import threading

import pytest
import torch
from PIL import Image

from llavit.serve.pictures import Picture, Pictures
from tests.serve.http_parts import encoded, picture
from tests.serve.parts import engine_of


def pixels(images: list[Image.Image]) -> torch.Tensor:
    """A processor that needs no model: sides of 2, so 48 bytes a picture."""
    return torch.stack(
        [torch.tensor(list(image.resize((2, 2)).tobytes())).view(3, 2, 2).float() for image in images]
    )


def file_of(tmp_path, image):
    path = tmp_path / "picture.png"
    image.save(path)
    return path


@pytest.mark.parametrize("kind", ["bytes", "data URL", "path", "path as text", "file URL", "picture"])
def test_a_picture_is_made_once_whatever_it_comes_as(tmp_path, kind):
    image, path = picture(0, 30, 20), file_of(tmp_path, picture(0, 30, 20))
    given = {
        "bytes": encoded(image, "PNG"),
        "data URL": "data:image/png;base64," + base64.b64encode(encoded(image, "PNG")).decode(),
        "path": path,
        "path as text": str(path),
        "file URL": path.as_uri(),
        "picture": image,
    }[kind]
    pictures = Pictures(pixels, limit=1000)
    first, again = pictures.load(given), pictures.load(given)
    assert again is first and pictures.found == 1 and pictures.bytes == 48
    assert first.size == (30, 20) and torch.equal(first.pixels_chw, pixels([image])[0])
    assert pictures.load(first) is first


def test_other_pixels_are_another_picture_also_of_the_same_bytes_in_another_shape():
    pictures = Pictures(pixels, limit=1000)
    data = bytes(range(60)) * 3
    tall, wide = Image.frombytes("RGB", (6, 10), data), Image.frombytes("RGB", (10, 6), data)
    assert pictures.load(tall).size == (6, 10) and pictures.load(wide).size == (10, 6) and pictures.found == 0
    tall.putpixel((0, 0), (255, 255, 255))  # a picture in memory may be changed by its owner
    changed = pictures.load(tall)
    assert pictures.found == 0 and torch.equal(changed.pixels_chw, pixels([tall])[0])


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    pictures = Pictures(pixels, limit=1000)
    path = file_of(tmp_path, picture(0, 8, 8))
    before = pictures.load(path)
    state = path.stat()
    file_of(tmp_path, picture(1, 8, 8))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    after = pictures.load(path)
    assert after.digest != before.digest and pictures.found == 0


def test_the_one_not_shown_for_longest_goes_and_a_limit_of_0_keeps_nothing():
    pictures = Pictures(pixels, limit=100)  # of two
    images = [picture(seed, 8, 8) for seed in range(3)]
    first, second = pictures.load(images[0]), pictures.load(images[1])
    assert pictures.load(images[0]) is first
    pictures.load(images[2])
    assert pictures.bytes == 96
    assert pictures.load(images[0]) is first and pictures.load(images[1]) is not second
    nothing = Pictures(pixels, limit=0)
    assert nothing.load(images[0]) is not nothing.load(images[0]) and nothing.bytes == 0


def test_what_cannot_be_decoded_is_an_error_each_time_and_keeps_nothing():
    pictures = Pictures(pixels, limit=1000)
    for _ in range(2):
        with pytest.raises(ValueError, match="page: cannot read image of 9 bytes: not an image"):
            pictures.load(b"<html>...", "page")
        with pytest.raises(ValueError, match=r"no-such\.png"):
            pictures.load("no-such.png")
    assert pictures.bytes == pictures.found == 0


def test_threads_that_ask_for_the_same_count_it_once():
    pictures, image = Pictures(pixels, limit=1000), picture(0, 64, 64)
    together = threading.Barrier(8)
    made: list[Picture] = []

    def ask():
        together.wait()
        for _ in range(20):
            made.append(pictures.load(image))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 160 and len({each.digest for each in made}) == 1
    assert pictures.bytes == 48


def test_a_second_question_decodes_nothing_and_answers_as_without(tmp_path):
    torch.manual_seed(0)
    path = file_of(tmp_path, picture(0, 50, 40))
    with engine_of() as engine, engine_of(options={"image_cache_bytes": 0}) as plain:
        for question in ("w5 w6", "w7 w8 w9"):
            ask = {"messages": question, "images": [path, path], "max_new_tokens": 4}
            assert engine.answer(**ask).token_ids == plain.answer(**ask).token_ids
        assert engine.pictures.found == 3 and plain.pictures.found == 0
