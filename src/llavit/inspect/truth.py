"""Which object lies on which patch: the truth of a picture on the grid that a model sees.

Shapes: o objects, (h, w) patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llavit.inspect.attention import seen_box
from llavit.model.images import processed_size

BACKGROUND = -1
"""Number of the object on a patch where there is none."""


def cover(objects: Sequence[Mapping[str, Any]], processor: Any, width: int, height: int) -> np.ndarray:
    """Return the share of each patch that each object's box covers.

    What the image processor does is considered: a resized picture, margins that are cut off; and so are pixels behind
    the last whole patch (`seen_box`).

    Args:
        objects: with "box": left, top, right, bottom in pixels of the picture, as a scene of the starter has them.
        processor: of the model.
        width: of the picture file, in pixels.
        height: of the picture file, in pixels.

    Returns:
        (o, h, w) float32, 0 to 1.

    Example:
        >>> from types import SimpleNamespace
        >>> size = {"height": 28, "width": 28}
        >>> looks = SimpleNamespace(image_processor=SimpleNamespace(size=size, do_center_crop=False), patch_size=14)
        >>> cover([{"box": [0, 0, 50, 25]}], looks, width=100, height=100).tolist()
        [[[0.5, 0.0], [0.0, 0.0]]]
    """
    rows, columns = (side // processor.patch_size for side in processed_size(processor.image_processor))
    left, top, right, bottom = seen_box(processor.image_processor, width, height, processor.patch_size)
    shares = np.zeros((len(objects), rows, columns), np.float32)
    for number, thing in enumerate(objects):
        x0, y0, x1, y1 = thing["box"]
        across = _overlap(x0 / width, x1 / width, left, right, columns)
        down = _overlap(y0 / height, y1 / height, top, bottom, rows)
        shares[number] = down[:, None] * across
    return shares


def patch_objects(
    objects: Sequence[Mapping[str, Any]], processor: Any, width: int, height: int, least: float = 0.5
) -> np.ndarray:
    """Return the number of the object that lies on each patch.

    Args:
        objects: see `cover`.
        processor: see `cover`.
        width: see `cover`.
        height: see `cover`.
        least: share of a patch from which it is the object's.

    Returns:
        (h, w) int64: number in `objects`, or `BACKGROUND`; of several the one that covers most.

    Example:
        >>> from types import SimpleNamespace
        >>> size = {"height": 28, "width": 28}
        >>> looks = SimpleNamespace(image_processor=SimpleNamespace(size=size, do_center_crop=False), patch_size=14)
        >>> patch_objects([{"box": [0, 0, 50, 25]}, {"box": [50, 50, 90, 90]}], looks, 100, 100).tolist()
        [[0, -1], [-1, 1]]
    """
    shares = cover(objects, processor, width, height)
    if not len(shares):
        return np.full(shares.shape[1:], BACKGROUND)
    return np.where(shares.max(0) >= least - 1e-6, shares.argmax(0), BACKGROUND)


def _overlap(start: float, end: float, first: float, last: float, count: int) -> np.ndarray:
    """Share of each of `count` equal pieces of [first, last] that [start, end] covers."""
    edges = np.linspace(first, last, count + 1)
    inside = np.minimum(end, edges[1:]) - np.maximum(start, edges[:-1])
    return np.clip(inside / (edges[1:] - edges[:-1]), 0, 1)
