"""From what a user calls an image to pixels, and how many visual tokens it becomes."""

import base64
import io
import os
import struct
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

ImageLike = Image.Image | str | Path | bytes
"""A picture, its path (or `file://` URL), its bytes, or a `data:` URL."""


def count_image_tokens(height: int, width: int, patch_size: int, extra_tokens: int, strategy: str) -> int:
    """Return the number of visual tokens of one image: the only place where they are counted.

    Args:
        height: of the processed image, in pixels.
        width: of the processed image, in pixels.
        patch_size: of the vision tower, in pixels.
        extra_tokens: tokens that the tower adds to the patches (1 for a CLS token, else 0).
        strategy: `vision_feature_select_strategy`: "default" drops the first token (CLS), "full" keeps all.

    Example:
        >>> count_image_tokens(336, 336, patch_size=14, extra_tokens=1, strategy="default")
        576
    """
    patches = (height // patch_size) * (width // patch_size)
    return patches + extra_tokens - (1 if strategy == "default" else 0)


def processed_size(image_processor: Any) -> tuple[int, int]:
    """Return (height, width) in pixels of every image that an image processor gives.

    Raises:
        ValueError: if the size depends on the image.
    """
    crops = getattr(image_processor, "do_center_crop", False) and getattr(image_processor, "crop_size", None)
    size = image_processor.crop_size if crops else image_processor.size
    if not (size.get("height") and size.get("width")):
        raise ValueError(
            f"expected an image processor with a fixed output size (height and width), got size={dict(size)}; "
            "set size or crop_size to a height and a width"
        )
    return size["height"], size["width"]


def open_image(image: ImageLike, owner: str = "image") -> Image.Image:
    """Decode an image, all of it, and leave its pixels as they are stored.

    Args:
        image: a picture, its path (or `file://` URL), its bytes, or a `data:` URL.
        owner: what to call it in an error, e.g. the sample's id.

    Raises:
        ValueError: it cannot be read, or has more pixels than Pillow's limit against decompression bombs
            (`PIL.Image.MAX_IMAGE_PIXELS`); names the owner, the file and the cause.

    Example:
        >>> open_image(Image.new("LA", (4, 2))).mode
        'LA'
    """
    if isinstance(image, Image.Image):
        source: Any = None
    elif isinstance(image, bytes):
        source = io.BytesIO(image)
    elif isinstance(image, str | Path):
        source = _source(str(image), owner)
    else:
        raise ValueError(
            f"{owner}: expected an image as PIL.Image, path, bytes or data URL, "
            f"got {type(image).__name__}: {image!r:.80}"
        )
    # Whatever bytes a file holds, a decoder may raise almost anything over them: struct.error, IndexError, ...
    try:
        if source is None:
            image.load()  # type: ignore[union-attr]
            return image  # type: ignore[return-value]
        with Image.open(source) as opened:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and opened.width * opened.height > limit:
                raise ValueError(
                    f"{opened.width} x {opened.height} pixels are more than the limit of {limit:,}; make it "
                    "smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
                )
            opened.load()
            return opened
    except MemoryError:
        raise
    except Exception as error:
        cause = _not_an_image(source) if isinstance(error, UnidentifiedImageError) else _cause(error)
        raise ValueError(f"{owner}: cannot read image {_called(image)}: {cause}") from error


def to_rgb(picture: Image.Image, owner: str = "image") -> Image.Image:
    """Turn a decoded picture into RGB with 8 bits a channel, upright by its EXIF orientation.

    Transparent pixels are laid over white. 16-bit greys are scaled to 8 bits over their whole range (0 to
    65535), not clipped. Of an animation this is the frame that the picture stands at, the first one if it was
    just opened.

    Raises:
        ValueError: pixels are 32-bit integers or floats, whose range nobody states.

    Example:
        >>> to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
        (255, 255, 255)
        >>> to_rgb(Image.new("I;16", (1, 1), 32768)).getpixel((0, 0))
        (128, 128, 128)
    """
    try:
        upright = ImageOps.exif_transpose(picture)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error):
        upright = picture  # broken EXIF data beside good pixels: as stored, like any viewer
    if upright.mode.startswith("I;16") or (upright.mode == "I" and picture.format in ("PNG", "PPM")):
        upright = _sixteen_bit(upright)
    elif upright.mode in ("I", "F"):
        raise ValueError(
            f"{owner}: cannot tell black from white in image {_called(picture)}: its pixels are "
            f"32-bit {'integers' if upright.mode == 'I' else 'floats'} of unknown range; save it with 8 or 16 bits"
        )
    if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return upright.convert("RGB")


def load_image(image: ImageLike, owner: str = "image") -> Image.Image:
    """Return an RGB image: `open_image`, then `to_rgb`. How llavit reads images, whichever way they come.

    (transformers' pipeline reads its own way those that it is given as `images` beside a text: transparent is black
    there, and 16 bits are cut to 8. Those in a chat come here.)

    Args:
        image: a picture, its path (or `file://` URL), its bytes, or a `data:` URL.
        owner: what to call it in an error, e.g. the sample's id.

    Raises:
        ValueError: if it cannot be read; names the owner, the file and the cause.

    Example:
        >>> load_image(Image.new("L", (4, 2))).mode
        'RGB'
        >>> load_image(b"<html>Not found</html>", owner="record 7")
        Traceback (most recent call last):
        ...
        ValueError: record 7: cannot read image of 22 bytes: not an image, it begins with b'<html>Not found</htm'
    """
    return to_rgb(open_image(image, owner), owner)


def fetch_image(image: Any) -> Any:
    """Return an image in a form that `load_image` takes: web addresses are downloaded, base64 is decoded.

    These are the forms that transformers' processors take besides; anything else is returned as it is.

    Example:
        >>> fetch_image("iVBORw==")
        b'\\x89PNG'
        >>> fetch_image("cat.jpg")
        'cat.jpg'
    """
    if not isinstance(image, str) or os.path.isfile(image):
        return image
    if image.startswith(("http://", "https://")):
        from huggingface_hub.utils import httpx

        return httpx.get(image, timeout=None, follow_redirects=True).content
    encoded = image.partition(",")[2] if image.startswith("data:image/") else image
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError:
        return image


def data_url_bytes(url: str, owner: str = "image") -> bytes:
    """Return what a base64 `data:` URL holds.

    Raises:
        ValueError: it is cut off or written in another way; names the owner.

    Example:
        >>> data_url_bytes("data:image/png;base64,iVBORw==")
        b'\\x89PNG'
    """
    head, comma, body = url.partition(",")
    try:
        if not (comma and head.endswith(";base64")):
            raise ValueError("expected data:image/...;base64,...")
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise ValueError(f"{owner}: cannot read image {_called(url)}: {error}") from error


def _source(image: str, owner: str) -> Any:
    """Give what Pillow can open."""
    if image.startswith("data:"):
        return io.BytesIO(data_url_bytes(image, owner))
    if image.startswith(("http://", "https://")):
        raise ValueError(
            f"{owner}: cannot read image {image!r}: images are not downloaded; save it to a file and give its path"
        )
    return url2pathname(urlsplit(image).path) if image.startswith("file://") else image


def _called(image: ImageLike) -> str:
    """Say which image this is, briefly."""
    if isinstance(image, bytes):
        return f"of {len(image):,} bytes"
    if isinstance(image, Image.Image):
        return repr(getattr(image, "filename", "") or "a picture in memory")
    return f"{str(image)[:40]!r}... (a data URL)" if str(image).startswith("data:") else repr(str(image))


def _cause(error: Exception) -> str:
    plain = isinstance(error, OSError | ValueError | Image.DecompressionBombError) and str(error)
    return str(error) if plain else repr(error)


def _not_an_image(source: Any) -> str:
    """Say what a file is that Pillow does not know."""
    with source if isinstance(source, io.BytesIO) else open(source, "rb") as file:
        file.seek(0)
        head = file.read(20)
    return f"not an image, it begins with {head!r}" if head else "it is empty (0 bytes)"


def _sixteen_bit(picture: Image.Image) -> Image.Image:
    """Scale greys of 0 to 65535 to 0 to 255, rounded; keep what is transparent."""
    grey_hw = np.asarray(picture).astype(np.uint32)
    scaled = Image.fromarray(((grey_hw + 128) // 257).astype(np.uint8))
    key = picture.info.get("transparency")
    if isinstance(key, int):
        alpha = Image.fromarray(np.where(grey_hw == key, 0, 255).astype(np.uint8))
        return Image.merge("LA", (scaled, alpha))
    return scaled


def message_images(messages: list[dict[str, Any]], owner: str = "conversation") -> list[ImageLike]:
    """Return the images of a conversation in reading order.

    Raises:
        ValueError: if an image part names no image.
    """
    images = []
    for number, message in enumerate(messages):
        if isinstance(message["content"], str):
            continue
        for part in message["content"] or ():
            if part["type"] == "image":
                image = part.get("image", part.get("path", part.get("url")))
                if image is None:
                    raise ValueError(
                        f"{owner}: message {number}: expected an image part with 'image': a picture or a path, "
                        f"got keys {sorted(part)}"
                    )
                images.append(image)
    return images
