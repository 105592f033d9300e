"""Near-duplicates: drawings of training that a drawing of the test resembles too closely to be unseen.

Two drawings are compared as 24 x 24 RGB pixels over white, by their correlation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from llavit.starter.kit import Drawing, Gallery

SIDE = 24
LIMIT = 0.96
"""Correlation above which two drawings count as one."""
_ROWS = 1024

Progress = Callable[[int, int], None]


def fingerprint(image: Image.Image) -> np.ndarray:
    """An RGBA picture as (24 * 24 * 3,) float32 of mean 0 and length 1, so that a dot product is a correlation.

    Examples:
        >>> one = fingerprint(Image.linear_gradient("L").convert("RGBA"))
        >>> round(float(one @ one), 4), abs(float(one.mean())) < 1e-6
        (1.0, True)
    """
    longer = max(image.size)
    square = Image.new("RGBA", (longer, longer), (255, 255, 255, 255))
    square.alpha_composite(image, ((longer - image.width) // 2, (longer - image.height) // 2))
    pixels = np.asarray(square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32).ravel()
    pixels = pixels - pixels.mean()
    return pixels / max(float(np.linalg.norm(pixels)), 1e-6)


def fingerprints(
    gallery: Gallery, drawings: Sequence[Drawing], progress: Progress | None = None
) -> np.ndarray:
    """(drawings, 24 * 24 * 3) of what they look like; icons of one colour are black."""
    rows = np.zeros((len(drawings), SIDE * SIDE * 3), np.float32)
    for number, drawing in enumerate(drawings):
        rows[number] = fingerprint(gallery.render(drawing, 96, (0, 0, 0) if drawing.tintable else None))
        if progress:
            progress(number + 1, len(drawings))
    return rows


def closest(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of one the largest correlation with a row of the other, and that row's number."""
    if not len(one) or not len(other):
        return np.full(len(one), -1.0, np.float32), np.zeros(len(one), np.int64)
    best, place = [], []
    for start in range(0, len(one), _ROWS):
        found = one[start : start + _ROWS] @ other.T
        place.append(found.argmax(axis=1))
        best.append(found.max(axis=1))
    return np.concatenate(best), np.concatenate(place)


def twins(gallery: Gallery, progress: Progress | None = None) -> list[tuple[Drawing, Drawing, float]]:
    """Drawings and pictures of training or validation that look like one of the test, with it and the correlation.

    A family that training and test share on purpose, as the icons of the starter edition, is not compared with
    itself.
    """
    shown = {
        split: list(dict.fromkeys((*gallery.drawings(split), *gallery.pictures(split))))
        for split in ("train", "val", "test")
    }
    train = list(dict.fromkeys(shown["train"] + shown["val"]))
    shared = {d.source for d in train if d in set(shown["test"])}
    found: list[tuple[Drawing, Drawing, float]] = []
    test = shown["test"]
    prints = fingerprints(gallery, train + test, progress)
    own, others = prints[: len(train)], prints[len(train) :]
    for sources_differ in (False, True):
        rows = [i for i, d in enumerate(train) if (d.source in shared) == sources_differ]
        columns = [i for i, d in enumerate(test) if not (sources_differ and d.source in shared)]
        if not rows or not columns:
            continue
        best, place = closest(own[rows], others[columns])
        found += [
            (train[row], test[columns[int(column)]], float(value))
            for row, value, column in zip(rows, best, place, strict=True)
            if value > LIMIT
        ]
    return sorted(found, key=lambda pair: (pair[0].source, pair[0].key))
