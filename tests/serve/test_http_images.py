"""Images: every kind that is decoded is decoded as it should be, and no bomb goes off."""

import asyncio
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from llavit.serve.http.errors import ApiError
from llavit.serve.http.images import FORMATS, ImageLoader, decode_image
from llavit.serve.http.settings import Settings
from llavit.serve.pictures import Pictures
from tests.serve.http_parts import encoded, picture


def known() -> Pictures:
    return Pictures(lambda images: torch.zeros(len(images), 3, 4, 4), limit=10_000)


def png_of(width: int, height: int, lines: bytes) -> bytes:
    """A PNG that states a size, whatever its lines hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_every_kind_is_decoded(kind):
    image = picture(3, 40, 30)
    decoded = decode_image(encoded(image, kind), "image", 10_000, 10_000)
    assert decoded.size == (40, 30) and decoded.mode == "RGB"
    if kind in ("PNG", "BMP", "TIFF"):
        assert (np.asarray(decoded) == np.asarray(image)).all()


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000"])
def test_other_kinds_are_not(kind):
    with pytest.raises(ApiError, match="not an image in a format that is known"):
        decode_image(encoded(picture(0, 32, 32), kind), "image", 10_000, 10_000)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (1, 40_000_000)])
def test_a_bomb_is_refused_by_what_it_states_before_it_is_unpacked(width, height):
    bomb = png_of(width, height, b"\0" * 20_000_000)
    assert len(bomb) < 50_000
    tracemalloc.start()
    try:
        with pytest.raises(ApiError, match=r"pixels are too many"):
            ImageLoader(Settings()).decode([(bomb, "image")], known())
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_bomb_that_states_a_small_size_unpacks_no_more_than_that():
    bomb = png_of(10, 10, b"\0" * 200_000_000)
    tracemalloc.start()
    try:
        assert decode_image(bomb, "image", 100, 100).size == (10, 10)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_gif_whose_frame_is_larger_than_its_screen_counts_by_its_frame():
    gif = bytearray(encoded(picture(0, 8, 8), "GIF"))
    gif[6:10] = struct.pack("<HH", 1, 1)
    frame = gif.index(b"\x2c\0\0\0\0\x08\0\x08\0")
    gif[frame + 5 : frame + 9] = struct.pack("<HH", 5_000, 5_000)
    with pytest.raises(ApiError, match="5000 x 5000 pixels are too many"):
        decode_image(bytes(gif), "image", 1000, 1000)


@pytest.mark.parametrize("size", [(1, 101), (20_000, 1)])
def test_an_image_that_would_be_scaled_beyond_all_memory_is_refused(size):
    with pytest.raises(ApiError, match="one side may be 100 times the other"):
        decode_image(encoded(Image.new("L", size)), "image", 100_000, 100_000)
    assert decode_image(encoded(Image.new("L", (1, 100))), "image", 100, 100).size == (1, 100)


def test_transparent_greys_and_turned_pictures_come_out_as_rgb():
    for mode in ("L", "LA", "P", "1", "RGBA", "I;16"):
        image = Image.new(mode, (6, 4))
        assert decode_image(encoded(image), "image", 100, 100).mode == "RGB", mode
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(picture(0, 6, 4), "JPEG", exif=exif), "image", 100, 100).size == (4, 6)


def test_what_was_sent_before_is_not_decoded_again_and_still_counts_against_the_limit(monkeypatch):
    pictures, loader = known(), ImageLoader(Settings(max_pixels=10_000))
    cat, dog = encoded(picture(0, 80, 60), "PNG"), encoded(picture(1, 80, 60), "PNG")
    (first,) = loader.decode([(cat, "a")], pictures)
    opened = []
    monkeypatch.setattr(
        Image, "open", lambda *args, open=Image.open, **options: opened.append(open(*args)) or opened[-1]
    )
    again, other = loader.decode([(cat, "a"), (dog, "b")], pictures)
    assert again is first and other is not first and len(opened) == 1
    with pytest.raises(ApiError, match=r"c: 80 x 60 pixels are too many"):
        loader.decode([(cat, "a"), (dog, "b"), (cat, "c")], pictures)
    assert len(opened) == 1


def test_bytes_that_others_decoded_have_not_passed_the_checks_of_the_server():
    pictures = known()
    targa = encoded(picture(0, 8, 8), "TGA")
    assert pictures.load(targa).size == (8, 8)
    with pytest.raises(ApiError, match="not an image in a format that is known"):
        ImageLoader(Settings()).decode([(targa, "image")], pictures)


def test_the_images_of_a_request_are_read_together_and_the_same_url_once(monkeypatch):
    loader, asked = ImageLoader(Settings()), []

    async def read_all(*urls):
        together = asyncio.Barrier(len({url for url, _ in urls}))

        async def read(url, param):
            asked.append((url, param))
            await asyncio.wait_for(together.wait(), 5)
            if "bad" in url:
                raise ApiError(400, param)
            return url.encode()

        monkeypatch.setattr(loader, "read", read)
        return await loader.read_all(urls)

    read = asyncio.run(read_all(("cat", "a"), ("dog", "b"), ("cat", "c")))
    assert read == [(b"cat", "a"), (b"dog", "b"), (b"cat", "c")]
    assert sorted(asked) == [("cat", "a"), ("dog", "b")]
    with pytest.raises(ApiError, match="b"):  # the first of the request, whichever fails first
        asyncio.run(read_all(("cat", "a"), ("bad", "b"), ("bad too", "c"), ("bad", "d")))
    assert asyncio.run(loader.read_all([])) == []
