"""What a caller may pass as a conversation, made the one form that the processor takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from llavit.model.images import ImageLike, load_image

Messages = str | Sequence[Mapping[str, Any]]
"""One question, or a list of messages, `{"role": ..., "content": ...}`, each content a string or a list of parts."""

_ROLES = ("system", "user", "assistant")


def conversation(
    messages: Messages,
    images: Iterable[ImageLike] = (),
    load: Callable[[ImageLike, str], Any] = load_image,
) -> list[dict[str, Any]]:
    """Check a conversation and put its images, decoded, where they belong.

    An image part without an image takes the next one of `images`; those that are left over are shown before the text
    of the last user's turn.

    Args:
        messages: see `Messages`.
        images: pictures, paths, bytes or data URLs.
        load: decodes an image; its second argument is what to call it in an error.

    Raises:
        ValueError: says what was expected, and got.

    Example:
        >>> conversation("Hello?")
        [{'role': 'user', 'content': [{'type': 'text', 'text': 'Hello?'}]}]
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if isinstance(images, str | bytes) or not isinstance(images, Iterable):
        raise ValueError(
            f"images: expected a list of images, got {type(images).__name__}; put one image in a list"
        )
    if not isinstance(messages, Sequence) or not messages:
        raise ValueError(
            f"messages: expected a question or a list of at least one message, got {messages!r:.80}"
        )
    given = [load(image, f"image {number}") for number, image in enumerate(images, 1)]
    waiting = iter(given)
    taken = 0
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        role, content = _role_and_content(message, number)
        parts: list[dict[str, Any]] = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            parsed = _part(part, number, load)
            if parsed["type"] == "image" and parsed["image"] is None:
                parsed["image"] = next(waiting, None)
                taken += 1
                if parsed["image"] is None:
                    wanted = sum(_waits(each) for each in messages if isinstance(each, Mapping))
                    raise ValueError(
                        f"number of images: the messages leave room for {wanted} images, {len(given)} were given"
                    )
            parts.append(parsed)
        turns.append({"role": role, "content": parts})
    if taken < len(given):
        asked = next((turn for turn in reversed(turns) if turn["role"] == "user"), None)
        if asked is None:
            raise ValueError(f"images: {len(given) - taken} are left, and no user's turn to show them in")
        asked["content"] = [{"type": "image", "image": image} for image in waiting] + asked["content"]
    return turns


def _role_and_content(message: Any, number: int) -> tuple[str, Any]:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise ValueError(f"message {number}: expected role and content, got {message!r:.80}")
    role, content = message["role"], message["content"]
    if role not in _ROLES:
        raise ValueError(f"message {number}: role={role!r:.40}: expected one of {', '.join(_ROLES)}")
    if not isinstance(content, str) and (not isinstance(content, Sequence) or isinstance(content, bytes)):
        raise ValueError(
            f"message {number}: expected content as a string or a list of parts, got {type(content).__name__}"
        )
    return role, content


def _part(part: Any, number: int, load: Callable[[ImageLike, str], Any]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image":
        image = _image(part)
        return {"type": "image", "image": None if image is None else load(image, f"message {number}")}
    raise ValueError(
        f'message {number}: expected parts {{"type": "text", "text": ...}} or {{"type": "image", "image": ...}}, '
        f"got {part!r:.80}"
    )


def _waits(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else []
    images = [part for part in parts if isinstance(part, Mapping) and part.get("type") == "image"]
    return len([part for part in images if _image(part) is None])


def _image(part: Mapping[str, Any]) -> Any:
    """Return what an image part names, or None; a key with None, as Arrow's structs have them, counts as absent."""
    return next((part[key] for key in ("image", "path", "url") if part.get(key) is not None), None)
