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
from vllm.model_executor.models.transformers.fuser import get_fusers
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.platforms import current_platform

from llavit.model.routing import routed_linears
from llavit.serve.vllm.checks import check_pipeline, check_window
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

    requires_raw_input_tokens = True  # beside embeddings, for later stages of a pipeline
    # vLLM then keeps images longer than a sliding window among the bidirectional ones. Its kernels ask the layer, not
    # the model, whether to clamp such an image to the window, and do not: as transformers.
    mm_prefix_clamp_sliding_window = True

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        # Of fused layers vLLM remembers by class what it found; with visual QKV the same class is another.
        get_fusers.cache.clear()
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        get_fusers.cache.clear()
        self._routes = self.config.visual_qkv
        self._told = False
        self._visual_n: torch.Tensor | None = None
        # transformers' LLaVA has no cap after its head, whatever the LLM alone has.
        if self.pp_group.is_last_rank:
            self.logits_processor.soft_cap, self.logits_processor.scale = None, 1.0
        # SigLIP's pooling: nobody reads it, and it does not run with vLLM's layers.
        for module in self.model.vision_tower.modules():
            if getattr(module, "use_head", False):
                module.use_head = False
        on_cpu = current_platform.is_cpu()
        second_runner = not on_cpu and vllm_config.use_v2_model_runner
        if self._routes:
            check_pipeline(vllm_config.parallel_config.pipeline_parallel_size, second_runner)
            self._route(vllm_config.compilation_config.static_forward_context)
        if vllm_config.model_config.is_mm_prefix_lm:
            window = getattr(self.text_config, "sliding_window", None)
            check_window(window, self.config.image_seq_length, on_cpu, second_runner)
            honour_bidirectional_images(m for m in self.modules() if isinstance(m, Attention))

    def _route(self, modules_by_name: dict[str, Any]) -> None:
        """Put projections that know steps in the place of those that know batches."""
        for name, routed in routed_linears(self).items():
            projection = RoutedProjection(routed.text, routed.visual, name)
            modules_by_name[name] = projection
            parent, _, child = name.rpartition(".")
            setattr(self.get_submodule(parent), child, projection)

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Return what stands for an image in a chat whose template takes strings only."""
        return "<image>" if modality == "image" else None

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed the tokens of a step, (n,), those of images by features; vLLM calls it before `forward`."""
        has_images = multimodal_embeddings is not None and len(multimodal_embeddings) > 0
        self._told, self._visual_n = True, is_multimodal if has_images else None
        return super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        """Run the LLM on the tokens of a step, (n,) or padded to more."""
        if self._routes:
            set_visual_rows(self._visual(input_ids, len(positions)), positions.device)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)

    def _visual(self, input_ids: torch.Tensor | None, tokens: int) -> torch.Tensor | None:
        """Return which tokens of the present step are visual, (n,) bool, or None if none is.

        The first stage of a pipeline was told when it embedded them. Later ones go by the image token, which stands
        for nothing but images and is never generated; so do steps that vLLM makes up to warm up.
        """
        told, self._told = self._told, False
        if not told:
            if input_ids is None:
                raise ValueError("expected input_ids beside inputs_embeds, to know visual tokens; got none")
            return input_ids == self.config.image_token_id
        if self._visual_n is not None and len(self._visual_n) > tokens:
            raise ValueError(
                f"expected a whole step of {len(self._visual_n)} tokens, got {tokens}: vLLM's microbatches are not "
                "supported with visual QKV; leave --enable-dbo away"
            )
        return self._visual_n


__all__ = ["LlavitForConditionalGeneration"]
