"""What an LLM read when LLaVA's own repository trained it: the conversation, and the tokens around an image.

LLaVA tokenises what is between images piece by piece (`tokenizer_image_token`), and each piece begins with the space
that SentencePiece puts before a text: image, space, line break, "What". Tokenizers of today put it before the first
piece only, unless they are told to be `legacy`. A space written after an image gives the same tokens.
"""

from __future__ import annotations

from typing import Any

from llavit.model.chat import handles_parts, space_after_image
from llavit.model.processor import LlavitProcessor

_SPACED = """{%- set spaced = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- set content = message['content'] | replace('IMAGE', 'IMAGE ') -%}
{%- set content = content | replace('IMAGE IMAGE', 'IMAGEIMAGE') | replace('IMAGE IMAGE', 'IMAGEIMAGE') -%}
{%- set spaced.messages = spaced.messages + [dict(message, content=content)] -%}
{%- endfor -%}
{%- set messages = spaced.messages -%}
"""
"""For a template that takes texts. Of three images in a row, replacing once leaves a space between two."""


def with_llavas_tokens(processor: LlavitProcessor, template: Any) -> LlavitProcessor:
    """Return a processor that gives a conversation the tokens that LLaVA's own repository gives it.

    Args:
        processor: what a converted checkpoint would have.
        template: its chat template, as it was before it took images.

    Returns:
        the same processor where its tokens are LLaVA's already, or where a space would not make them so.
    """
    tokenizer, image_token = processor.tokenizer, processor.image_token
    takes_text = isinstance(template, str) and not handles_parts(
        template, image_token, **tokenizer.special_tokens_map
    )
    if takes_text and space_after_image(tokenizer, image_token, "\\nWhat?"):
        return processor.with_chat_template(_SPACED.replace("IMAGE", processor.image_token) + template)
    return processor


def conversation_v1() -> str:
    """Give LLaVA-1.5's conversation "v1" as a chat template for text, out of the recipe that trains LLaVA-1.5.

    Example:
        >>> "USER: " in conversation_v1()
        True
    """
    from llavit.train.recipe import load_recipe

    template = load_recipe("llava15-llava-vicuna-7b").model.chat_template
    assert template is not None
    return template
