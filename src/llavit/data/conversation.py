"""A record becomes a sample: one list of messages, whose content says where each image stands.

    {"id": "17", "image": "cat.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                       {"from": "gpt", "value": "A cat."}]}

becomes

    Sample(id="17 (#0)", record_id="17", messages=[
        {"role": "user", "content": [{"type": "image", "image": "/data/cat.jpg"},
                                     {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}])

Messages of this form are the only inner format: every reader ends here, the processor starts here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from PIL import Image

from llavit.model.images import data_url_bytes

IMAGE_MARK = "<image>"
"""What stands for an image in a text."""

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Speakers, in the dialects of LLaVA, ShareGPT and OpenAI, to chat template roles."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One conversation.

    Attributes:
        id: what error messages call it; one of its own for each record of a reader.
        messages: roles and content lists.
        record_id: the id that the record itself brings, if it does; nobody promises that it is unique.

    Example:
        >>> Sample("1", [{"role": "user", "content": "hello"}]).images
        []
    """

    id: str
    messages: list[Message]
    record_id: str | None = None

    @property
    def images(self) -> list[Any]:
        """Images (paths, bytes or PIL images) in the order in which the text names them."""
        parts = (part for m in self.messages if isinstance(m["content"], list) for part in m["content"])
        return [part["image"] for part in parts if part["type"] == "image"]


def from_record(record: Mapping[str, Any], *, name: str, image_folder: str | Path | None = None) -> Sample:
    """Turn one record into a sample, whatever dialect it is written in.

    Its turns are a list `conversations` (LLaVA, ShareGPT) or `messages` (OpenAI, Hugging Face). A turn has a
    speaker (`from` or `role`) and words (`value` or `content`): a text, or a list of parts
    `{"type": "text", "text": ...}`, `{"type": "image", "image": ...}` and
    `{"type": "image_url", "image_url": {"url": ...}}`. The record's own images are in `image` or `images`, each
    a path, a `data:` URL, bytes, or Hugging Face's `{"bytes": ..., "path": ...}`.

    `<image>` may stand anywhere in a text, any number of times. It and an image part without an image take the
    record's next image; an image part with a number under `index` takes that one. Text is kept as written, but
    for the line breaks after an image at the start of a message: LLaVA's way to set the image apart from the
    words, which is the chat template's business here. The only image of a message of `conversations`, in a line of
    its own after the words, is put before them: half of LLaVA's own data is written so, and LLaVA trains on none of
    it that way round. White space around the words of such a message, or of one that begins with its only image, is
    left out, as in LLaVA. What the assistant says before the user's first turn is left out, as LLaVA does: no chat
    template has a place for it.

    Args:
        record: see above.
        name: what error messages call this record.
        image_folder: what relative image paths are relative to.

    Raises:
        ValueError: a field is missing or of the wrong kind, a speaker is unknown, or the images are not those
            that the text names. The message names the record, what was expected and what was found.

    Example:
        >>> record = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
        >>> from_record(record, name="1").messages[1]["content"]
        [{'type': 'text', 'text': 'Hello.'}]
        >>> part = {"type": "image_url", "image_url": {"url": "cat.jpg"}}
        >>> record = {"messages": [{"role": "user", "content": [part]}]}
        >>> from_record(record, name="2", image_folder="/data").images
        ['/data/cat.jpg']
    """
    llavas = record.get("conversations") is not None
    turns = record["conversations"] if llavas else record.get("messages")
    if not isinstance(turns, list) or not turns:
        found = f"fields {sorted(record)}" if turns is None else repr(turns)[:80]
        raise ValueError(
            f"record {name}: expected a non-empty list `conversations` or `messages`, got {found}"
        )
    for kind in ("video", "videos", "audio", "audios"):
        if record.get(kind):
            raise ValueError(
                f"record {name}: expected images and text only, got `{kind}`: {record[kind]!r:.80}"
            )
    if isinstance(record.get("system"), str) and record["system"]:
        turns = [{"role": "system", "content": record["system"]}, *turns]

    queue = _Images(_listed(record, name), name, image_folder)
    messages = []
    for index, turn in enumerate(turns):
        words = _words(turn, index, name)
        if llavas and isinstance(words, str):
            words = _image_first(words)
        messages.append({"role": _role(turn, index, name), "content": _content(words, queue, index, name)})
    queue.check()
    messages = _from_the_user_on(messages)
    given = record.get("id")
    return Sample(id=name, messages=messages, record_id=None if given is None else str(given))


def _from_the_user_on(messages: list[Message]) -> list[Message]:
    """Leave out what the assistant says, without an image, before the user's first turn."""
    first = next((index for index, message in enumerate(messages) if message["role"] == "user"), 0)
    return [
        message
        for index, message in enumerate(messages)
        if index >= first
        or message["role"] != "assistant"
        or any(part["type"] == "image" for part in message["content"])
    ]


def _listed(record: Mapping[str, Any], name: str) -> list[Any]:
    """Give the record's images."""
    single, several = record.get("image"), record.get("images")
    if single and several:
        raise ValueError(f"record {name}: expected `image` or `images`, got both")
    value = single or several
    if not value:
        return []
    return value if isinstance(value, list) else [value]


class _Images:
    """Hands out a record's images and keeps count, so that none is missing and none is left."""

    def __init__(self, listed: list[Any], name: str, image_folder: str | Path | None):
        self.name, self.image_folder = name, image_folder
        self.listed = [self.resolve(image) for image in listed]
        self.places = 0  # that take the next image
        self.used: set[int] = set()

    def next(self) -> Any:
        self.places += 1
        return self.take(self.places - 1) if self.places <= len(self.listed) else None

    def take(self, index: int) -> Any:
        if not 0 <= index < len(self.listed):
            raise ValueError(
                f"record {self.name}: expected an image index below {len(self.listed)}, got {index}"
            )
        self.used.add(index)
        return self.listed[index]

    def resolve(self, image: Any) -> Any:
        """Make one image what `load_image` takes."""
        if isinstance(image, Mapping):
            image = next((image[key] for key in ("bytes", "path", "url") if image.get(key)), dict(image))
        if isinstance(image, bytes | Image.Image):
            return image
        if not isinstance(image, str) or not image:
            raise ValueError(
                f"record {self.name}: expected each of `image` or `images` to be a path, a data URL or bytes, "
                f"got {image!r:.80}"
            )
        if image.startswith("data:"):
            return data_url_bytes(image, f"record {self.name}")
        if image.startswith(("http://", "https://")):
            raise ValueError(
                f"record {self.name}: expected the path of an image, got {image!r}; images are not downloaded, "
                "save it to a file and give its path"
            )
        if image.startswith("file://"):
            return url2pathname(urlsplit(image).path)
        return image if self.image_folder is None else str(Path(self.image_folder) / image)

    def check(self) -> None:
        if self.places > len(self.listed) or len(self.used) < len(self.listed):
            raise ValueError(
                f"record {self.name}: expected one {IMAGE_MARK} per image, "
                f"got {self.places} x {IMAGE_MARK} and {len(self.listed)} image(s)"
            )


def _image_first(words: str) -> str:
    """Put the only image of a text before the words, and nothing around them, where it stands at their start or end.

    LLaVA's `preprocess_multimodal` does so, wherever the image stands; here one within the words stays, and so does one
    at their end that is not in a line of its own.
    """
    before, mark, after = words.partition(IMAGE_MARK)
    if mark and IMAGE_MARK not in after:
        if not before.strip():
            return f"{IMAGE_MARK}\n{after.strip()}"
        if not after.strip() and before.endswith("\n"):
            return f"{IMAGE_MARK}\n{before.strip()}"
    return words


def _words(turn: Any, index: int, name: str) -> str | list[Any]:
    words = turn.get("value", turn.get("content")) if isinstance(turn, Mapping) else None
    if not isinstance(words, str | list):
        raise ValueError(
            f"record {name}, turn {index}: expected {{'from': ..., 'value': text}} or "
            f"{{'role': ..., 'content': text or parts}}, got {turn!r:.80}"
        )
    return words


def _role(turn: Mapping[str, Any], index: int, name: str) -> str:
    speaker = turn.get("from", turn.get("role"))
    if not isinstance(speaker, str) or speaker not in ROLES:
        raise ValueError(
            f"record {name}, turn {index}: unknown speaker {speaker!r}, expected one of {', '.join(ROLES)}"
        )
    return ROLES[speaker]


def _content(words: str | list[Any], images: _Images, index: int, name: str) -> list[dict[str, Any]]:
    """Split at each mark: text, image, text, ...; empty pieces are left out."""
    content: list[dict[str, Any]] = []
    for part in [{"type": "text", "text": words}] if isinstance(words, str) else words:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            _require_unicode(part["text"], index, name)
            for number, piece in enumerate(part["text"].split(IMAGE_MARK)):
                if number > 0:
                    content.append({"type": "image", "image": images.next()})
                if content and all(before["type"] == "image" for before in content):
                    piece = piece.lstrip("\n")
                if piece:
                    content.append({"type": "text", "text": piece})
        elif kind in ("image", "image_url"):
            content.append({"type": "image", "image": _part_image(part, images)})
        else:
            raise ValueError(
                f"record {name}, turn {index}: expected parts of type text, image or image_url, got {part!r:.80}"
            )
    return content


def _require_unicode(text: str, index: int, name: str) -> None:
    """Refuse half of a surrogate pair, of which JSON can hold one and a tokenizer takes none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.end + 20]
        raise ValueError(
            f"record {name}, turn {index}: expected Unicode text, got half of a surrogate pair at character "
            f"{error.start}: {around!r}; a text that was cut in the middle of an emoji has one, take it out"
        ) from error


def _part_image(part: Mapping[str, Any], images: _Images) -> Any:
    own = next((part[key] for key in ("image", "image_url", "path", "url") if part.get(key)), None)
    if own is not None:
        return images.resolve(own)
    index = part.get("index")
    return images.take(index) if isinstance(index, int) else images.next()
