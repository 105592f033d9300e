"""Ask a model many questions, in batches."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from llavit.data import Collator
from llavit.evaluate.items import Item, Picture

_PROMPT = ("input_ids", "attention_mask", "pixel_values")


@torch.inference_mode()
def answer_items(
    model: Any,
    processor: Any,
    items: Sequence[Item],
    *,
    picture: Picture = "own",
    batch_size: int = 16,
    max_new_tokens: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Return the model's greedy answer to each item.

    Batches are padded on the left; a batched answer equals that of the item alone.

    Args:
        model: a LLaViT or LLaVA model.
        processor: its processor.
        items: the questions.
        picture: "blank" shows a grey picture in place of each, "none" leaves them out: the blind baselines.
        batch_size: items answered together.
        max_new_tokens: greatest length of an answer, in tokens.
        progress: called with (items done, items in all).

    Raises:
        ValueError: if a picture cannot be read; names the item.
    """
    collate = Collator(processor.tokenizer.pad_token_id, padding_side="left")
    was_training = model.training
    model.eval()
    answers: dict[int, str] = {}
    # Questions of like length together: less padding.
    order = sorted(range(len(items)), key=lambda index: len(items[index].question))
    for batch in _chunks(order, batch_size):
        encoded = [
            processor.encode(items[i].messages(picture), add_generation_prompt=True, name=items[i].id)
            for i in batch
        ]
        padded = collate(encoded)
        inputs = {key: padded[key].to(model.device) for key in _PROMPT if key in padded}
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers.update(zip(batch, (text.strip() for text in texts), strict=True))
        if progress:
            progress(len(answers), len(items))
    model.train(was_training)
    return [answers[index] for index in range(len(items))]


def _chunks(values: list[int], size: int) -> Iterable[list[int]]:
    return (values[start : start + size] for start in range(0, len(values), size))
