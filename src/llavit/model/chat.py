"""Chat templates: images inside text templates, and where the assistant speaks.

The inner form of a conversation is transformers': a list of messages, each with a role and a content that is a
string or a list of parts, `{"type": "text", "text": ...}` or `{"type": "image", "image": ...}`.

Most LLMs' templates expect content to be a string. `with_images` puts a few lines of Jinja before such a
template, which write each image part as the image token. The result is an ordinary chat template that is saved
with the processor and works wherever transformers' do (vLLM, lmms-eval).
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

Message = dict[str, Any]

DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Used where a tokenizer has no template of its own: LLaVA-1.5's `USER: ... ASSISTANT: ...`, a turn a line. The prompt
ends without a space: tokenizers such as Llama's join it with the first word of the answer."""

# A newline follows an image (or a run of images) at the start of a message unless the text brings white space
# of its own: LLaVA's "<image>\nWhat is this?".
_FLATTEN = """{%- set flat = namespace(messages=[], text='', leading=true) -%}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set flat.messages = flat.messages + [message] -%}
{%- else -%}
{%- set flat.text = '' -%}{%- set flat.leading = true -%}
{%- for part in message['content'] | default([], true) -%}
{%- if part['type'] == 'image' -%}
{%- set flat.text = flat.text + 'IMAGE_TOKEN' -%}
{%- elif part['type'] == 'text' and part['text'] -%}
{%- if flat.leading and not loop.first and part['text'][0] not in ' \\n\\t' -%}
{%- set flat.text = flat.text + '\\n' -%}
{%- endif -%}
{%- set flat.text = flat.text + part['text'] -%}{%- set flat.leading = false -%}
{%- endif -%}
{%- endfor -%}
{%- set flat.messages = flat.messages + [dict(message, content=flat.text)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""


def with_images(template: str | dict[str, str] | None, image_token: str) -> str:
    """Make a text-only chat template take images anywhere in a message.

    Args:
        template: the tokenizer's chat template, of several by name the default one; None gives
            `DEFAULT_CHAT_TEMPLATE`.
        image_token: what stands for an image in the rendered text, once per image.

    Example:
        >>> template = with_images("{% for m in messages %}[{{ m['content'] }}]{% endfor %}", "<image>")
        >>> parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
        >>> render_jinja_template([[{"role": "user", "content": parts}]], chat_template=template)[0]
        ['[<image>\\nWhat is it?]']
    """
    if isinstance(template, dict):
        template = template.get("default")
    return _FLATTEN.replace("IMAGE_TOKEN", image_token) + (template or DEFAULT_CHAT_TEMPLATE)


def handles_parts(template: Any, image_token: str, **special_tokens: Any) -> bool:
    """Whether a template writes an image part as the image token, as that of a LLaVA checkpoint does.

    It is tried on a message: templates ask for the type of a part in more ways than one.

    Args:
        template: a chat template, or None.
        image_token: what stands for an image in the rendered text.
        **special_tokens: of the tokenizer, by name.

    Example:
        >>> asks = "{% for m in messages %}{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}"
        >>> handles_parts(asks + "<image>{% endfor %}{% endfor %}", "<image>")
        True
        >>> handles_parts("{% for m in messages %}{{ m['content'] }}{% endfor %}", "<image>")
        False
    """
    if not isinstance(template, str):
        return False
    parts = [{"type": "image"}, {"type": "text", "text": "?"}]
    try:
        texts: Any = render_jinja_template(
            [[{"role": "user", "content": parts}]], chat_template=template, **special_tokens
        )[0]
    except (TemplateError, TypeError, AttributeError):  # it takes the content for a text
        return False
    return texts[0].count(image_token) == 1


def render(processor: Any, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """Render a conversation with the processor's chat template, one image token per image.

    Raises:
        ValueError: the template refuses the conversation, as some do a system prompt or two turns of one role.
    """
    return _render(processor, messages, add_generation_prompt)[0]


def render_with_spans(processor: Any, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation and find what the assistant says in it.

    Templates with `{% generation %}` mark the spans themselves. For all others a span begins where the text
    rendered up to the assistant's turn (with the generation prompt) ends, and ends with the turn, its
    end-of-turn token included and white space after that left out. What a template writes at the end of a
    conversation only (Phi's `<|endoftext|>`) belongs to its last turn.

    Args:
        processor: holds chat template and special tokens.
        messages: the conversation.

    Returns:
        the text, and the (start, end) characters of each assistant turn.

    Raises:
        ValueError: if the template rewrites earlier turns as the conversation grows, so that spans cannot be
            found from outside; or it refuses the conversation.
    """
    if re.search(r"\{%-?\s*generation\s*-?%\}", processor.chat_template or ""):
        return _render(processor, messages, False, spans=True)
    text = render(processor, messages)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(processor, messages[:i], add_generation_prompt=True)
        after = render(processor, messages[: i + 1])
        end = len(text[: _shared(text, after)].rstrip())
        whole = end >= len(after.rstrip()) or _said(message) in text[len(before) : end]
        if not (text.startswith(before) and len(before) <= end and whole):
            raise ValueError(
                f"the chat template renders message {i} differently once more messages follow, so the assistant's "
                "words cannot be told from the rest. Give the tokenizer a chat template that marks them with "
                "{% generation %} ... {% endgeneration %}."
            )
        spans.append((len(before), end))
    return text, spans


def _shared(one: str, other: str) -> int:
    """Count the characters with which two texts begin alike."""
    if one.startswith(other):
        return len(other)
    return next(place for place, (a, b) in enumerate(zip(one + "\0", other + "\1", strict=False)) if a != b)


def _said(message: Message) -> str:
    """Give the words of a message, without white space around them."""
    return "".join(part.get("text", "") for part in _in_parts(message)["content"]).strip()


@lru_cache(maxsize=8)
def space_after_image(tokenizer: Any, image_token: str, text: str = "What?") -> str:
    """Return what stands between an image and a text, so that the text has the tokens that it has alone.

    LLaVA tokenises the text between images by itself (`tokenizer_image_token`). Where a tokenizer writes a space before
    a text, as SentencePiece's do, an image token before the text takes that space away; a space written there brings
    it back.

    Args:
        tokenizer: knows the image token.
        image_token: what stands for an image.
        text: to try it on.

    Returns:
        " " or "".

    Example:
        ```python
        assert space_after_image(AutoTokenizer.from_pretrained("lmsys/vicuna-7b-v1.5"), "<image>") == " "
        ```
    """
    alone = tokenizer.encode(text, add_special_tokens=False)
    joined, spaced = (
        tokenizer.encode(f"{image_token}{space}{text}", add_special_tokens=False)[1:] for space in ("", " ")
    )
    return " " if joined != alone == spaced else ""


def render_plain(
    processor: Any, messages: Sequence[Message], space: str = ""
) -> tuple[str, list[tuple[int, int]]]:
    """Render a captioned image as LLaVA pretrains on it: the images, the caption, a line break.

    What the user says is left out, and so are the chat template's marks: a stage that teaches the projector
    what a caption's words look like has no use for them.

    Args:
        processor: holds the image token.
        messages: the conversation.
        space: what stands between an image and a caption (`space_after_image`).

    Returns:
        the text, and the (start, end) characters of each assistant turn with its line break.

    Example:
        >>> from types import SimpleNamespace
        >>> image = {"type": "image", "image": "cat.jpg"}
        >>> render_plain(SimpleNamespace(image_token="<image>"), [
        ...     {"role": "user", "content": [image, {"type": "text", "text": "Describe it."}]},
        ...     {"role": "assistant", "content": "A cat."}])
        ('<image>A cat.\\n', [(7, 14)])
    """
    text, spans = "", []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text += processor.image_token * sum(part["type"] == "image" for part in parts)
        if message["role"] == "assistant":
            said = "".join(part["text"] for part in parts if part["type"] == "text") + "\n"
            text += space if text.endswith(processor.image_token) else ""
            spans.append((len(text), len(text) + len(said)))
            text += said
    return text, spans


def _render(
    processor: Any, messages: Sequence[Message], add_generation_prompt: bool, spans: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    texts: Any
    generated: Any
    try:
        texts, generated = render_jinja_template(  # type: ignore[str-unpack]
            conversations=[[_in_parts(message) for message in messages]],
            chat_template=processor.chat_template,
            add_generation_prompt=add_generation_prompt,
            return_assistant_tokens_mask=spans,
            **processor.tokenizer.special_tokens_map,
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages) or "none"
        raise ValueError(f"the chat template refuses turns of {roles}: {error}") from error
    return texts[0], [tuple(span) for span in generated[0]] if spans else []


def _in_parts(message: Message) -> Message:
    """Give a message whose content is a list: a LLaVA checkpoint's template writes nothing of a string."""
    if not isinstance(message["content"], str):
        return message
    return {**message, "content": [{"type": "text", "text": message["content"]}]}
