"""Ask a model many questions, in batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from llavit.evaluate.asking import Asker
from llavit.evaluate.items import Item, Picture
from llavit.model.encoding import evaluating


@torch.inference_mode()
def answer_items(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    *,
    picture: Picture = "own",
    batch_size: int = 32,
    max_new_tokens: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Return the model's greedy answer to each item, its first line.

    A batched answer equals that of the item alone.

    Args:
        model: a LLaViT or LLaVA model; what of it is in training stays so.
        processor: its processor.
        items: the questions.
        picture: "blank" shows a grey picture in place of each, "none" leaves them out: the blind baselines.
        batch_size: items answered together.
        max_new_tokens: greatest length of an answer, in tokens.
        progress: called with (items done, items in all).

    Raises:
        ValueError: an item has no answer, for one because its picture cannot be read; names the item.
    """
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress:
            progress(done, len(items))

    with evaluating(model):
        answers = Asker(model, processor, batch_size).generate(
            items, [picture] * len(items), max_new_tokens, progress=count
        )
    for item, answer in zip(items, answers, strict=True):
        if answer.text is None:
            raise ValueError(f"item {item.id} has no answer: {answer.error}")
    return [answer.text or "" for answer in answers]
