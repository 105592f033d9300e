"""Images of every kind that data sets hold, as real files; and files that are none."""

import base64
import io
import os

import numpy as np
import pytest
from PIL import Image

from llavit.model.images import load_image, open_image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def saved(picture, form, **options):
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def noise(mode="RGB", size=(64, 48)):
    channels = {"RGB": 3, "L": 1}[mode]
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze(), mode)


def pixels(image):
    return np.asarray(load_image(image)).tolist()


# Pictures that are fine


def test_path_file_url_bytes_data_url_and_picture_are_the_same(tmp_path):
    raw = saved(noise(), "PNG")
    path = tmp_path / "a b.png"
    path.write_bytes(raw)
    data_url = "data:image/png;base64," + base64.b64encode(raw).decode()
    for image in (path, str(path), path.as_uri(), raw, data_url, Image.open(path)):
        assert np.array_equal(np.asarray(load_image(image)), np.asarray(noise()))


def test_cmyk_becomes_the_colours_it_stands_for():
    cmyk = np.zeros((8, 16, 4), np.uint8)
    cmyk[:, :8, 1:3] = 255  # magenta and yellow: red
    cmyk[:, 8:, :2] = 255  # cyan and magenta: blue
    raw = saved(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=100, subsampling=0)
    assert open_image(raw).mode == "CMYK"
    row = np.asarray(load_image(raw)).astype(int)[4]
    assert np.abs(row[2] - RED).max() < 12 and np.abs(row[-2] - BLUE).max() < 12  # JPEG is lossy


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_greys_are_scaled_and_not_clipped(form):
    grey = np.array([[0, 255, 256, 32768, 65279, 65535]], np.uint16)
    raw = saved(Image.fromarray(grey), form)
    assert open_image(raw).mode.startswith("I;16")
    assert [pixel[0] for pixel in pixels(raw)[0]] == [0, 1, 1, 128, 254, 255]
    assert np.array_equal(np.asarray(load_image(raw))[..., 0], np.round(grey / 257))


def test_sixteen_bit_greys_keep_what_is_transparent():
    raw = saved(Image.fromarray(np.array([[0, 700]], np.uint16)), "PNG", transparency=700)
    assert pixels(raw) == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(mode, tmp_path):
    path = tmp_path / "depth.tif"
    Image.new(mode, (2, 2), 3).save(path)
    with pytest.raises(ValueError, match=r"record 7: cannot tell black from white in image '.*depth.tif'"):
        load_image(path, "record 7")


def test_a_palette_with_transparency_is_laid_over_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *BLUE])
    picture.putpixel((1, 0), 1)
    raw = saved(picture, "PNG", transparency=1)
    assert open_image(raw).mode == "P"
    assert pixels(raw) == [[list(RED), list(WHITE)]]


def test_half_transparent_pixels_are_mixed_with_white():
    picture = Image.new("RGBA", (3, 1), (*RED, 255))
    picture.putpixel((1, 0), (*RED, 0))
    picture.putpixel((2, 0), (0, 0, 0, 128))
    assert pixels(saved(picture, "PNG")) == [[list(RED), list(WHITE), [127] * 3]]


def test_grey_with_alpha_and_colour_keys_are_laid_over_white():
    grey = Image.new("LA", (2, 1), (10, 255))
    grey.putpixel((1, 0), (10, 0))
    assert pixels(saved(grey, "PNG")) == [[[10] * 3, [255] * 3]]
    keyed = Image.new("RGB", (2, 1), RED)
    keyed.putpixel((1, 0), BLUE)
    assert pixels(saved(keyed, "PNG", transparency=BLUE)) == [[list(RED), list(WHITE)]]


def test_one_bit_pictures_are_black_and_white():
    picture = Image.new("1", (2, 1))
    picture.putpixel((1, 0), 1)
    raw = saved(picture, "PNG")
    assert open_image(raw).mode == "1"
    assert pixels(raw) == [[[0] * 3, [255] * 3]]


# Of a picture with a red top left corner, stored as each EXIF orientation demands.
TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_is_upright_by_its_exif_orientation(orientation):
    upright = Image.new("RGB", (24, 16), BLUE)
    upright.paste(RED, (0, 0, 8, 8))
    turn = TURNS[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = saved(upright if turn is None else upright.transpose(turn), "PNG", exif=exif)
    assert np.array_equal(np.asarray(load_image(raw)), np.asarray(upright))
    assert np.array_equal(np.asarray(load_image(open_image(raw))), np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_data_does_not_spoil_good_pixels():
    raw = saved(noise(), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff broken")
    assert load_image(raw).size == (64, 48)


def test_an_animation_is_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    raw = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(raw).n_frames == 2
    assert pixels(raw)[0][0] == list(RED)


# Files that are not


def test_a_truncated_jpeg_is_an_error_and_not_half_grey(tmp_path):
    path = tmp_path / "cut.jpg"
    raw = saved(noise(), "JPEG")
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"record 7: cannot read image '.*cut.jpg': image file is truncated"):
        load_image(path, "record 7")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged TIFF tags
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_files_of_any_kind_are_read_or_named(form):
    whole = saved(noise(), form)
    rng = np.random.default_rng(0)
    failed = 0
    for _ in range(30):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 400), 8):
            damaged[place] = rng.integers(256)
        try:
            assert load_image(bytes(damaged)).mode == "RGB"
        except ValueError as error:
            assert str(error).startswith("image: cannot read image of ")
            failed += 1
    assert failed  # else nothing was tested


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", r"it is empty \(0 bytes\)"),
        (b"<!DOCTYPE html><html>404</html>", "not an image, it begins with b'<!DOCTYPE html><html'"),
        (b"\xff\xd8\xff", "not an image"),
    ],
)
def test_files_that_are_no_image_say_what_they_are(tmp_path, content, cause):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for image, called in [(path, r"'.*a\.jpg'"), (content, f"of {len(content)} bytes")]:
        with pytest.raises(ValueError, match=f"record 7: cannot read image {called}: {cause}"):
            load_image(image, "record 7")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow's, beside our error
@pytest.mark.parametrize("factor", [1.5, 3])  # below twice the limit Pillow would only warn
def test_a_decompression_bomb_is_an_error_that_names_it(tmp_path, monkeypatch, factor):
    path = tmp_path / "bomb.png"
    Image.new("1", (1000, 1000)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(1_000_000 / factor))
    with pytest.raises(
        ValueError, match=r"record 7: cannot read image '.*bomb.png': .*(1000000|1000 x 1000) pix"
    ):
        load_image(path, "record 7")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(path).size == (1000, 1000)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("absent.png", "cannot read image 'absent.png': .*No such file"),
        (os.curdir, "cannot read image '.': .*Is a directory"),
        ("https://a.org/b.png", "cannot read image .*: images are not downloaded; save it to a file"),
        ("data:image/png,abc", "cannot read image 'data:image/png,abc'... .a data URL.: expected data:image"),
        (
            "data:image/png;base64,a$b=",
            "cannot read image 'data:.*: (Only base64|Non-base64|Incorrect|Excess)",
        ),
        (3, "expected an image as PIL.Image, path, bytes or data URL, got int: 3"),
    ],
)
def test_what_is_no_image_at_all_is_named(image, message):
    with pytest.raises(ValueError, match=f"record 7: {message}"):
        load_image(image, "record 7")
