"""What an analysis looks at: conversations with images, and names for models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llavit.data.conversation import from_record

QUESTION = "What is in this image?"
"""What is asked where no question is given."""


def one_image(image: Any, question: str = QUESTION) -> list[dict[str, Any]]:
    """Return a conversation of one question about one image.

    Args:
        image: a path or a PIL image.
        question: the user's words after the image.

    Example:
        >>> one_image("cat.jpg", "What is this?")[0]["content"][1]
        {'type': 'text', 'text': 'What is this?'}
    """
    return [
        {
            "role": "user",
            "content": [{"type": "image", "image": image}, {"type": "text", "text": question}],
        }
    ]


def read_messages(file: str | Path) -> list[dict[str, Any]]:
    """Read a conversation from a JSON file: a list of messages, or one record of training data.

    Image paths are relative to the file's folder. All dialects of `llavit.data.conversation.from_record` are read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or no conversation; the message says what was expected.

    Example:
        >>> from pathlib import Path; from tempfile import mkdtemp
        >>> file = Path(mkdtemp()) / "messages.json"
        >>> _ = file.write_text('[{"role": "user", "content": "Hello"}]')
        >>> read_messages(file)
        [{'role': 'user', 'content': [{'type': 'text', 'text': 'Hello'}]}]
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"no such file of messages: {file}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, a list of messages: {error}") from error
    record = {"messages": found} if isinstance(found, list) else found
    if not isinstance(record, dict):
        raise ValueError(f"{file}: expected a list of messages or one record, got {type(found).__name__}")
    return from_record(record, name=file.name, image_folder=file.parent).messages


def before_answer(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """Split off the last answer of a conversation, such as a record of training data ends with.

    Returns:
        what comes before the answer, and its text; the conversation and None if it ends with a question.

    Example:
        >>> question = {"role": "user", "content": "What is this?"}
        >>> before_answer([question, {"role": "assistant", "content": "A cat."}])
        ([{'role': 'user', 'content': 'What is this?'}], 'A cat.')
    """
    if not messages or messages[-1]["role"] != "assistant":
        return messages, None
    return messages[:-1], text_of(messages[-1])


def text_of(message: dict[str, Any]) -> str:
    """Return the words of a message, without its images.

    Example:
        >>> text_of(one_image("cat.jpg", "What is this?")[0])
        'What is this?'
    """
    content = message["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part.get("type") == "text")


def model_names(models: Sequence[str | Path]) -> list[str]:
    """Name models by as many of their last folders as it takes to tell them apart.

    Folders that are written without a name, such as ".", have that of the folder that they are.

    Example:
        >>> model_names(["runs/llava/instruct", "runs/llavit/instruct"])
        ['llava/instruct', 'llavit/instruct']
        >>> model_names(["runs/demo/instruct"])
        ['instruct']
    """
    paths = [Path(model) for model in models]
    parts = [(path.resolve() if path.name in ("", "..") else path).parts for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(part[-1:])} ({number})" for number, part in enumerate(parts, 1)]
