"""Configuration: LLaVA's, plus one switch for each change that LLaViT makes."""

from typing import Any, cast

from huggingface_hub.dataclasses import strict
from transformers import LlavaConfig, PreTrainedConfig


@strict
class LlavitConfig(LlavaConfig):
    """Configuration of a LLaViT model (arXiv 2511.10301).

    The paper's three changes are three fields. With both switches off and a single vision feature layer the
    model is LLaVA, to the logit.

    Attributes:
        visual_qkv: visual tokens go through their own q, k and v projections in every layer of the LLM.
        bidirectional_visual_attention: the visual tokens of one image see each other in both directions;
            everything else stays causal.
        vision_feature_layer: a list of vision tower layers, whose patch features are concatenated
            channel-wise (local and global features); an int gives LLaVA's single layer.
        vision_feature_norm: standardise features before the projector, so that layers of different scale weigh
            alike (`llavit.model.projector`). Our addition, off by default.
        projector_width: of the projector's inner layer; None is LLaVA's, the LLM's width.

    Example:
        >>> config = LlavitConfig(vision_feature_layer=[8, 16, -2])
        >>> config.visual_qkv, config.bidirectional_visual_attention, config.model_type
        (True, True, 'llavit')
    """

    model_type = "llavit"

    visual_qkv: bool = True
    bidirectional_visual_attention: bool = True
    vision_feature_norm: bool = False
    projector_width: int | None = None

    @property
    def is_mm_prefix_lm(self) -> bool:
        """Whether images are bidirectional blocks in the prompt (the name under which vLLM asks)."""
        return self.bidirectional_visual_attention

    @property
    def llm(self) -> PreTrainedConfig:
        """The LLM's configuration."""
        return cast(PreTrainedConfig, self.text_config)

    @property
    def tower(self) -> PreTrainedConfig:
        """The vision tower's configuration."""
        return cast(PreTrainedConfig, self.vision_config)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """Read a configuration; that of a LLaVA checkpoint counts as one of LLaViT's.

        Raises:
            ValueError: of another model, or in the format of LLaVA's own repository.
        """
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        kind = config.get("model_type", cls.model_type)
        if "mm_vision_tower" in config or kind not in (cls.model_type, LlavaConfig.model_type):
            raise ValueError(
                f"{pretrained_model_name_or_path}: expected a LLaViT, or a LLaVA in Hugging Face's format (model_type "
                f"llava, with text_config and vision_config), got model_type {kind!r}. For a checkpoint of LLaVA's own "
                f"repository: llavit convert {pretrained_model_name_or_path} --to FOLDER"
            )
        if config.get("model_type") == LlavaConfig.model_type:
            config = {**config, "model_type": cls.model_type}
        return config, kwargs


__all__ = ["LlavitConfig"]
