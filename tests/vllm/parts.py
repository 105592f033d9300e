"""Tiny LLaViTs as folders, prompts with images, and what transformers says to them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llavit import LlavitForConditionalGeneration, LlavitProcessor, build_llavit
from llavit.model.routing import routed_linears
from tests.tiny import tokenizer

SIDE = 32
PATCHES = 16
"""Visual tokens of an image: 4 x 4."""

LLAVA = {"visual_qkv": False, "bidirectional_visual_attention": False}

SIZES = dict(
    hidden_size=128,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,  # vLLM's CPU kernels take no less
    num_hidden_layers=3,
    max_position_embeddings=512,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


_TOWER = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, patch_size=8, image_size=SIDE)

TOWERS: dict[str, Callable[[], PreTrainedModel]] = {
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**_TOWER, intermediate_size=48)),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**_TOWER, intermediate_size=48)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**_TOWER, mlp_ratio=2)),
}


def save_tiny(
    folder: Path,
    config: PreTrainedConfig | None = None,
    tower: str = "clip",
    gain: float = 4.0,
    **switches: Any,
) -> Path:
    """Write a tiny random LLaViT with its processor, in float32; its visual QKV are unlike the text QKV.

    Weights are `gain` times the usual initialisation, so that a wrong mask or route shows in the outputs.
    """
    torch.manual_seed(0)
    words = tokenizer()
    config = config or LlamaConfig(vocab_size=len(words), **SIZES)
    size = {"height": SIDE, "width": SIDE}
    options = {"vision_feature_norm": True, "vision_feature_layer": [1, -2], **switches}
    model, processor = build_llavit(
        TOWERS[tower](),
        AutoModelForCausalLM.from_config(config),
        tokenizer=words,
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size),
        visual_qkv_start="random",
        **options,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(gain)
    if options["vision_feature_norm"]:
        model.model.calibrate_features(processor.pixel_values([picture(i) for i in range(9)]))
    model.float().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(seed: int) -> Image.Image:
    """Return a picture of 64 random squares."""
    squares = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(squares).resize((SIDE, SIDE), Image.Resampling.NEAREST)


class Case(NamedTuple):
    """A prompt and the seeds of its pictures."""

    text: str
    pictures: Sequence[int] = ()

    def request(self) -> dict[str, Any]:
        """Return the prompt as vLLM takes it."""
        images = [picture(seed) for seed in self.pictures]
        return {"prompt": self.text, **({"multi_modal_data": {"image": images}} if images else {})}


CASES = {
    "one image": Case("user: <image>\nWhat is it? assistant:", [0]),
    "two images in text": Case("A preamble that moves the image, <image> and then <image> compare.", [1, 2]),
    "adjacent images": Case("<image><image> are they alike?", [3, 0]),
    "image at the end": Case("What do you make of this: <image>", [4]),
    "text only": Case("A question without any image at all."),
}


class Answer(NamedTuple):
    """What a model makes of a prompt: its tokens, and log-probabilities of each but the first."""

    prompt: list[int]
    prompt_logprobs: list[float]
    generated: list[int]
    generated_logprobs: list[float]


class Reference:
    """transformers, whole forward passes without a cache.

    Args:
        folder: a model.
        **switches: override those of its configuration.
    """

    def __init__(self, folder: Path, **switches: Any):
        self.model = LlavitForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation={"text_config": "eager"}, **switches
        ).eval()
        self.processor = LlavitProcessor.from_pretrained(folder)

    def without_routing(self) -> "Reference":
        """Send visual tokens through the text projections, from now on."""
        for projection in routed_linears(self.model).values():
            projection.visual = projection.text
        return self

    @torch.no_grad()
    def answer(self, case: Case, generated: Sequence[int]) -> Answer:
        """Return log-probabilities of a prompt and of what vLLM generated, and what greedy decoding generates."""
        images = [picture(seed) for seed in case.pictures]
        inputs = self.processor(text=[case.text], images=images or None, return_tensors="pt")
        prompt = inputs["input_ids"][0]
        ids = torch.cat([prompt, torch.tensor(generated, dtype=torch.long)])
        logits = self.model(input_ids=ids[None], pixel_values=inputs.get("pixel_values")).logits[0].float()
        logprobs = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None]).squeeze(1).tolist()
        logits[:, self.model.config.image_token_id] = -torch.inf
        return Answer(
            prompt.tolist(),
            logprobs[: len(prompt) - 1],
            logits[len(prompt) - 1 : -1].argmax(-1).tolist(),
            logprobs[len(prompt) - 1 :],
        )


def answer_of(output: Any) -> Answer:
    """Return what vLLM answered."""
    completion = output.outputs[0]
    prompt, generated = list(output.prompt_token_ids), list(completion.token_ids)
    rows = output.prompt_logprobs or [None]
    return Answer(
        prompt,
        [row[token].logprob for row, token in zip(rows[1:], prompt[1:], strict=False)],
        generated,
        [row[token].logprob for row, token in zip(completion.logprobs, generated, strict=True)],
    )


def difference(mine: Answer, theirs: Answer) -> float:
    """Return the greatest difference of log-probabilities; those of a prompt only where vLLM gave them."""
    assert mine.prompt == theirs.prompt
    pairs = list(zip(mine.generated_logprobs, theirs.generated_logprobs, strict=True))
    if mine.prompt_logprobs:
        pairs += zip(mine.prompt_logprobs, theirs.prompt_logprobs, strict=True)
    return max(abs(a - b) for a, b in pairs)
