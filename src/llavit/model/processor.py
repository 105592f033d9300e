"""Processor: conversations and images in, tokens and pixels out."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from transformers import LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llavit.model.chat import (
    Message,
    handles_parts,
    render,
    render_plain,
    render_with_spans,
    space_after_image,
    with_images,
)
from llavit.model.compat import LOCATION
from llavit.model.configuration import LlavitConfig
from llavit.model.images import count_image_tokens, fetch_image, load_image, message_images, processed_size
from llavit.model.masks import TEXT

IGNORED = -100
"""Label of a token that is not to be learned."""


class NothingLeft(ValueError):
    """A conversation has something to learn from, and nothing of it before `max_length`."""


class LlavitProcessor(LlavaProcessor):
    """LLaVA's processor (same arguments, same files), with three things more.

    - Images anywhere in a message, for any LLM: a tokenizer's own text-only chat template is made to take
      them (`llavit.model.chat`).
    - `encode`: tokens, labels and image ids of a conversation in a single tokenisation.
    - One function counts visual tokens (`llavit.model.images.count_image_tokens`).
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        num_additional_image_tokens: int = 0,
        **kwargs: Any,
    ):
        if tokenizer is not None and not handles_parts(
            chat_template, image_token, **tokenizer.special_tokens_map
        ):
            chat_template = with_images(chat_template or tokenizer.chat_template, image_token)
        super().__init__(
            image_processor,
            tokenizer,
            patch_size=patch_size,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            num_additional_image_tokens=num_additional_image_tokens,
            **kwargs,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load a processor; what those of older LLaVA checkpoints do not state is taken from the model's config.json.

        Args:
            pretrained_model_name_or_path: a folder or a hub id.
            **kwargs: as in transformers.
        """
        processor: Any = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        strategy = processor.vision_feature_select_strategy
        no_cls = strategy == "default" and not processor.num_additional_image_tokens
        if processor.patch_size is None or strategy is None or no_cls:
            location = {key: kwargs[key] for key in LOCATION if key in kwargs}
            config = LlavitConfig.from_pretrained(pretrained_model_name_or_path, **location)
            processor.patch_size = config.tower.patch_size
            processor.vision_feature_select_strategy = config.vision_feature_select_strategy
            cls_token = config.vision_feature_select_strategy == "default"
            patches = count_image_tokens(
                *processed_size(processor.image_processor), processor.patch_size, 0, "full"
            )
            extra = config.image_seq_length - patches + cls_token
            processor.num_additional_image_tokens = extra if extra in (0, 1) else int(cls_token)
        return processor

    def with_chat_template(self, chat_template: str) -> "LlavitProcessor":
        """Return a processor that differs in the chat template only; one for text alone is made to take images."""
        return self._with(self.image_processor, chat_template)

    def with_padding(self) -> "LlavitProcessor":
        """Return a processor that differs in its images only: nothing is cut off them (`padding_to_square`)."""
        return self._with(padding_to_square(self.image_processor), self.chat_template)

    def _with(self, image_processor: Any, chat_template: Any) -> "LlavitProcessor":
        return LlavitProcessor(
            image_processor,
            self.tokenizer,
            patch_size=self.patch_size,
            vision_feature_select_strategy=self.vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=self.image_token,
            num_additional_image_tokens=self.num_additional_image_tokens,
        )

    # Counting visual tokens

    def count_image_tokens(self, height: int, width: int) -> int:
        """Return the visual tokens of a processed image of `height` x `width` pixels."""
        return count_image_tokens(
            height,
            width,
            self.patch_size,
            self.num_additional_image_tokens,
            self.vision_feature_select_strategy,
        )

    @property
    def image_seq_length(self) -> int:
        """Visual tokens per image."""
        return self.count_image_tokens(*processed_size(self.image_processor))

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """Return what stands for one image in the text (called by transformers)."""
        height, width = image_inputs["pixel_values"][image_idx].shape[-2:]
        return self.image_token * self.count_image_tokens(height, width)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> Any:
        from transformers.processing_utils import MultiModalData

        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(
            num_image_tokens=[self.image_seq_length] * len(image_sizes),
            num_image_patches=[1] * len(image_sizes),
        )

    # Text and images of one conversation

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Tokenise rendered text and process images, as transformers' `LlavaProcessor` does.

        Images are read as in training (`load_image`): pictures, bytes, paths, URLs and base64; arrays and tensors are
        taken as they are. So are those of `apply_chat_template(tokenize=True)`, which calls this.

        Raises:
            ValueError: if the number of image tokens in the text is not that of the images, or an unreadable image.
        """
        if text is not None:
            expected = sum(t.count(self.image_token) for t in ([text] if isinstance(text, str) else text))
            got = _count_images(images)
            if expected != got:
                raise ValueError(
                    f"number of images: the text has {expected} {self.image_token} tokens, {got} images were given"
                )
        return super().__call__(images=_loaded(images), text=text, **kwargs)

    def render(self, messages: list[Message], add_generation_prompt: bool = False) -> str:
        """Render a conversation as text, one image token per image."""
        return render(self, messages, add_generation_prompt)

    def image_prefix(self) -> torch.Tensor:
        """Return the token ids (p,) that come before an image at the beginning of a conversation.

        `model.encode_image(images, prefix=processor.image_prefix())` encodes an image where it stands in a prompt.
        """
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
        ids = self._tokenise(self.render(messages), [])["input_ids"]
        return ids[: int((ids == self.image_token_id).nonzero()[0])]

    def encode(
        self,
        messages: list[Message],
        *,
        add_generation_prompt: bool = False,
        return_labels: bool = False,
        max_length: int | None = None,
        style: Literal["chat", "plain"] = "chat",
        image_features: Callable[[Any], torch.Tensor] | None = None,
        name: str = "conversation",
    ) -> dict[str, torch.Tensor]:
        """Turn one conversation into tensors, in one tokenisation.

        Args:
            messages: roles and contents; images as PIL images or paths, anywhere.
            add_generation_prompt: end with the assistant's turn opened, for generation.
            return_labels: add labels: the assistant's tokens and its end-of-turn; `IGNORED` elsewhere.
            max_length: greatest number of tokens. With labels, text past it is cut; an image never is.
            style: "chat" renders with the chat template; "plain" is LLaVA's way to pretrain, images and caption
                only (`llavit.model.chat.render_plain`).
            image_features: gives the (v, layers * tower width) features of an image, which are then used
                instead of its pixels: see `LlavitModel.encode_images`.
            name: what to call the conversation in errors, e.g. the sample's id.

        Returns:
            `input_ids` (l,), `image_ids` (l,) with -1 for text, `labels` (l,) if asked for, and, if there are
            n > 0 images, `pixel_values` (n, 3, height, width) or `image_features` (n, v, layers * tower width).

        Raises:
            ValueError: naming the conversation: an unreadable image, an image token in plain text, turns that the chat
                template refuses, a prompt over `max_length`, nothing to learn from.
            NothingLeft: the same, where only `max_length` leaves nothing to learn from.
        """
        images = message_images(messages, name)
        try:
            if style == "plain":
                space = space_after_image(self.tokenizer, self.image_token)
                text, spans = render_plain(self, messages, space)
            elif return_labels:
                text, spans = render_with_spans(self, messages)
            else:
                text, spans = render(self, messages, add_generation_prompt), []
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        mentioned = text.count(self.image_token)
        if mentioned != len(images):
            raise ValueError(
                f"{name}: number of images: the text has {mentioned} {self.image_token} tokens, the messages have "
                f"{len(images)} images"
            )
        encoded = self._tokenise(text, spans)
        if images and image_features is not None:
            features = torch.stack([image_features(image) for image in images])
            encoded = self._expand(encoded, [features.shape[1]] * len(images))
            encoded["image_features"] = features
        elif images:
            pixels = self.pixel_values(images, name)
            encoded = self._expand(encoded, [self.count_image_tokens(*image.shape[-2:]) for image in pixels])
            encoded["pixel_values"] = pixels
        learned = int((encoded["labels"] != IGNORED).sum())
        if max_length is not None:
            _limit(encoded, max_length, may_cut=return_labels, name=name)
        if not return_labels:
            del encoded["labels"]
        elif not (encoded["labels"] != IGNORED).any():
            raise (NothingLeft if learned else ValueError)(
                f"{name}: nothing to learn from: no assistant token is left among {len(encoded['input_ids'])} tokens"
                + (f" (max_length={max_length})" if max_length else "")
            )
        return encoded

    def pixel_values(self, images: list[Any], name: str = "images") -> torch.Tensor:
        """Load images and make them what the tower takes, (n, 3, height, width).

        Args:
            images: n > 0 paths or PIL images.
            name: what to call them in errors.

        Raises:
            ValueError: an unreadable image.
        """
        pictures = [load_image(image, name) for image in images]
        return self.image_processor(pictures, return_tensors="pt")["pixel_values"]

    def _tokenise(self, text: str, spans: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        bos = self.tokenizer.bos_token
        out = self.tokenizer(
            text,
            add_special_tokens=not (bos and text.startswith(bos)),
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        input_ids, offsets = out["input_ids"][0], out["offset_mapping"][0]
        supervised = torch.zeros_like(input_ids, dtype=torch.bool)
        for start, end in spans:
            # A first word may be one token with the white space before it, which is the prompt's.
            earliest = len(text[:start].rstrip())
            begins = (offsets[:, 0] >= earliest) & (offsets[:, 1] > start)
            supervised |= begins & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])
        return {
            "input_ids": input_ids,
            "image_ids": torch.full_like(input_ids, TEXT),
            "labels": torch.where(supervised, input_ids, IGNORED),
        }

    def _expand(self, encoded: dict[str, torch.Tensor], counts: list[int]) -> dict[str, torch.Tensor]:
        """Repeat each image token as often as its image has visual tokens, none of which is to be learned."""
        is_image = encoded["input_ids"] == self.image_token_id
        repeats = np.ones(len(is_image), dtype=np.int64)
        repeats[is_image.numpy()] = counts
        image_ids = torch.where(is_image, is_image.cumsum(0) - 1, TEXT)
        labels = encoded["labels"].masked_fill(is_image, IGNORED)
        columns = {**encoded, "labels": labels, "image_ids": image_ids}
        # Not torch's repeat_interleave: it starts OpenMP's threads in every thread that prepares prompts.
        return {key: torch.from_numpy(column.numpy().repeat(repeats)) for key, column in columns.items()}


def padding_to_square(image_processor: Any) -> Any:
    """Return an image processor that first pads an image to a square with the mean colour, as LLaVA-1.5 does.

    It differs in that only; one that pads already is returned as it is.

    Args:
        image_processor: with a fixed output size, as CLIP's, SigLIP's or DINOv2's.
    """
    if getattr(image_processor, "do_pad", False):
        return image_processor
    known = image_processor.to_dict()
    kept = ("size", "crop_size", "image_mean", "image_std", "rescale_factor", "resample")
    return LlavaImageProcessorPil(
        **{key: known[key] for key in kept if key in known},
        do_center_crop=known.get(
            "do_center_crop", False
        ),  # SigLIP's resizes to a square and cuts nothing off
        do_pad=True,
    )


def _limit(encoded: dict[str, torch.Tensor], max_length: int, may_cut: bool, name: str) -> None:
    """Cut text past `max_length` in place; refuse to cut a prompt or an image."""
    length = len(encoded["input_ids"])
    if length <= max_length:
        return
    visual = (encoded["image_ids"] != TEXT).nonzero()
    needed = int(visual[-1]) + 1 if len(visual) else 0
    if not may_cut or needed > max_length:
        why = "a prompt is not cut" if not may_cut else f"its images end at token {needed} and are not cut"
        raise ValueError(f"{name}: expected at most max_length={max_length} tokens, got {length}; {why}")
    for key in ("input_ids", "image_ids", "labels"):
        encoded[key] = encoded[key][:max_length]


def _count_images(images: Any) -> int:
    if images is None:
        return 0
    if isinstance(images, list | tuple):
        return sum(_count_images(image) for image in images)
    return len(images) if getattr(images, "ndim", 0) == 4 else 1  # a tensor or an array of several


def _loaded(images: Any) -> Any:
    """Read images, nested as they come; leave arrays and tensors."""
    if isinstance(images, list | tuple):
        return [_loaded(image) for image in images]
    return images if images is None or hasattr(images, "ndim") else load_image(fetch_image(images), "images")


def single_token_id(tokenizer: Any, token: str) -> int:
    """Return the id of a token that the tokenizer holds as one piece.

    Raises:
        ValueError: if the tokenizer splits it.
    """
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(f"expected {token!r} to be one token of the tokenizer, got {len(ids)}: {ids}")
    return ids[0]


__all__ = ["IGNORED", "LlavitProcessor", "NothingLeft"]
