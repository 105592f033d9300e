"""Put a LLaViT together from a vision tower and an LLM."""

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BaseImageProcessor,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from llavit.model.configuration import LlavitConfig
from llavit.model.families import family_of
from llavit.model.modeling import LlavitForConditionalGeneration
from llavit.model.processor import LlavitProcessor, single_token_id
from llavit.model.projector import LlavitProjector
from llavit.model.routing import install_routing


class BuiltLlavit(NamedTuple):
    """A model and the processor that goes with it."""

    model: LlavitForConditionalGeneration
    processor: LlavitProcessor


def build_llavit(
    vision: str | Path | PreTrainedModel,
    llm: str | Path | PreTrainedModel,
    *,
    vision_feature_layer: int | list[int],
    visual_qkv: bool = True,
    bidirectional_visual_attention: bool = True,
    vision_feature_norm: bool = False,
    projector_width: int | None = None,
    visual_qkv_start: Literal["copy", "random"] = "copy",
    image_size: int | None = None,
    tokenizer: Any = None,
    image_processor: BaseImageProcessor | None = None,
    image_token: str = "<image>",
    chat_template: str | None = None,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> BuiltLlavit:
    """Build a LLaViT (or, with the switches off, a LLaVA) from parts.

    Loaded models are taken over, not copied. Adds the image token to the tokenizer, wires tower and LLM to a
    fresh projector, and copies the LLM's text QKV into the visual QKV.

    Args:
        vision: vision tower: a folder, a hub id or a loaded model (CLIP, SigLIP, DINOv2, ...). Of a two-tower
            model the vision tower is taken.
        llm: decoder-only LLM: a folder, a hub id or a loaded `...ForCausalLM`.
        vision_feature_layer: tower layer, or list of layers, whose patch features the projector reads.
            Counted as in `hidden_states`: 0 is the embedding, -1 the last layer. The paper concatenates
            several (local and global features); LLaVA takes -2.
        visual_qkv: give visual tokens their own QKV projections.
        bidirectional_visual_attention: let the tokens of an image see each other in both directions.
        vision_feature_norm: standardise features before the projector; see `LlavitModel.calibrate_features`.
        projector_width: of the projector's inner layer; default the LLM's width, as in LLaVA.
        visual_qkv_start: "copy" of the text projections, as in the paper, or "random" weights with their mean and
            spread, which is a control.
        image_size: height and width of processed images in pixels; default the tower's own.
        tokenizer: needed where `llm` is a loaded model without a known folder.
        image_processor: default: that in the tower's folder, else a plain one for the tower's family.
        image_token: the text token that stands for a visual token.
        chat_template: Jinja template of a conversation; default the tokenizer's own.
        dtype: of the weights; default that of the LLM's checkpoint.
        attn_implementation: of the LLM: "sdpa" (default), "eager" or "flex_attention".

    Returns:
        the model and its processor; save both into one folder with `save_pretrained`.

    Raises:
        ValueError: for an unsupported LLM family, a tower layer that does not exist, a loaded LLM without
            tokenizer, or an image size that the tower cannot take.

    Example:
        ```python
        model, processor = build_llavit(
            "openai/clip-vit-large-patch14-336", "Qwen/Qwen2.5-1.5B-Instruct", vision_feature_layer=[8, 16, -2]
        )
        ```
    """
    tower = _load(AutoModel, vision, dtype)
    tower = getattr(tower, "vision_model", tower) if hasattr(tower, "text_model") else tower
    lm = _load(AutoModelForCausalLM, llm, dtype, attn_implementation=attn_implementation)
    dtype = dtype or lm.dtype
    tokenizer = tokenizer or _load_tokenizer(lm, llm)
    _check_layers(vision_feature_layer, tower.config.num_hidden_layers)

    if image_token not in tokenizer.get_vocab():
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [image_token]}, replace_extra_special_tokens=False
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    image_token_id = single_token_id(tokenizer, image_token)
    if image_token_id >= lm.get_input_embeddings().num_embeddings:
        lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        _embed_as_mean(lm, image_token_id)

    extra_tokens = count_extra_tokens(tower)
    strategy: Literal["default", "full"] = "default" if extra_tokens else "full"
    processor = LlavitProcessor(
        image_processor or _image_processor(tower, vision, image_size or tower.config.image_size),
        tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=strategy,
        chat_template=chat_template,
        image_token=image_token,
        num_additional_image_tokens=extra_tokens,
    )
    config = LlavitConfig(
        vision_config=tower.config.to_dict(),
        text_config=lm.config.get_text_config().to_dict(),
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy=strategy,
        image_token_index=image_token_id,
        image_seq_length=processor.image_seq_length,
        visual_qkv=visual_qkv,
        bidirectional_visual_attention=bidirectional_visual_attention,
        vision_feature_norm=vision_feature_norm,
        projector_width=projector_width,
        dtype=dtype,
    )
    _check_image_size(tower, processor.image_seq_length - (0 if strategy == "default" else extra_tokens))
    model = _assemble(config, tower, lm)
    if visual_qkv_start == "random":
        model.randomise_visual()
    model.generation_config = _generation_config(lm, tokenizer, image_token_id)
    model.to(dtype=dtype)  # type: ignore[call-arg]  # transformers' wrapper hides the signature
    return BuiltLlavit(model.eval(), processor)


def _load(auto: Any, source: str | Path | PreTrainedModel, dtype: torch.dtype | None, **kwargs: Any) -> Any:
    if isinstance(source, nn.Module):
        return source
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    return auto.from_pretrained(source, dtype=dtype or "auto", **kwargs)


def _load_tokenizer(lm: PreTrainedModel, source: Any) -> Any:
    folder = lm.config._name_or_path if isinstance(source, nn.Module) else source
    if not folder:
        raise ValueError("expected a tokenizer beside an LLM given as a loaded model; pass tokenizer=...")
    return AutoTokenizer.from_pretrained(folder)


def _check_layers(layers: int | list[int], count: int) -> None:
    for layer in [layers] if isinstance(layers, int) else layers:
        if not -count - 1 <= layer <= count:
            raise ValueError(
                f"vision_feature_layer: the tower has layers {-count - 1} to {count} (0 is its embedding), got {layer}"
            )


def _embed_as_mean(lm: PreTrainedModel, token_id: int) -> None:
    """Give a new token the mean of all embeddings: it is always replaced by features, never seen."""
    with torch.no_grad():
        for layer in {lm.get_input_embeddings(), lm.get_output_embeddings()}:
            layer.weight[token_id] = layer.weight[:token_id].float().mean(0).to(layer.weight.dtype)


def count_extra_tokens(tower: PreTrainedModel) -> int:
    """Count the tokens that a tower puts before its patches (CLS, registers), by running it on one image."""
    config = tower.config
    pixels = torch.zeros(
        1, config.num_channels, config.image_size, config.image_size, dtype=tower.dtype, device=tower.device
    )
    with torch.no_grad():
        tokens = tower(pixels).last_hidden_state.shape[1]
    extra = tokens - (config.image_size // config.patch_size) ** 2
    if extra not in (0, 1):
        raise ValueError(
            f"{type(tower).__name__}: expected patches with at most one extra token (CLS) before them, got {extra} "
            "extra tokens; towers with register tokens are not supported"
        )
    return extra


def _image_processor(tower: PreTrainedModel, source: Any, image_size: int) -> BaseImageProcessor:
    """Load the tower's image processor (PIL backend) and set its output size; make a plain one if it has none."""
    folder = tower.config._name_or_path if isinstance(source, nn.Module) else source
    size = {"height": image_size, "width": image_size}
    if folder:
        try:
            processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        except OSError:
            processor = None
        if processor is not None:
            if getattr(processor, "do_center_crop", False):
                processor.size, processor.crop_size = {"shortest_edge": image_size}, size
            else:
                processor.size = size
            return processor
    mean, std = _PIXEL_STATISTICS.get(tower.config.model_type, _PIXEL_STATISTICS["clip_vision_model"])
    return SiglipImageProcessorPil(size=size, image_mean=mean, image_std=std)


_PIXEL_STATISTICS = {
    "clip_vision_model": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "siglip_vision_model": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "dinov2": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
"""Mean and standard deviation of pixels that each tower family was trained with."""


def _check_image_size(tower: PreTrainedModel, patches: int) -> None:
    native = (tower.config.image_size // tower.config.patch_size) ** 2
    if patches != native and not tower.config.model_type.startswith("dinov2"):
        side = math.isqrt(patches) * tower.config.patch_size
        raise ValueError(
            f"{type(tower).__name__} has position embeddings for {tower.config.image_size} pixels and does not "
            f"interpolate them; got image_size={side}. Leave image_size out."
        )


def _assemble(
    config: LlavitConfig, tower: PreTrainedModel, lm: PreTrainedModel
) -> LlavitForConditionalGeneration:
    """Make an empty model and put the loaded parts into it: nothing is copied but the visual QKV."""
    with torch.device("meta"):
        model = LlavitForConditionalGeneration(config)
    decoder = lm.get_decoder()
    # First of all that starts at random, so that one seed gives one projector, whatever the other switches.
    projector = LlavitProjector(config).to(decoder.device)
    if config.visual_qkv:
        install_routing(decoder, family_of(config.llm))
    inner = model.model
    inner.vision_tower, inner.language_model = tower, decoder
    inner.multi_modal_projector = projector
    model.lm_head = lm.get_output_embeddings()
    for part in (model, inner):  # the parts' configurations hold their attention implementations
        part.config.vision_config, part.config.text_config = tower.config, decoder.config
    model.tie_weights()
    model.copy_text_to_visual()
    return model


def _generation_config(lm: PreTrainedModel, tokenizer: Any, image_token_id: int) -> GenerationConfig:
    """Take over the LLM's ways of ending an answer; never generate the image token."""
    own = lm.generation_config
    eos = own.eos_token_id if own is not None and own.eos_token_id is not None else tokenizer.eos_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[image_token_id],
        max_new_tokens=256,
    )
