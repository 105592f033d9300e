"""The conversation as HTML. Everything that a user or a model wrote is escaped here, and nowhere else put into HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from llavit.inspect.attention import seen_box
from llavit.serve.answers import Answer
from llavit.serve.web.heat import heat_images
from llavit.serve.web.talk import Exchange, Picture, Reply, Talk

HINT = "Click a word to see where the model looked."


def model_kind(config: Any) -> str:
    """Say what a model is, out of its configuration.

    Example:
        >>> from types import SimpleNamespace
        >>> model_kind(SimpleNamespace(
        ...     visual_qkv=True, bidirectional_visual_attention=True, vision_feature_layer=[4, 8, 11]))
        'LLaViT: own QKV for visual tokens, both directions within an image, tower layers 4, 8, 11'
    """
    parts = []
    if config.visual_qkv:
        parts.append("own QKV for visual tokens")
    if config.bidirectional_visual_attention:
        parts.append("both directions within an image")
    layers = config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else list(layers)
    parts.append(f"tower layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}")
    plain = not (config.visual_qkv or config.bidirectional_visual_attention or len(layers) > 1)
    return f"{'LLaVA' if plain else 'LLaViT'}: {', '.join(parts)}"


def small_print(answer: Answer) -> str:
    """Say how fast an answer came and what was cached.

    Tokens per second are those of decoding: the tokens after the first, over the seconds after the first.

    Example:
        >>> small_print(Answer("A cat.", (1, 2, 3), "stop", prompt_tokens=48, cached_tokens=40,
        ...     seconds_to_first_token=0.5, seconds=0.6))
        '20.0 tokens/s · first token after 0.50 s · 40 of 48 prompt tokens from the cache'
    """
    parts = []
    if answer.seconds_to_first_token is not None:
        after = answer.seconds - answer.seconds_to_first_token
        if len(answer.token_ids) > 1 and after > 0:
            parts.append(f"{(len(answer.token_ids) - 1) / after:.1f} tokens/s")
        parts.append(f"first token after {answer.seconds_to_first_token:.2f} s")
    if answer.prompt_tokens:
        parts.append(f"{answer.cached_tokens:,} of {answer.prompt_tokens:,} prompt tokens from the cache")
    ends = {
        "length": f"cut off at {len(answer.token_ids)} tokens",
        "cancelled": "stopped",
        "timeout": "timed out",
    }
    if answer.finish_reason in ends:
        parts.append(ends[answer.finish_reason])
    return " · ".join(parts)


def conversation_html(talk: Talk, names: Sequence[str], examples: Sequence[tuple[str, str]] = ()) -> str:
    """Return the whole conversation.

    Args:
        talk: the conversation.
        names: what to call each model; shown over each answer if there are two.
        examples: (address of the picture, question), shown as long as nothing was asked.
    """
    if not talk.exchanges:
        return _welcome(examples)
    hinted = False
    parts = []
    for number, exchange in enumerate(talk.exchanges):
        replies = []
        for model, reply in enumerate(exchange.replies):
            pictures = talk.pictures(model, number)
            hint = bool(pictures) and bool(reply.words) and not hinted
            hinted = hinted or hint
            replies.append(_reply(talk, number, model, reply, names, pictures, hint))
        columns = "two" if len(names) > 1 else "one"
        parts.append(f'{_question(exchange)}<div class="replies {columns}">{"".join(replies)}</div>')
    return f'<div class="talk" aria-live="polite">{"".join(parts)}</div>'


def _welcome(examples: Sequence[tuple[str, str]]) -> str:
    cards = "".join(
        f'<button class="card" data-act="example" data-number="{number}">'
        f'<img src="{escape(url)}" alt=""><span>{escape(question)}</span></button>'
        for number, (url, question) in enumerate(examples)
    )
    begin = "<p>Drop a picture into the box below, or paste one, and ask about it.</p>"
    more = (
        f'<p class="faint">Or begin with one of these:</p><div class="cards">{cards}</div>' if cards else ""
    )
    return f'<div class="welcome">{begin}{more}</div>'


def _question(exchange: Exchange) -> str:
    shown = "".join(f'<img src="{escape(picture.url)}" alt="">' for picture in exchange.pictures)
    pictures = f'<div class="pictures">{shown}</div>' if shown else ""
    text = f'<div class="bubble">{escape(exchange.question)}</div>' if exchange.question else ""
    return f'<div class="question">{pictures}{text}</div>'


def _reply(
    talk: Talk,
    number: int,
    model: int,
    reply: Reply,
    names: Sequence[str],
    pictures: list[Picture],
    hint: bool,
) -> str:
    name = f'<div class="name">{escape(names[model])}</div>' if len(names) > 1 else ""
    text = f'<div class="text">{_text(number, model, reply, bool(pictures))}</div>'
    if reply.error is not None:
        text = (text if reply.text else "") + f'<div class="error" role="alert">{escape(reply.error)}</div>'
    notes = f'<div class="small">{escape(small_print(reply.answer))}</div>' if reply.answer else ""
    notes += f'<div class="small hint">{HINT}</div>' if hint and reply.look is None else ""
    heat = _heat(talk, number, model, reply, pictures) if reply.look else ""
    state = "running" if reply.running else "done"
    return f'<div class="reply {state}" data-model="{model}">{name}{text}{heat}{notes}</div>'


def _text(number: int, model: int, reply: Reply, clickable: bool) -> str:
    """The answer; once it has ended, its words can be clicked if there is a picture to look at."""
    if reply.running and not reply.text:
        return '<span class="waiting" aria-label="waiting"><i></i><i></i><i></i></span>'
    if reply.answer is not None and not reply.text.strip():
        return '<span class="faint">(an empty answer)</span>'
    if not (clickable and reply.words):
        return escape(reply.text)
    parts, end = [], 0
    chosen = reply.look.word if reply.look else None
    for index, word in enumerate(reply.words):
        parts.append(escape(reply.text[end : word.start]))
        end = word.start + len(word.text)
        mark = " on" if index == chosen else ""
        parts.append(
            f'<span class="word{mark}" role="button" tabindex="0" data-act="word" data-exchange="{number}" '
            f'data-model="{model}" data-word="{index}">{escape(word.text)}</span>'
        )
    return "".join([*parts, escape(reply.text[end:])])


def _heat(talk: Talk, number: int, model: int, reply: Reply, pictures: list[Picture]) -> str:
    """The pictures of the conversation so far, under a map of what the model looked at when it wrote a word."""
    look = reply.look
    assert look is not None
    processor = talk.engines[model].processor
    figures = []
    for picture, heat in zip(pictures, heat_images(look.maps), strict=True):
        size = picture.image.size
        left, top, right, bottom = seen_box(processor.image_processor, *size, processor.patch_size)
        place = f"left:{left:.4%};top:{top:.4%};width:{right - left:.4%};height:{bottom - top:.4%}"
        figures.append(
            f'<div class="seen"><img src="{escape(picture.url)}" alt="">'
            f'<img class="map" src="{heat}" style="{place}" alt=""></div>'
        )
    share = sum(float(patches.sum()) for patches in look.maps)
    strongest = max(float(patches.max()) for patches in look.maps)
    where = "the picture" if len(pictures) == 1 else f"the {len(pictures)} pictures"
    caption = (
        f"Writing <b>{escape(reply.words[look.word].text)}</b>, {share:.1%} of the attention went to {where}, "
        f"{strongest:.1%} to the patch in the darkest red ({escape(look.layers)}, mean of all heads)."
    )
    close = (
        f'<button class="close" data-act="close" data-exchange="{number}" data-model="{model}" '
        'aria-label="close the heat map">×</button>'
    )
    return (
        f'<figure class="heat">{close}<div class="maps">{"".join(figures)}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
