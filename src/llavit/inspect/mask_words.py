"""A mask in words: is bidirectional visual attention on, what does text see, does anything leak?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from llavit.inspect.mask import Mask

Verdict = Literal["on", "off", "in part", "none"]

_SAYS = {
    "on": "is ON: every visual token sees all visual tokens of its image, the later ones too",
    "off": "is OFF: a visual token sees the earlier visual tokens of its image, and no later one",
    "in part": "is on IN PART",
    "none": "does not show: no image of two visual tokens or more is in this conversation",
}


def verdict(sees_ll: np.ndarray, image_l: np.ndarray) -> Verdict:
    """Say whether visual tokens see later ones of their image.

    Args:
        sees_ll: (l, l) bool, row sees column.
        image_l: (l,) number of the image, -1 for text.

    Returns:
        "on" (all do), "off" (none does), "in part", or "none" if no image has two visual tokens.

    Example:
        >>> verdict(np.tril(np.ones((3, 3), bool)), np.array([-1, 0, 0]))
        'off'
    """
    share = later_share(sees_ll, image_l)
    if share is None:
        return "none"
    return "on" if share == 1 else "off" if share == 0 else "in part"


def later_share(sees_ll: np.ndarray, image_l: np.ndarray) -> float | None:
    """Return the share of pairs of an image's visual tokens whose earlier one sees the later one; None without pairs.

    Example:
        >>> later_share(np.ones((2, 2), bool), np.array([0, 0]))
        1.0
    """
    later = np.triu(_same_image(image_l), 1)
    return float(sees_ll[later].mean()) if later.any() else None


def describe(mask: Mask) -> list[str]:
    """Return sentences on a recorded mask: the verdict, what text sees, leaks, and what disagrees."""
    count = sum(len(layers) for layers in mask.layers)
    said = [f"Attention implementation: {mask.backend}."]
    for sees, promised, layers, kind, form in zip(
        mask.sees_mll, mask.said_mll, mask.layers, mask.kinds, mask.forms, strict=True
    ):
        where = f"In all {count} layers" if len(layers) == count else f"In {_numbers(layers)} ({kind})"
        state = verdict(sees, mask.image_l)
        share = later_share(sees, mask.image_l)
        part = f": {share:.1%} of the pairs in which it would" if state == "in part" else ""
        said.append(f"{where} bidirectional visual attention {_SAYS[state]}{part}.")
        came = (
            "got no mask, which it takes as causal"
            if form == "no mask" and not sees.all()
            else f"got {_a(form)}"
        )
        said.append(f"{_text(sees, mask.image_l)} The attention function {came}.")
        if _leaks(sees, mask.image_l):
            said.append("LEAK: some tokens see later tokens that are not of their own image.")
        if (sees != promised).any():
            wrong = (sees != promised).mean()
            said.append(
                f"WARNING: {mask.backend} does not do what its mask says, in {wrong:.1%} of the pairs of tokens."
            )
    states = {verdict(sees, mask.image_l) for sees in mask.sees_mll}
    if states != {"none"} and mask.configured != (states == {"on"}):
        said.append(
            f"WARNING: the configuration says bidirectional_visual_attention: {str(mask.configured).lower()}, which is "
            "not what happens."
        )
    return said


def _same_image(image_l: np.ndarray) -> np.ndarray:
    return (image_l[:, None] == image_l[None]) & (image_l >= 0)[:, None]


def _leaks(sees_ll: np.ndarray, image_l: np.ndarray) -> bool:
    return bool((np.triu(sees_ll, 1) & ~_same_image(image_l)).any())


def _text(sees_ll: np.ndarray, image_l: np.ndarray) -> str:
    """Say what text tokens see of what came before them."""
    rows = np.flatnonzero(image_l < 0)
    if not len(rows):
        return "There is no text."
    before = np.tril(np.ones_like(sees_ll))[rows]
    if sees_ll[rows][before].all():
        return "Text sees everything before it."
    reach = max(int(row) - int(np.flatnonzero(sees_ll[row])[0]) + 1 for row in rows if sees_ll[row].any())
    return f"Text sees at most the last {reach} tokens, itself included (a sliding window)."


def _a(form: str) -> str:
    return f"a {form}" if form else "nothing"


def _numbers(layers: tuple[int, ...]) -> str:
    """Say layers in short.

    Example:
        >>> _numbers((0, 1, 2, 5)), _numbers((4,))
        ('layers 0-2, 5', 'layer 4')
    """
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"layer{'s' if len(layers) > 1 else ''} {text}"
