"""Projector: LLaVA's two-layer MLP, and an option for several tower layers of unequal scale."""

import torch
from torch.nn import functional
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from llavit.model.configuration import LlavitConfig


class LlavitProjector(LlavaMultiModalProjector):
    """Maps patch features, concatenated over tower layers, to the width of the LLM (paper: change 3).

    With `vision_feature_norm` each layer's features are brought to zero mean and unit variance per patch first,
    without learned parameters. The residual stream of a pre-norm tower grows with depth: in the starter tower
    patch features have a standard deviation of 0.05 in layer 4, 0.16 in layer 8 and 0.56 in layer 11, so that
    without it the local layers barely reach the projector. It is our choice, off by default: off, this is
    LLaVA's projector.
    """

    def __init__(self, config: LlavitConfig):
        super().__init__(config)
        self.norm_width = config.tower.hidden_size if config.vision_feature_norm else None

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Project (n, v, layers * tower width) to (n, v, LLM width)."""
        if self.norm_width is not None:
            by_layer = image_features.unflatten(-1, (-1, self.norm_width))
            image_features = functional.layer_norm(by_layer, (self.norm_width,)).flatten(-2)
        return super().forward(image_features)
