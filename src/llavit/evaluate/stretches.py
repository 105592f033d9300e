"""Prompts, and what they share: a batch is cut into up to three stretches, each run once for all that begin alike.

    all prompts     <system> ...
    some of them    ... <image> Which is it?          (rotated options, several questions about one picture)
    each its own    ... A. cat B. dog <assistant>

Legend: v visual tokens of an image, f width of its features.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch


@dataclass
class Prompt:
    """A tokenised question.

    Attributes:
        ids: token ids, image tokens repeated.
        features: (v, f) of each image, in order.
        images: a name for each image, by which equal ones are known.
        visual: the id of the image token.
        name: of the question, for the caller's use.
    """

    ids: list[int]
    features: list[torch.Tensor] = field(default_factory=list)
    images: list[Hashable] = field(default_factory=list)
    visual: int = -1
    name: str = ""

    def keys(self) -> list[Hashable]:
        """Return what tells tokens apart: their ids; of visual tokens, image and place as well."""
        keys: list[Hashable] = list(self.ids)
        places = [place for place, token in enumerate(self.ids) if token == self.visual]
        start = 0
        for image, features in zip(self.images, self.features, strict=True):
            for place in places[start : start + len(features)]:
                keys[place] = (self.visual, image, place)
            start += len(features)
        return keys


@dataclass
class Stretch:
    """Part of a prompt: tokens from `start` to `end`, with the images that lie in it."""

    ids: list[int]
    features: list[torch.Tensor]
    parent: int


def families_together(order: Sequence[int], keys: Sequence[Sequence[Hashable]]) -> list[int]:
    """Bring prompts with the same first image next to each other, at the place of the first of them."""
    families: dict[Hashable, list[int]] = {}
    for number in order:
        image = next((key[1] for key in keys[number] if isinstance(key, tuple)), None)
        family: Hashable = ("alone", number) if image is None else ("image", image)
        families.setdefault(family, []).append(number)
    return [number for family in families.values() for number in family]


def levels_of(
    prompts: Sequence[Prompt], keys: Sequence[Sequence[Hashable]], least_shared: int
) -> list[list[Stretch]]:
    """Cut a batch of prompts into stretches, see the head of the module; empty levels are left out."""
    everyone = _shared([list(of_one) for of_one in keys])
    if everyone * (len(prompts) - 1) < least_shared:
        everyone = 0
    groups: list[list[int]] = []
    for number in range(len(prompts)):
        if (
            groups
            and _common(keys[groups[-1][-1]], keys[number]) > everyone
            and _same_image(keys, groups[-1][-1], number)
        ):
            groups[-1].append(number)
        else:
            groups.append([number])
    ends = [_shared([list(keys[number]) for number in group]) for group in groups]
    levels = []
    if everyone:
        levels.append([cut(prompts[0], 0, everyone, 0)])
    if any(len(group) > 1 for group in groups):
        levels.append([cut(prompts[g[0]], everyone, end, 0) for g, end in zip(groups, ends, strict=True)])
        starts = [end for group, end in zip(groups, ends, strict=True) for _ in group]
        parents = [number for number, group in enumerate(groups) for _ in group]
    else:
        starts, parents = [everyone] * len(prompts), [0] * len(prompts)
    if not levels:
        parents = list(range(len(prompts)))
    levels.append(
        [cut(p, start, len(p.ids), parent) for p, start, parent in zip(prompts, starts, parents, strict=True)]
    )
    return levels


def _same_image(keys: Sequence[Sequence[Hashable]], one: int, other: int) -> bool:
    """Whether two prompts begin alike up to and with an image: less is not worth a stretch of its own."""
    shared = _common(keys[one], keys[other])
    return any(isinstance(key, tuple) for key in keys[one][:shared])


def _shared(keys: Sequence[Sequence[Hashable]]) -> int:
    """How many tokens all prompts share at their beginning; each keeps one of its own, and no image is cut."""
    end = min(min(_common(keys[0], other) for other in keys), min(len(of_one) for of_one in keys) - 1)
    while end and _cuts_image(keys[0], end):
        end -= 1
    return end


def _cuts_image(keys: Sequence[Hashable], end: int) -> bool:
    left, right = keys[end - 1], keys[end] if end < len(keys) else None
    return isinstance(left, tuple) and isinstance(right, tuple) and left[1] == right[1]


def _common(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


def cut(prompt: Prompt, start: int, end: int, parent: int) -> Stretch:
    """Take the tokens from start to end, with their images; they go on from row `parent` of the level before."""

    def images_before(place: int) -> int:
        tokens = sum(token == prompt.visual for token in prompt.ids[:place])
        count = 0
        while tokens:
            tokens -= len(prompt.features[count])
            count += 1
        return count

    features = prompt.features[images_before(start) : images_before(end)]
    return Stretch(prompt.ids[start:end], features, parent)
