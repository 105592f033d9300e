"""Projector: LLaVA's two-layer MLP, and an option to standardise what it reads."""

import torch
from torch import nn
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from llavit.model.configuration import LlavitConfig


class LlavitProjector(LlavaMultiModalProjector):
    """Maps patch features, concatenated over tower layers, to the width of the LLM (paper: change 3).

    With `vision_feature_norm` each feature is standardised first, by a mean and a standard deviation that
    `calibrate` measures once and that are saved with the weights. It is our addition, off by default: off, this
    is LLaVA's projector. Two things speak for it where training is short. Layers of a tower differ in scale, since
    the residual stream grows with depth, so that early ones barely reach the projector. And much of a feature is
    the same in every image, which an LLM first learns to read as a prompt instead of looking at the image.

    `projector_width` widens the inner layer: a projector with as many weights as visual QKV is a control.

    Attributes:
        feature_mean: (layers * tower width,) what is subtracted.
        feature_std: (layers * tower width,) what is divided by.
    """

    feature_mean: torch.Tensor
    feature_std: torch.Tensor

    def __init__(self, config: LlavitConfig):
        super().__init__(config)
        if config.projector_width is not None:
            wide, narrow = config.projector_width, self.linear_2.out_features
            self.linear_1 = nn.Linear(self.linear_1.in_features, wide, bias=self.linear_1.bias is not None)
            self.linear_2 = nn.Linear(wide, narrow, bias=self.linear_2.bias is not None)
        self.standardises = config.vision_feature_norm
        if self.standardises:
            self.register_buffer("feature_mean", torch.zeros(self.linear_1.in_features))
            self.register_buffer("feature_std", torch.ones(self.linear_1.in_features))

    @torch.no_grad()
    def calibrate(self, features_nvd: torch.Tensor) -> None:
        """Measure mean and standard deviation over images and patches.

        Args:
            features_nvd: (n, v, layers * tower width), some dozens of images.

        Raises:
            ValueError: if the configuration does not ask for standardised features.
        """
        if not self.standardises:
            raise ValueError(
                "expected vision_feature_norm=True in the configuration, got False: nothing to calibrate"
            )
        self.feature_mean.copy_(features_nvd.float().mean((0, 1)))
        self.feature_std.copy_(features_nvd.float().std((0, 1)).clamp(min=1e-6))

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """Project (n, v, layers * tower width) to (n, v, LLM width)."""
        if self.standardises:
            image_features = (image_features - self.feature_mean) / self.feature_std
        return super().forward(image_features)
