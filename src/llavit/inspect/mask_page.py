"""A mask to look at: in a terminal, as a picture, and in a page."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from llavit.inspect.mask_words import _numbers, verdict
from llavit.inspect.report import escape, figure_html, new_figure

if TYPE_CHECKING:
    from llavit.inspect.mask import Mask

LEGEND = (
    "\u2588 sees all of it   \u25e3 sees what came before   \u2592 sees some of it   \u00b7 sees none of it"
)

_HIDDEN, _TEXT, _VISUAL, _LATER, _LEAK = range(5)
_COLOURS = ("#f1f1f1", "#8fb8e8", "#f5b26b", "#c2410c", "#d4006a")
_CALLED = ("hidden", "sees text or an earlier image", "sees an earlier patch", "sees a later patch", "LEAK")


def segments(image_l: np.ndarray) -> list[tuple[int, int, int]]:
    """Cut a sequence into runs of text and images: (image number or -1, first, one behind the last).

    Example:
        >>> segments(np.array([-1, 0, 0, 1]))
        [(-1, 0, 1), (0, 1, 3), (1, 3, 4)]
    """
    cuts = [0, *(np.flatnonzero(np.diff(image_l)) + 1).tolist(), len(image_l)]
    return [(int(image_l[a]), a, b) for a, b in itertools.pairwise(cuts) if b > a]


def drawing(mask: Mask, number: int, width: int) -> str:
    """Draw a mask by runs of text and images, and token by token where it is no wider than `width`.

    Two rows of tokens share a line: the upper half of a block is the first, the lower the second.
    """
    sees, runs = mask.sees_mll[number], segments(mask.image_l)
    names = [
        f"{index:>3}  {'text' if image < 0 else f'image {image + 1}':<9} {f'{a}-{b - 1}':<10}"
        for index, (image, a, b) in enumerate(runs, 1)
    ]
    lines = [" " * len(names[0]) + "".join(f"{index:>4}" for index in range(1, len(runs) + 1))]
    for name, (_, a, b) in zip(names, runs, strict=True):
        cells = (_sign(sees[a:b, c:d], a == c) for _, c, d in runs)
        lines.append(name + "".join(f"{cell:>4}" for cell in cells))
    lines.append(LEGEND)
    length = len(sees)
    if length <= width:
        halves = {
            (True, True): "\u2588",
            (True, False): "\u2580",
            (False, True): "\u2584",
            (False, False): " ",
        }
        padded = np.vstack([sees, np.zeros((length % 2, length), bool)])
        pairs = zip(padded[::2], padded[1::2], strict=True)
        lines += [
            "",
            *("".join(halves[bool(u), bool(d)] for u, d in zip(*pair, strict=True)) for pair in pairs),
        ]
    return "\n".join(lines)


def _sign(sees: np.ndarray, diagonal: bool) -> str:
    if sees.all():
        return "\u2588"
    if not sees.any():
        return "\u00b7"
    return "\u25e3" if diagonal and (sees == np.tril(np.ones_like(sees))).all() else "\u2592"


def mask_figure(mask: Mask) -> Any:
    """Draw each distinct mask: rows see columns."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    count, runs = len(mask.sees_mll), segments(mask.image_l)
    figure = new_figure(4.6 * count, 5.2)
    for axis, sees, layers, kind in zip(
        figure.subplots(1, count, squeeze=False)[0], mask.sees_mll, mask.layers, mask.kinds, strict=True
    ):
        codes = _codes(sees, mask.image_l)
        axis.imshow(
            codes, cmap=ListedColormap(_COLOURS), vmin=0, vmax=len(_COLOURS) - 1, interpolation="nearest"
        )
        for _, a, _ in runs[1:]:
            axis.axhline(a - 0.5, color="white", linewidth=0.8)
            axis.axvline(a - 0.5, color="white", linewidth=0.8)
        middles = [(a + b - 1) / 2 for _, a, b in runs]
        names = ["text" if image < 0 else f"image {image + 1}" for image, _, _ in runs]
        axis.set_xticks(middles, names, fontsize=8, rotation=45, ha="right")
        axis.set_yticks(middles, names, fontsize=8)
        axis.tick_params(length=0)
        axis.set_title(
            f"{_numbers(layers)}, {kind}\nbidirectional: {verdict(sees, mask.image_l)}", fontsize=9
        )
    used = sorted({int(code) for sees in mask.sees_mll for code in np.unique(_codes(sees, mask.image_l))})
    figure.legend(
        handles=[Patch(color=_COLOURS[code], label=_CALLED[code]) for code in used],
        loc="outside lower center",
        ncols=2,
        fontsize=8,
        frameon=False,
    )
    figure.suptitle(f"{mask.model}: rows see columns ({mask.backend})", fontsize=9)
    return figure


def mask_html(mask: Mask) -> str:
    """Return the sentences, the figure, and the drawings by runs."""
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in mask.sentences())
    drawn = "".join(
        f"<h3>{escape(_numbers(layers))} ({escape(kind)})</h3><pre>{escape(drawing(mask, number, 0))}</pre>"
        for number, (layers, kind) in enumerate(zip(mask.layers, mask.kinds, strict=True))
    )
    return f"<ul>{said}</ul>{figure_html(mask_figure(mask), 'Which token sees which')}{drawn}"


def _codes(sees: np.ndarray, image_l: np.ndarray) -> np.ndarray:
    """Sort pairs of tokens into what the colours stand for."""
    same = (image_l[:, None] == image_l[None]) & (image_l >= 0)[:, None]
    later = np.triu(np.ones_like(sees), 1)
    codes = np.where(same, np.where(later, _LATER, _VISUAL), np.where(later, _LEAK, _TEXT))
    return np.where(sees, codes, _HIDDEN)
