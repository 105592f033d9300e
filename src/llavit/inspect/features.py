"""Features of many pictures, layer by layer: of the vision tower, of what the projector reads, of the LLM.

    tower 0 ... tower 12 | projector reads | LLM 0 (projector's output) ... LLM 30

Shapes: n pictures, (h, w) patches, d width of the layer, k patches that are kept of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from llavit.model.encoding import evaluating, layer_numbers, on_grid, patch_grid

Part = Literal["tower", "read", "llm"]


@dataclass(frozen=True)
class Place:
    """A place in a model where an image has features.

    Attributes:
        part: "tower", "read" (what the projector reads: the chosen tower layers side by side) or "llm".
        layer: 0 is what the part's first layer reads, i is after layer i.
    """

    part: Part
    layer: int = 0

    def __str__(self) -> str:
        return {"tower": f"tower {self.layer}", "read": "projector reads", "llm": f"LLM {self.layer}"}[
            self.part
        ]


def places_of(
    model: Any, layers: Sequence[int] | None = None, tower_layers: Sequence[int] | None = None
) -> list[Place]:
    """Choose places in a model, in the order in which an image passes them.

    Args:
        model: a LLaVA or LLaViT of this package.
        layers: of the LLM, 0 for the projector's output, negative ones from the end; about eleven if not given.
        tower_layers: of the tower alike; about five if not given.

    Raises:
        ValueError: a layer that there is not.

    Example:
        ```python
        places = places_of(model, layers=[0, 15, -1], tower_layers=[])
        ```
    """
    count, tower_count = model.config.llm.num_hidden_layers, model.config.tower.num_hidden_layers
    llm, tower = _chosen(layers, count, 11), _chosen(tower_layers, tower_count, 5)
    return [
        *(Place("tower", layer) for layer in sorted(set(tower))),
        Place("read"),
        *(Place("llm", layer) for layer in sorted(set(llm))),
    ]


def _chosen(layers: Sequence[int] | None, count: int, most: int) -> list[int]:
    """Layers as numbers; without a choice, numbers from 0 to `count`, both of them in, evenly spread."""
    if layers is not None:
        return layer_numbers(layers, count) if len(layers) else []
    return sorted({round(x) for x in np.linspace(0, count, min(most, count + 1))})


@torch.no_grad()
def layer_features(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    places: Sequence[Place],
    *,
    prefix: bool = True,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[slice, dict[Place, torch.Tensor]]]:
    """Give the patch features of pictures, batch by batch.

    Args:
        model: a LLaVA or LLaViT of this package.
        processor: that of the model.
        images: pictures or paths.
        places: of `places_of`.
        prefix: the image stands behind what comes before it in a prompt; False runs it alone.
        batch_size: pictures at a time.
        progress: called with (pictures done, in all).

    Yields:
        which pictures, and their features (n, h, w, d) in float32 on the CPU, by place.

    Raises:
        ValueError: an unreadable picture; visual tokens that are no grid of patches.

    Example:
        ```python
        for which, features in layer_features(model, processor, paths, places_of(model)):
            last[which] = features[Place("llm", 30)].mean((1, 2))
        ```
    """
    before = processor.image_prefix() if prefix else None
    tower_layers = [place.layer for place in places if place.part == "tower"]
    llm_layers = [place.layer for place in places if place.part == "llm"]
    for start in range(0, len(images), batch_size):
        which = slice(start, min(start + batch_size, len(images)))
        pixels = processor.pixel_values(list(images[which])).to(model.device, model.dtype)
        grid = patch_grid(model.config, pixels)
        found: dict[Place, torch.Tensor] = {}
        with evaluating(model):
            if tower_layers:
                hidden = model.model.vision_tower(
                    pixels, output_hidden_states=True, return_dict=True
                ).hidden_states
                found |= {Place("tower", layer): on_grid(hidden[layer], grid) for layer in tower_layers}
            if Place("read") in places:
                found[Place("read")] = on_grid(model.model.encode_images(pixels), grid)
        if llm_layers:
            encoded = model.encode_image(pixels, llm_layers, prefix=before)
            found |= {Place("llm", each.layer): each.patches for each in encoded}
        yield which, {place: found[place].float().cpu() for place in places}
        if progress:
            progress(which.stop, len(images))


@dataclass(frozen=True)
class Kept:
    """What probes need of a layer's features.

    Attributes:
        pooled_nd: mean over patches.
        picked_nkd: the patches that were asked for.
    """

    pooled_nd: np.ndarray
    picked_nkd: np.ndarray


def kept_features(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    places: Sequence[Place],
    picks_nk: np.ndarray,
    **kwargs: Any,
) -> dict[Place, Kept]:
    """Keep of each picture its pooled features and those of some patches, in every place.

    Args:
        model: see `layer_features`.
        processor: see `layer_features`.
        images: see `layer_features`.
        places: see `layer_features`.
        picks_nk: (n, k) numbers of patches in reading order.
        **kwargs: see `layer_features`.

    Example:
        ```python
        kept = kept_features(model, processor, paths, places_of(model), np.zeros((len(paths), 1), int))
        ```
    """
    pooled: dict[Place, list[np.ndarray]] = {place: [] for place in places}
    picked: dict[Place, list[np.ndarray]] = {place: [] for place in places}
    for which, features in layer_features(model, processor, images, places, **kwargs):
        rows = np.arange(which.stop - which.start)[:, None]
        for place, patches in features.items():
            patches_nvd = patches.flatten(1, 2).numpy()
            pooled[place].append(patches_nvd.mean(1))
            picked[place].append(patches_nvd[rows, picks_nk[which]])
    return {place: Kept(np.concatenate(pooled[place]), np.concatenate(picked[place])) for place in places}
