"""From what a user calls an image to pixels, and how many visual tokens it becomes."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

ImageLike = Image.Image | str | Path


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


def load_image(image: ImageLike, owner: str = "image") -> Image.Image:
    """Return an RGB image, upright by its EXIF orientation.

    Args:
        image: a picture, or the path of one.
        owner: what to call it in an error, e.g. the sample's id.

    Raises:
        ValueError: if it cannot be read; names the owner, the file and the cause.

    Example:
        >>> load_image(Image.new("L", (4, 2))).mode
        'RGB'
    """
    try:
        if isinstance(image, str | Path):
            with Image.open(image) as opened:
                opened.load()
                return ImageOps.exif_transpose(opened).convert("RGB")
        if isinstance(image, Image.Image):
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        what = (
            image
            if isinstance(image, str | Path)
            else getattr(image, "filename", "") or "a picture in memory"
        )
        raise ValueError(f"{owner}: cannot read image {str(what)!r}: {error}") from error
    raise ValueError(
        f"{owner}: expected an image as PIL.Image or path, got {type(image).__name__}: {image!r:.80}"
    )


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
