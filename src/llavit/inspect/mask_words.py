"""A mask in words: is bidirectional visual attention on, what does text see, does anything leak?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from llavit.inspect.mask import Mask

Verdict = Literal["on", "off", "in part", "none"]


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
    shares = seen_shares(sees_ll, image_l)
    if shares is None:
        return "none"
    return "on" if shares[1] == 1 else "off" if shares[1] == 0 else "in part"


def seen_shares(sees_ll: np.ndarray, image_l: np.ndarray) -> tuple[float, float] | None:
    """Return the share of pairs of an image's visual tokens whose later one sees the earlier one, and the reverse.

    Returns:
        (of earlier tokens, of later ones), 0 to 1; None without pairs.

    Example:
        >>> seen_shares(np.tril(np.ones((2, 2), bool)), np.array([0, 0]))
        (1.0, 0.0)
    """
    same = _same_image(image_l)
    earlier, later = np.tril(same, -1), np.triu(same, 1)
    return (float(sees_ll[earlier].mean()), float(sees_ll[later].mean())) if later.any() else None


def describe(mask: Mask) -> list[str]:
    """Return sentences on a recorded mask: the verdict, what text sees, leaks, and what disagrees."""
    count = sum(len(layers) for layers in mask.layers)
    said = [f"Attention implementation: {mask.backend}."]
    for sees, promised, layers, kind, form in zip(
        mask.sees_mll, mask.said_mll, mask.layers, mask.kinds, mask.forms, strict=True
    ):
        where = f"In all {count} layers" if len(layers) == count else f"In {_numbers(layers)} ({kind})"
        said.append(f"{where} bidirectional visual attention {_visual(seen_shares(sees, mask.image_l))}.")
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


def _visual(shares: tuple[float, float] | None) -> str:
    """Say what visual tokens see of those of their image."""
    if shares is None:
        return "does not show: no image of two visual tokens or more is in this conversation"
    earlier, later = shares
    if later == 1:
        if earlier == 1:
            return "is ON: every visual token sees all visual tokens of its image, the later ones too"
        return f"is ON: a visual token sees all later visual tokens of its image, but of the earlier ones {earlier:.1%}"
    if later > 0:
        return f"is on IN PART: {later:.1%} of the pairs in which it would"
    if earlier == 1:
        return "is OFF: a visual token sees the earlier visual tokens of its image, and no later one"
    if earlier == 0:
        return "is OFF: a visual token sees no other visual token of its image"
    return f"is OFF: a visual token sees {earlier:.1%} of the earlier visual tokens of its image, and no later one"


def _text(sees_ll: np.ndarray, image_l: np.ndarray) -> str:
    """Say what text tokens see of what came before them."""
    rows = np.flatnonzero(image_l < 0)
    if not len(rows):
        return "There is no text."
    sees, distance = sees_ll[rows], rows[:, None] - np.arange(len(sees_ll))
    before = distance >= 0
    if sees[before].all():
        return "Text sees everything before it."
    reach = int((sees & before).sum(1).max())
    if ((sees & before) == (before & (distance < reach))).all():
        return f"Text sees at most the last {reach} tokens, itself included (a sliding window)."
    shares = [sees[before & kind].mean() for kind in (image_l < 0, image_l >= 0) if (before & kind).any()]
    amounts = ["all" if share == 1 else "none" if share == 0 else f"{share:.1%}" for share in shares]
    kinds = ("itself and the text before it", "the visual tokens before it")
    return f"Text sees {' and '.join(f'{a} of {k}' for a, k in zip(amounts, kinds, strict=False))}."


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
