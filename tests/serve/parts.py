"""Tiny models of every family with a real tokenizer and image processor, for the engine to run."""

from contextlib import contextmanager

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from llavit import Engine, LlavitProcessor
from tests.model.families import IMAGE, SIDE, tiny

WORDS = [f"w{number}" for number in range(3, IMAGE)]
TEMPLATE = (
    "{% for m in messages %}<s> {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> {% endif %}"
)


def processor() -> LlavitProcessor:
    """A vocabulary of 100 words, the last one the image token."""
    vocab = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", *WORDS, "<image>"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    tokenizer.chat_template = TEMPLATE
    size = {"height": SIDE, "width": SIDE}
    return LlavitProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def picture(seed: int) -> Image.Image:
    """A picture of noise."""
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(
        torch.randint(0, 256, (SIDE, SIDE, 3), generator=generator, dtype=torch.uint8).numpy()
    )


def generated(model, words: LlavitProcessor, messages, new: int, **options) -> list[int]:
    """What transformers' `generate` answers, without the end-of-turn token."""
    encoded = words.encode(messages, add_generation_prompt=True)
    inputs = {"input_ids": encoded["input_ids"][None]}
    if "pixel_values" in encoded:
        inputs["pixel_values"] = encoded["pixel_values"]
    out = model.generate(
        **inputs,
        attention_mask=torch.ones_like(inputs["input_ids"]),
        max_new_tokens=new,
        **{"do_sample": False, "suppress_tokens": [IMAGE], **options},
    )
    answer = out[0, inputs["input_ids"].shape[1] :].tolist()
    return answer[:-1] if answer and answer[-1] == 2 else answer


@contextmanager
def engine_of(llm: str = "llama", tower: str = "clip", backend: str | None = None, options=None, **switches):
    """An engine over a tiny model; `options` are the engine's."""
    model = tiny(llm, tower, backend, **switches)
    with Engine(model, processor(), **{"max_batch": 4, **(options or {})}) as engine:
        yield engine


def user(*parts) -> dict:
    """A user's turn of texts and images, in this order."""
    return {
        "role": "user",
        "content": [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in parts
        ],
    }
