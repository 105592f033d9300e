"""LLaViT: LLaVA in which the LLM is a vision transformer as well (arXiv 2511.10301).

Architecture only. What differs from transformers' LLaVA, and where it is:

1. separate QKV for visual tokens: `routing.py`, installed in `LlavitModel.__init__`;
2. bidirectional attention within an image: `masks.py`, applied in `LlavitModel.forward`;
3. global and local features: `config.vision_feature_layer` is a list (`reading.py`, `projector.py`).

With the attention implementation `documents` (`attention.py`), training runs the LLM on tokens without padding.

Shapes: b batch, l sequence, v visual tokens, n images, d LLM width, k supervised tokens.
"""

from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, LlavaModel
from transformers.masking_utils import create_masks_for_generate
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaModelOutputWithPast,
    LlavaPreTrainedModel,
)

import llavit.model.attention  # noqa: F401  # registers `documents`
from llavit.model.compat import cache_argument, given_cache, image_fields, output_cache, same_image_fields
from llavit.model.configuration import LlavitConfig
from llavit.model.documents import may_run_on_documents, run_on_documents
from llavit.model.encoding import EncodesImages
from llavit.model.families import family_of
from llavit.model.loss import cross_entropy
from llavit.model.masks import TEXT, is_packed, require_block_masks, visual_attention_mask
from llavit.model.pretrained import LlavitPreTrainedModel
from llavit.model.projector import LlavitProjector
from llavit.model.reading import ReadsImages
from llavit.model.routing import VisualRoute, install_routing, routed_linears

_BY_IMAGE = ("pixel_values", "image_features", "image_sizes")
"""Arguments with a row for each image, and not for each row of the batch."""


class LlavitModel(ReadsImages, EncodesImages, LlavitPreTrainedModel, LlavaModel):
    """Vision tower, projector and LLM, without the language modelling head.

    Raises:
        ValueError: if the LLM's family is not supported, or its attention implementation would drop the
            bidirectional part of the mask.

    Example:
        >>> from transformers import CLIPVisionConfig, LlamaConfig
        >>> vision = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        ...     num_attention_heads=2, image_size=4, patch_size=2)
        >>> text = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, num_key_value_heads=1)
        >>> model = LlavitModel(LlavitConfig(
        ...     vision_config=vision, text_config=text, vision_feature_layer=[1, 2], image_token_index=15))
        >>> ids = torch.tensor([[1, 15, 15, 15, 15, 2]])
        >>> model(input_ids=ids, pixel_values=torch.rand(1, 3, 4, 4)).last_hidden_state.shape
        torch.Size([1, 6, 8])
    """

    multi_modal_projector: LlavitProjector

    def __init__(self, config: LlavitConfig):
        super().__init__(config)
        self.multi_modal_projector = LlavitProjector(config)
        if config.visual_qkv or config.bidirectional_visual_attention:
            family = family_of(config.llm)
            if config.bidirectional_visual_attention:
                require_block_masks(self.language_model.config)
            if config.visual_qkv:
                install_routing(self.language_model, family)
        self.post_init()

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: torch.Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        cache: Any | None = None,
        **kwargs: Any,
    ) -> LlavaModelOutputWithPast:
        """Run tower, projector and LLM.

        Args:
            input_ids: (b, l), with one image token per visual token.
            pixel_values: (n, 3, height, width), images in reading order of the batch.
            attention_mask: (b, past + l), 0 at padding.
            position_ids: (b, l); restarts mark packed documents.
            past_key_values: the cache, as transformers called it before 5.24.
            inputs_embeds: (b, l, d) instead of `input_ids`; `image_ids` then says which rows are visual.
            vision_feature_layer: overrides the configuration's, by as many layers.
            vision_feature_select_strategy: overrides the configuration's.
            image_sizes: (n, 2), for towers that take images of different sizes.
            image_ids: (b, l), -1 for text, else a number unique to the image within its row. Derived from
                `input_ids` where absent.
            image_features: (n, v, layers * tower width), of `encode_images`, instead of `pixel_values`.
            cache: of keys and values; without images in the present tokens the LLM runs as a plain one.
            **kwargs: passed on to the LLM.

        Returns:
            as transformers' `LlavaModel`.

        Raises:
            ValueError: if visual tokens and images do not agree, or the projector reads another number of layers.
        """
        cache = given_cache(past_key_values, cache)
        if cache is None and kwargs.get("use_cache") is not False and is_packed(attention_mask, position_ids):
            kwargs["use_cache"] = False  # else the LLM makes a cache first, and takes a row for one document
        if input_ids is not None and inputs_embeds is None:
            tokens = input_ids
        elif inputs_embeds is not None and input_ids is None:
            tokens = inputs_embeds[..., 0]
        else:
            raise ValueError("expected exactly one of input_ids and inputs_embeds, got both or neither")
        # Decoding: one text token a row behind a cache. No image, so the LLM runs as it is.
        pictures = pixel_values if image_features is None else image_features
        decoding = cache is not None and tokens.shape[1] == 1 and pictures is None
        features: list[torch.Tensor] | None
        if image_features is not None:
            if pixel_values is not None:
                raise ValueError("expected one of pixel_values and image_features, got both")
            weight = self.multi_modal_projector.linear_1.weight
            features = list(self.multi_modal_projector(image_features.to(weight.device, weight.dtype)))
        else:
            features = self._project_images(
                pixel_values, vision_feature_layer, vision_feature_select_strategy, image_sizes, kwargs
            )
        if image_ids is None and not decoding:
            image_ids = self._image_ids(input_ids, features)
        elif image_ids is not None and image_ids.shape != tokens.shape:
            raise ValueError(
                f"image_ids: expected shape {tuple(tokens.shape)} (that of the tokens), got {tuple(image_ids.shape)}"
            )
        # Before the embeddings, where features are made too: ZeRO sums gradients in the order in which they are ready,
        # which must be the same in a process with images and in one without.
        trains = self.training and torch.is_grad_enabled() and not decoding
        blank = self._blank_image_features() if features is None and trains else None
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if features is not None:
            inputs_embeds = self._insert_features(inputs_embeds, image_ids, features)
        elif blank is not None:
            inputs_embeds = inputs_embeds + 0.0 * blank.sum()

        last_hidden_state: Any
        if cache is None and self.training and may_run_on_documents(self, attention_mask, kwargs):
            outputs, last_hidden_state = run_on_documents(
                self, inputs_embeds, image_ids, attention_mask, position_ids, kwargs
            )
        else:
            has_visual = image_ids is not None and bool((image_ids >= 0).any())
            if self.config.bidirectional_visual_attention and image_ids is not None and has_visual:
                attention_mask = visual_attention_mask(
                    self.language_model.config, image_ids, inputs_embeds, attention_mask, cache, position_ids
                )
            if self.config.visual_qkv and image_ids is not None and (has_visual or self.training):
                # Without visual tokens, training still runs the visual projections, on zero rows: their gradients
                # are then zeros and not None, which distributed training needs.
                kwargs["visual_route"] = VisualRoute.from_mask(image_ids >= 0)
            outputs = self.language_model(
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                **{**kwargs, **cache_argument(cache), "return_dict": True},
            )
            last_hidden_state = outputs.last_hidden_state
        return LlavaModelOutputWithPast(
            last_hidden_state=last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **cache_argument(output_cache(outputs)),
            **image_fields(features),
        )


class LlavitForConditionalGeneration(EncodesImages, LlavitPreTrainedModel, LlavaForConditionalGeneration):
    """LLaViT with its language modelling head: trains with `labels`, answers with `generate`.

    Example:
        >>> from transformers import CLIPVisionConfig, LlamaConfig
        >>> vision = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        ...     num_attention_heads=2, image_size=4, patch_size=2)
        >>> text = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, num_key_value_heads=1)
        >>> model = LlavitForConditionalGeneration(LlavitConfig(
        ...     vision_config=vision, text_config=text, image_token_index=15))
        >>> ids = torch.tensor([[1, 15, 15, 15, 15, 2]])
        >>> model(input_ids=ids, pixel_values=torch.rand(1, 3, 4, 4)).logits.shape
        torch.Size([1, 6, 16])
    """

    def __init__(self, config: LlavitConfig):
        LlavaPreTrainedModel.__init__(self, config)
        self.model = LlavitModel(config)
        self.lm_head = torch.nn.Linear(config.llm.hidden_size, config.llm.vocab_size, bias=False)
        self.post_init()

    def copy_text_to_visual(self) -> None:
        """Start every visual projection as a copy of its text projection (paper: initialisation)."""
        for projection in routed_linears(self).values():
            projection.copy_text_to_visual()

    def randomise_visual(self) -> None:
        """Start every visual projection at random: the control to starting as a copy."""
        for projection in routed_linears(self).values():
            projection.randomise_visual()

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: torch.Tensor | None = None,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        image_sizes: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        supervised_logits_only: bool = False,
        cache: Any | None = None,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast:
        """Run the model.

        Args:
            input_ids: as in `LlavitModel.forward`.
            pixel_values: see there.
            attention_mask: see there.
            position_ids: see there.
            past_key_values: see there.
            inputs_embeds: see there.
            vision_feature_layer: see there.
            vision_feature_select_strategy: see there.
            labels: (b, l), -100 where nothing is to be learned; gives `loss`.
            logits_to_keep: as in transformers.
            image_sizes: see there.
            image_ids: see there.
            image_features: see there.
            supervised_logits_only: with labels, compute logits only where there is a label, and the loss without
                copies of them (`loss.py`). Same loss; `logits` is then None. Saves most of the memory of the head,
                whose vocabulary is large.
            cache: as in `LlavitModel.forward`.
            **kwargs: `num_items_in_batch` divides the summed loss (the number of supervised tokens over all
                micro-batches and processes); without it the loss is the mean.

        Returns:
            as transformers' `LlavaForConditionalGeneration`.
        """
        inputs = {
            "input_ids": input_ids,
            "pixel_values": pixel_values,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "vision_feature_layer": vision_feature_layer,
            "vision_feature_select_strategy": vision_feature_select_strategy,
            "image_sizes": image_sizes,
            "image_ids": image_ids,
            "image_features": image_features,
            **cache_argument(given_cache(past_key_values, cache)),
        }
        if labels is None or not supervised_logits_only:
            return super().forward(**inputs, labels=labels, logits_to_keep=logits_to_keep, **kwargs)
        num_items = kwargs.pop("num_items_in_batch", None)
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100).flatten()
        # Looked for before the LLM runs: on a GPU this waits for all that is queued.
        supervised_k = (targets != -100).nonzero().squeeze(1)
        outputs = self.model(**inputs, **kwargs)
        hidden = outputs.last_hidden_state.flatten(0, 1)
        logits_kv = self.lm_head(hidden.index_select(0, supervised_k.to(hidden.device)))
        loss: Any = cross_entropy(logits_kv, targets[supervised_k].to(logits_kv.device), num_items)
        return LlavaCausalLMOutputWithPast(
            loss=loss,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **cache_argument(output_cache(outputs)),
            **same_image_fields(outputs),
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Give the inputs of a step: images are those of the prompt, and no business of later steps behind a cache."""
        made = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        image_ids = made.pop("image_ids", None)
        embedded = made.get("inputs_embeds") is not None
        whole = (inputs_embeds if embedded else input_ids).shape[1]  # type: ignore[union-attr]
        present = made["inputs_embeds" if embedded else "input_ids"].shape[1]
        if not is_first_iteration and kwargs.get("use_cache", True):
            made.pop("image_features", None)
            if present > 1:  # assisted decoding, whose proposals may have an image token among them
                made["image_ids"] = torch.full_like(made["input_ids"], TEXT)
        elif image_ids is not None:
            new = max(0, whole - image_ids.shape[1])  # tokens generated or proposed: text
            made["image_ids"] = torch.nn.functional.pad(image_ids, (0, new), value=TEXT)[:, whole - present :]
        return made

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Any = None,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat rows for beams or several answers: a row's images as a whole, and not each image by itself."""
        images = {key: model_kwargs.pop(key) for key in _BY_IMAGE if model_kwargs.get(key) is not None}
        if expand_size > 1 and images:
            image_ids = model_kwargs.get("image_ids")
            if image_ids is None and model_kwargs.get("inputs_embeds") is not None:
                raise ValueError(
                    "several answers or beams of inputs_embeds with images: expected image_ids, to know where they go; "
                    "got none"
                )
            visual = input_ids == self.config.image_token_id if image_ids is None else image_ids >= 0
            tokens_b = visual.sum(1)
            count = len(next(iter(images.values())))
            each = int(tokens_b.sum()) // count
            if each * count != int(tokens_b.sum()) or bool((tokens_b % max(each, 1)).any()):
                raise ValueError(
                    f"several answers or beams: expected rows with as many image tokens as their images have, got "
                    f"{tokens_b.tolist()} tokens in the rows and {count} images"
                )
            rows = torch.arange(count, device=tokens_b.device).split((tokens_b // each).tolist())
            order = torch.cat([row for row in rows for _ in range(expand_size)])
            images = {key: value[order.to(value.device)] for key, value in images.items()}
        generation: Any = super()
        input_ids, model_kwargs = generation._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **images}

    @staticmethod
    def create_masks_for_generate(
        config: LlavitConfig,
        attention_mask: torch.Tensor | None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Leave the prompt's mask to the model, which knows the images; called by `generate` for static caches."""
        if is_first_iteration:
            return attention_mask
        return create_masks_for_generate(config=config, attention_mask=attention_mask, **kwargs)


__all__ = ["LlavitForConditionalGeneration", "LlavitModel", "LlavitPreTrainedModel"]
