"""lmms-eval's chat messages as llavit's, and a batch of them answered. Needs no lmms-eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteriaList

from llavit.data import Collator
from llavit.evaluate.lmms.decoding import Decoding, EndsAt, cut
from llavit.model.endings import end_tokens


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: up to the stop string, if there was one.
        prompt_tokens: visual tokens included.
        new_tokens: that were generated, the end-of-text token included.
    """

    text: str
    prompt_tokens: int
    new_tokens: int


def to_messages(messages: Sequence[Mapping[str, Any]], name: str = "request") -> list[dict[str, Any]]:
    """Turn lmms-eval's chat messages into llavit's conversation.

    Args:
        messages: roles and contents, parts being `{"type": "text", "text": ...}` or `{"type": "image", "url": ...}`
            with a PIL image or a path.
        name: what to call them in errors.

    Raises:
        ValueError: a video or a sound, which LLaViT does not take; an image without picture.

    Example:
        >>> to_messages([{"role": "user", "content": [{"type": "image", "url": "cat.png"}]}])
        [{'role': 'user', 'content': [{'type': 'image', 'image': 'cat.png'}]}]
    """
    made = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        made.append({"role": message["role"], "content": [_part(part, name) for part in parts]})
    return made


def _part(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] != "image":
        raise ValueError(f"{name}: LLaViT takes text and images, got a part of type {part['type']!r}")
    image = part.get("url", part.get("image"))
    if image is None:
        raise ValueError(f"{name}: an image part holds no image: {sorted(part)}")
    return {"type": "image", "image": image}


@torch.inference_mode()
def answer_batch(
    model: Any,
    processor: Any,
    conversations: Sequence[list[dict[str, Any]]],
    decoding: Decoding,
    names: Sequence[str] | None = None,
) -> list[Answer]:
    """Answer conversations in one batch, padded on the left; greedy answers equal those of each alone.

    Args:
        model: a LLaViT or LLaVA model, in evaluation mode.
        processor: its processor.
        conversations: any number of images in each, none included.
        decoding: of all of them.
        names: what to call each in errors.

    Raises:
        ValueError: a conversation cannot be encoded (an unreadable image, an image token in its text); names it.
    """
    names = names or [f"request {number}" for number in range(len(conversations))]
    encoded = [
        processor.encode(messages, add_generation_prompt=True, name=name)
        for messages, name in zip(conversations, names, strict=True)
    ]
    tokenizer = processor.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    batch = Collator(pad, padding_side="left")(encoded)
    inputs = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
    if "pixel_values" in batch:
        inputs["pixel_values"] = batch["pixel_values"].to(model.device, model.dtype)
    length = inputs["input_ids"].shape[1]
    stops = StoppingCriteriaList([EndsAt(tokenizer, length, decoding.until)] if decoding.until else [])
    ids = model.generate(**inputs, **decoding.arguments(), stopping_criteria=stops, pad_token_id=pad)[
        :, length:
    ]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [
        Answer(cut(text, decoding.until), len(row["input_ids"]), _length(new, pad, model.generation_config))
        for text, row, new in zip(texts, encoded, ids, strict=True)
    ]


def _length(ids: torch.Tensor, pad: int, config: Any) -> int:
    """Count generated tokens: up to the first end-of-text token, else without the padding at the end."""
    ends = end_tokens(config)
    for place, token in enumerate(ids.tolist()):
        if token in ends:
            return place + 1
    written = (ids != pad).nonzero()
    return int(written[-1]) + 1 if len(written) else 0
