"""The vision tower as a compiled graph, for images of the size that the processor makes.

A CPU gains nothing by running images together that it could not run one after the other, so the graph is for one.

Legend: n images, v visual tokens of each, e width of the features.
"""

from __future__ import annotations

from typing import Any

import torch

from llavit.serve.graph import MOST_COPIED, copying_weights


class CompiledTower:
    """`model.encode_images` on a CPU, with the tower compiled.

    Args:
        model: a LLaViT or LLaVA of whose outer model this is, in evaluation mode.
        size: (height, width) of the images.

    Example:
        tower = CompiledTower(model.model, (336, 336))
        features = tower(pixels)
    """

    def __init__(self, model: Any, size: tuple[int, int]):
        self.model, self.size = model, size
        tower = model.vision_tower
        copies = sum(weight.nbytes for weight in tower.parameters()) <= MOST_COPIED
        self._settings = copying_weights(tower.dtype) if copies else {}
        self._compiled = torch.compile(type(tower)._call_impl.__get__(tower), dynamic=False)

    def takes(self, pixels: torch.Tensor) -> bool:
        """Whether the images have the size that the graph is for."""
        return tuple(pixels.shape[-2:]) == self.size

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Give the features (n, v, e) of images (n, 3, height, width)."""
        tower = self.model.vision_tower
        tower._compiled_call_impl = self._compiled  # for this call only: others may run it as it is
        try:
            with torch._inductor.config.patch(self._settings):
                return torch.cat([self.model.encode_images(each) for each in pixels.split(1)])
        finally:
            tower._compiled_call_impl = None
