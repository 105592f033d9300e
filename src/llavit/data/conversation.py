"""A LLaVA record becomes a sample: one list of messages, whose content says where each image stands.

    {"id": "17", "image": "cat.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                       {"from": "gpt", "value": "A cat."}]}

becomes

    Sample(id="17", messages=[
        {"role": "user", "content": [{"type": "image", "image": "/data/cat.jpg"},
                                     {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}])

Messages of this form are the only inner format: every reader ends here, the processor starts here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGE_MARK = "<image>"
"""What stands for an image in the text of a LLaVA record."""

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Speakers of LLaVA's `from` field, and of its many dialects, to chat template roles."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One conversation: its id, for error messages, and its messages.

    Example:
        >>> Sample("1", [{"role": "user", "content": "hello"}]).images
        []
    """

    id: str
    messages: list[Message]

    @property
    def images(self) -> list[Any]:
        """Images (paths or PIL images) in the order in which the text names them."""
        parts = (part for m in self.messages if isinstance(m["content"], list) for part in m["content"])
        return [part["image"] for part in parts if part["type"] == "image"]


def from_llava(record: Mapping[str, Any], *, name: str, image_folder: str | Path | None = None) -> Sample:
    """Turn one LLaVA record into a sample.

    `<image>` may stand anywhere in a text, any number of times; the k-th one is the k-th image. Text is kept as
    written, but for the line breaks after an image at the start of a message: LLaVA's way to set the image apart
    from the words, which is the chat template's business here.

    Args:
        record: `conversations` is a list of `{"from": ..., "value": ...}`; `image` is a path, a list of paths
            or absent.
        name: what error messages call this record.
        image_folder: what relative image paths are relative to.

    Raises:
        ValueError: a field is missing or of the wrong kind, a speaker is unknown, or the counts of `<image>`
            and of images differ. The message names the record, what was expected and what was found.

    Example:
        >>> record = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
        >>> from_llava(record, name="1").messages[1]["content"]
        [{'type': 'text', 'text': 'Hello.'}]
    """
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        found = f"fields {sorted(record)}" if turns is None else repr(turns)[:80]
        raise ValueError(f"record {name}: expected a non-empty list `conversations`, got {found}")

    images = _images(record, name, image_folder)
    texts = [_value(turn, index, name) for index, turn in enumerate(turns)]
    marks = sum(text.count(IMAGE_MARK) for text in texts)
    if marks != len(images):
        raise ValueError(
            f"record {name}: expected one {IMAGE_MARK} per image, "
            f"got {marks} x {IMAGE_MARK} and {len(images)} image(s)"
        )

    queue = iter(images)
    messages = [
        {"role": _role(turn, index, name), "content": _content(text, queue)}
        for index, (turn, text) in enumerate(zip(turns, texts, strict=True))
    ]
    return Sample(id=name, messages=messages)


def _images(record: Mapping[str, Any], name: str, image_folder: str | Path | None) -> list[str]:
    value = record.get("image")
    if value is None or value == "":
        return []
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) for path in paths):
        raise ValueError(
            f"record {name}: expected `image` to be a path or a list of paths, got {value!r:.80}"
        )
    return [path if image_folder is None else str(Path(image_folder) / path) for path in paths]


def _value(turn: Any, index: int, name: str) -> str:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("value"), str):
        raise ValueError(
            f"record {name}, turn {index}: expected {{'from': ..., 'value': text}}, got {turn!r:.80}"
        )
    return turn["value"]


def _role(turn: Mapping[str, Any], index: int, name: str) -> str:
    speaker = turn.get("from")
    if speaker not in ROLES:
        raise ValueError(
            f"record {name}, turn {index}: unknown speaker {speaker!r}, expected one of {', '.join(ROLES)}"
        )
    return ROLES[speaker]


def _content(text: str, images: Iterator[str]) -> list[dict[str, Any]]:
    """Split at each mark: text, image, text, ...; empty pieces are left out."""
    content: list[dict[str, Any]] = []
    for index, piece in enumerate(text.split(IMAGE_MARK)):
        if index > 0:
            content.append({"type": "image", "image": next(images)})
            if all(part["type"] == "image" for part in content):
                piece = piece.lstrip("\n")
        if piece:
            content.append({"type": "text", "text": piece})
    return content
