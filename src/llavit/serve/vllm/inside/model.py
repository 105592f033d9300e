"""LLaViT on vLLM's Transformers modelling backend: our own model code, with vLLM's attention and parallel layers.

The backend builds `LlavitModel`, replaces linear layers (also the two inside each `RoutedLinear`), norms and embeddings
by its own, and calls the LLM with the tokens of many requests in one row. What is added here: which of them are visual,
and that images are bidirectional blocks, or an error.

Shapes: n tokens of a step.
"""

from typing import Any

import torch
import vllm
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.transformers import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
    TransformersMultiModalForCausalLM,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform

from llavit.model.routing import routed_linears
from llavit.serve.vllm.inside.attention import honour_bidirectional_images
from llavit.serve.vllm.inside.projection import RoutedProjection, set_visual_rows
from llavit.serve.vllm.version import require_supported

require_supported(vllm.__version__)


@MULTIMODAL_REGISTRY.register_processor(
    MultiModalProcessor, info=MultiModalProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class LlavitForConditionalGeneration(TransformersMultiModalForCausalLM):
    """LLaViT, or LLaVA where the switches are off, as vLLM wants a model.

    Raises:
        ValueError: the attention backend would be causal on images.
    """

    requires_raw_input_tokens = True  # beside embeddings: they say which tokens are visual
    # vLLM then keeps images longer than a sliding window among the bidirectional ones. Its kernels ask the layer, not
    # the model, whether to clamp such an image to the window, and do not: as transformers.
    mm_prefix_clamp_sliding_window = True

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._has_images = True  # in the present step; until somebody says otherwise
        self._routes = self.config.visual_qkv
        layers = vllm_config.compilation_config.static_forward_context
        for name, routed in routed_linears(self).items():
            name = f"{prefix}.{name}" if prefix else name
            layers[name] = RoutedProjection(routed.text, routed.visual, name)
            parent, _, child = name.rpartition(".")
            setattr(self.get_submodule(parent.removeprefix(f"{prefix}.")), child, layers[name])
        if vllm_config.model_config.is_mm_prefix_lm:
            _require_windows_as_long_as_images(vllm_config, self.text_config, self.config.image_seq_length)
            honour_bidirectional_images(m for m in self.modules() if isinstance(m, Attention))

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Return what stands for an image in a chat whose template takes strings only."""
        return "<image>" if modality == "image" else None

    def embed_input_ids(
        self, input_ids: torch.Tensor, multimodal_embeddings: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        """Embed the tokens of a step, (n,), those of images by features; vLLM calls it before `forward`."""
        self._has_images = multimodal_embeddings is not None and len(multimodal_embeddings) > 0
        return super().embed_input_ids(input_ids, multimodal_embeddings, **kwargs)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        """Run the LLM on the tokens of a step, (n,)."""
        if self._routes:
            if input_ids is None:
                raise ValueError("expected input_ids beside inputs_embeds, to know visual tokens; got none")
            set_visual_rows(input_ids == self.config.image_token_id if self._has_images else None)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)


def _require_windows_as_long_as_images(vllm_config: Any, text_config: Any, image_tokens: int) -> None:
    """Refuse sliding windows shorter than an image, where vLLM would make the image causal or clamp it.

    Raises:
        ValueError: says what works.
    """
    window = getattr(text_config, "sliding_window", None)
    if not window or window >= image_tokens:
        return
    where = f"an image has {image_tokens} visual tokens, more than the sliding window of {window}"
    if current_platform.is_cpu():
        raise ValueError(f"{where}: vLLM's CPU backend cannot attend so; use `llavit serve`, or a GPU")
    if vllm_config.use_v2_model_runner:
        raise ValueError(
            f"{where}: vLLM's model runner 2 would make it causal; set VLLM_USE_V2_MODEL_RUNNER=0"
        )


__all__ = ["LlavitForConditionalGeneration"]
