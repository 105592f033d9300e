"""Heat maps: from a click on a word to a picture of the patches that the model looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llavit.inspect.attention import answer_attention
from llavit.inspect.heat import heat
from llavit.inspect.report import data_url
from llavit.serve.web.talk import Look, Talk

LAYERS = ("all layers", "first third", "middle third", "last third")
"""What a heat map may be averaged over."""


def chosen_layers(name: str, count: int) -> range:
    """Return the layers of one of `LAYERS` of an LLM that has `count`.

    Raises:
        ValueError: another name.

    Example:
        >>> [chosen_layers(name, 30) for name in LAYERS]
        [range(0, 30), range(0, 10), range(10, 20), range(20, 30)]
        >>> chosen_layers("last third", 2)
        range(1, 2)
    """
    if name not in LAYERS:
        raise ValueError(f"layers={name!r}: expected one of {', '.join(LAYERS)}")
    part = LAYERS.index(name)
    if part == 0:
        return range(count)
    start = (part - 1) * count // 3
    return range(start, max(start + 1, part * count // 3))


def look(talk: Talk, exchange: int, model: int, word: int, layers: str = LAYERS[0]) -> Look:
    """Compute where a model looked when it wrote a word of an answer; waits for the step that the engine is in.

    Args:
        talk: the conversation.
        exchange: number of the question.
        model: whose answer.
        word: number of the word in it.
        layers: one of `LAYERS`.

    Raises:
        ValueError: there is no such word, or no picture to look at.
    """
    reply = talk.exchanges[exchange].replies[model]
    if reply.answer is None or not 0 <= word < len(reply.words):
        raise ValueError(f"word {word}: the answer has {len(reply.words)} words")
    engine = talk.engines[model]
    with engine.exclusive() as borrowed:
        maps = answer_attention(
            borrowed,
            engine.processor,
            talk.messages(model, exchange),
            reply.answer.token_ids,
            token=reply.words[word].tokens,
            layers=chosen_layers(layers, borrowed.config.llm.num_hidden_layers),
        )
    return Look(word, maps, layers)


def heat_images(maps: Sequence[np.ndarray]) -> list[str]:
    """Paint maps, one pixel a patch, as `data:` URLs of transparent PNGs; the strongest patch of all has full colour.

    Example:
        >>> heat_images([np.eye(2)])[0][:22]
        'data:image/png;base64,'
    """
    top = max((float(patches.max()) for patches in maps), default=0.0)
    return [data_url(heat(patches, top)) for patches in maps]
