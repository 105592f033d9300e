"""Image files of every kind, and ways to break them; everything comes from a seed."""

import random
import struct

from PIL import Image

from tests.serve.http_parts import encoded, picture


def real_images() -> list[bytes]:
    """Files of all kinds that are decoded, in their modes and compressions."""
    rgb = picture(5, 48, 40)
    files = []
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        files.append(encoded(rgb.convert(mode), "PNG"))
        if mode not in ("LA", "RGBA"):
            files.append(encoded(rgb.convert(mode), "BMP"))
    files.append(encoded(rgb.convert("L").convert("I;16"), "PNG"))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    for options in ({}, {"progressive": True}, {"quality": 10}, {"exif": exif}):
        files.append(encoded(rgb, "JPEG", **options))
    files += [encoded(rgb.convert("CMYK"), "JPEG"), encoded(rgb.convert("L"), "JPEG")]
    frames = [picture(seed, 48, 40) for seed in range(3)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        files.append(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    files += [encoded(rgb.convert("P"), "GIF"), encoded(rgb, "WEBP", lossless=True), encoded(rgb, "WEBP")]
    files.append(encoded(rgb.convert("RGBA"), "WEBP", exif=exif))
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files.append(encoded(rgb, "TIFF", compression=compression))
    files.append(encoded(rgb.convert("1"), "TIFF", compression="group4"))
    files += [encoded(rgb.convert(mode), "TIFF") for mode in ("L", "I;16", "F", "CMYK", "RGBA")]
    return files


def broken(files: list[bytes], rng: random.Random) -> bytes:
    """Break one of the files in one to three ways."""
    data = bytearray(rng.choice(files))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        WAYS[rng.randrange(len(WAYS))](data, files, rng)
    return bytes(data)


def _truncate(data, files, rng):
    del data[rng.randrange(len(data) + 1) :]


def _flip_bits(data, files, rng):
    for _ in range(rng.choice((1, 2, 5, 20)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _flip_bits_of_the_head(data, files, rng):
    for _ in range(rng.choice((1, 2, 4)) if data else 0):
        data[rng.randrange(min(len(data), 64))] ^= 1 << rng.randrange(8)


def _splice(data, files, rng):
    other = rng.choice(files)
    data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other)) :]


def _insert(data, files, rng):
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.randbytes(rng.choice((1, 4, 100, 5000)))


def _delete(data, files, rng):
    place = rng.randrange(len(data) + 1)
    del data[place : place + rng.choice((1, 4, 50))]


def _extreme_number(data, files, rng):
    form, number = rng.choice(
        [
            ("<H", 0),
            ("<H", 0xFFFF),
            (">H", 0xFFFF),
            (">I", 0xFFFFFFFF),
            ("<I", 0x7FFFFFFF),
            (">I", 0),
            ("<I", 0),
        ]
    )
    place = rng.randrange(max(1, min(len(data), rng.choice((40, 200, 5000)))))
    packed = struct.pack(form, number)
    data[place : place + len(packed)] = packed


def _repeat(data, files, rng):
    start = rng.randrange(len(data) + 1)
    data += data[start : start + 3000]


def _zero(data, files, rng):
    start = rng.randrange(len(data) + 1)
    length = min(rng.choice((1, 16, 400)), len(data) - start)
    data[start : start + length] = bytes(length)


WAYS = (
    _truncate,
    _flip_bits,
    _flip_bits_of_the_head,
    _splice,
    _insert,
    _delete,
    _extreme_number,
    _repeat,
    _zero,
)
