"""A picture of patch features: their three principal components as red, green and blue, layer by layer.

Patches of one colour are alike to the model. Components are those of all pictures together, so that the same colour
means the same in each of them; from one layer to the next colours are matched as far as they can be.

Shapes: s places (tower and LLM layers), n pictures, (h, w) patches, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from llavit.inspect.attention import seen_box
from llavit.inspect.features import layer_features, places_of
from llavit.inspect.report import Analysis, new_figure
from llavit.model.images import load_image

COMPONENTS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchPca(Analysis):
    """Three principal components of the patch features of some pictures, by place.

    Attributes:
        rgb: (s, n, h, w, 3) float32, 0 to 1.
        explained: (s, 3) share of the variance of all patches.
        seen: (n, side, side, 3) uint8, what the model sees of each picture.
        places: (s) names, such as "tower 12", "projector reads", "LLM 30".
    """

    NAME: ClassVar[str] = "pca"
    TITLE: ClassVar[str] = "Patch features in colours"
    ABOUT: ClassVar[str] = (
        "Three principal components of patch features as red, green and blue: patches of one colour are alike to the "
        "model at that place. Percentages are shares of the variance that the three components hold."
    )

    rgb: np.ndarray
    explained: np.ndarray
    seen: np.ndarray
    places: list[str]

    def figure(self) -> Any:
        """Pictures in rows, places in columns."""
        rows, columns = len(self.seen), len(self.places) + 1
        figure = new_figure(0.9 * columns, 0.95 * rows + 0.5)
        axes = figure.subplots(rows, columns, squeeze=False)
        for row in range(rows):
            axes[row][0].imshow(self.seen[row])
            for column in range(len(self.places)):
                axes[row][column + 1].imshow(self.rgb[column, row], interpolation="nearest")
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        for column, place in enumerate(self.places):
            title = f"{place.replace('projector reads', 'read')}\n{100 * self.explained[column].sum():.0f} %"
            axes[0][column + 1].set_title(title, fontsize=7)
        return figure


def patch_pca(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    *,
    name: str = "model",
    layers: Sequence[int] | None = None,
    tower_layers: Sequence[int] | None = None,
    prefix: bool = True,
) -> PatchPca:
    """Colour the patches of pictures by their features' principal components.

    Args:
        model: a LLaVA or LLaViT of this package.
        processor: that of the model.
        images: pictures or paths, of which components are made together.
        name: of the model in reports.
        layers: of the LLM, 0 for the projector's output; about eleven if not given.
        tower_layers: of the tower alike; about five if not given.
        prefix: the image stands behind what comes before it in a prompt; False runs it alone.

    Raises:
        ValueError: no pictures, or a layer that there is not.

    Example:
        ```python
        patch_pca(model, processor, ["cat.jpg", "dog.jpg"], layers=[0, 15, 30]).save("runs/inspect")
        ```
    """
    if not len(images):
        raise ValueError("images: expected at least one picture, got none")
    places = places_of(model, layers, tower_layers)
    batches = list(layer_features(model, processor, images, places, prefix=prefix))
    coloured: list[np.ndarray] = []
    explained = []
    for place in places:
        patches_nhwd = torch.cat([features[place] for _, features in batches]).numpy()
        scores, shares = components(patches_nhwd.reshape(-1, patches_nhwd.shape[-1]))
        if coloured:
            scores = _matched(scores, coloured[-1].reshape(scores.shape))
        coloured.append(scores.reshape(*patches_nhwd.shape[:-1], COMPONENTS))
        explained.append(shares)
    return PatchPca(
        model=name,
        settings={
            "pictures": len(images),
            "prefix": prefix,
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        rgb=np.stack([_as_colours(each) for each in coloured]),
        explained=np.array(explained, np.float32),
        seen=np.stack([_seen(processor, image) for image in images]),
        places=[str(place) for place in places],
    )


def components(x_md: np.ndarray, count: int = COMPONENTS) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (m, count) of rows on their first principal components, and the shares of variance (count,).

    Components that there are not, for want of rows or width, are zeros.

    Example:
        >>> scores, shares = components(np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]), count=1)
        >>> np.abs(scores[:, 0]).round(6).tolist(), shares.round(6).tolist()
        ([5.0, 0.0, 5.0], [1.0])
    """
    centred = x_md.astype(np.float64) - x_md.mean(0, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    found = min(count, len(sizes))
    scores, shares = np.zeros((len(x_md), count)), np.zeros(count)
    scores[:, :found] = left[:, :found] * sizes[:found]
    shares[:found] = sizes[:found] ** 2 / max((sizes**2).sum(), 1e-300)
    return scores, shares


def _matched(scores_mc: np.ndarray, earlier_mc: np.ndarray) -> np.ndarray:
    """Order components, and choose their signs, so that they go with those of the layer before."""

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=0), 1e-12)

    likeness = unit(earlier_mc).T @ unit(scores_mc)
    count = scores_mc.shape[1]
    best = max(permutations(range(count)), key=lambda p: sum(abs(likeness[i, p[i]]) for i in range(count)))
    signs = [1.0 if likeness[i, best[i]] >= 0 else -1.0 for i in range(count)]
    return scores_mc[:, best] * signs


def _as_colours(scores: np.ndarray) -> np.ndarray:
    """Stretch each component so that 1 % of patches are darkest and 1 % brightest."""
    low, high = np.percentile(scores.reshape(-1, COMPONENTS), [1, 99], axis=0)
    return np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1).astype(np.float32)


def _seen(processor: Any, image: Any, side: int = 112) -> np.ndarray:
    """Cut out what a model sees of a picture."""
    picture = load_image(image)
    width, height = picture.size
    left, top, right, bottom = seen_box(processor.image_processor, width, height, processor.patch_size)
    box = (left * width, top * height, right * width, bottom * height)
    return np.asarray(picture.transform((side, side), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR))
