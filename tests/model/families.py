"""Tiny random models of every supported LLM family and vision tower, for the conformance suite.

To add an LLM family, add one line to `LLMS` (and one to `FAMILIES` in src/llavit/model/families.py).
"""

import threading
from collections.abc import Callable

import torch
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    SmolLM3Config,
)

from llavit import LlavitConfig, LlavitForConditionalGeneration
from tests.tiny import HEAD_DIM

IMAGE = 99
"""Image token of the tiny models, the last of a vocabulary of 100."""

PATCHES = 9
"""Visual tokens per image: 3 x 3 patches of 4 pixels."""

SIDE = 12

_SIZES = dict(
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=HEAD_DIM,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)

LLMS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SIZES, num_hidden_layers=3),
    "qwen2": lambda: Qwen2Config(**_SIZES, num_hidden_layers=3),  # biases on q, k, v
    "qwen2-sliding": lambda: Qwen2Config(
        **_SIZES, num_hidden_layers=3, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**_SIZES, num_hidden_layers=3),  # norms on q, k
    "mistral": lambda: MistralConfig(**_SIZES, num_hidden_layers=3, sliding_window=None),
    "mistral-sliding": lambda: MistralConfig(**_SIZES, num_hidden_layers=3, sliding_window=8),
    "phi3": lambda: Phi3Config(**_SIZES, num_hidden_layers=3, sliding_window=None),  # fused qkv
    "gemma2": lambda: (
        Gemma2Config(  # transformers runs it with eager or flex only; sliding and full layers, softcapped attention
            **_SIZES, num_hidden_layers=3, sliding_window=8, query_pre_attn_scalar=16
        )
    ),
    "gemma3": lambda: Gemma3TextConfig(  # norms on q, k; sliding and full layers
        **_SIZES,
        num_hidden_layers=3,
        sliding_window=8,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "smollm3": lambda: SmolLM3Config(**_SIZES, num_hidden_layers=4),  # no rotary in every fourth layer
    "olmo2": lambda: Olmo2Config(**_SIZES, num_hidden_layers=3),  # norms over all of q, k
}

_TOWER = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, patch_size=4, image_size=SIDE)

TOWERS: dict[str, Callable[[], PreTrainedConfig]] = {
    "clip": lambda: CLIPVisionConfig(**_TOWER, intermediate_size=48),
    "siglip": lambda: SiglipVisionConfig(**_TOWER, intermediate_size=48),  # no CLS token
    "dinov2": lambda: Dinov2Config(**_TOWER, mlp_ratio=2),
}


def config_of(llm: str, tower: str = "clip", layers: int | None = None, **switches) -> LlavitConfig:
    """Return the configuration of a tiny model; both switches on and two tower layers unless told otherwise."""
    options = {"vision_feature_layer": [1, -2], **switches}
    text = LLMS[llm]()
    if layers is not None:
        text.num_hidden_layers = layers
    return LlavitConfig(
        vision_config=TOWERS[tower](),
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=PATCHES,
        vision_feature_select_strategy="full" if tower == "siglip" else "default",
        **options,
    )


def tiny(
    llm: str, tower: str = "clip", backend: str | None = None, gain: float = 4.0, **switches
) -> LlavitForConditionalGeneration:
    """Return a tiny random model in fp32 (backend: transformers' choice), its visual QKV unlike the text QKV.

    Weights are `gain` times the usual initialisation, so that a wrong mask or route shows in the outputs.
    """
    torch.manual_seed(0)
    config = config_of(llm, tower, **switches)
    model = LlavitForConditionalGeneration._from_config(config, attn_implementation=backend)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(gain)
    return model.float().eval()


def image_prompt(text: list[int], images: int = 1, more: list[int] | None = None) -> list[int]:
    """Return token ids: `text`, then each image followed by one text token, then `more`."""
    ids = list(text)
    for number in range(images):
        ids += [IMAGE] * PATCHES + [10 + number]
    return ids + list(more or [])


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    """Return (count, 3, 12, 12) random images."""
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def inputs_of_one_image() -> dict[str, torch.Tensor]:
    """Return a batch of one prompt with one image."""
    return {"input_ids": torch.tensor([image_prompt([1, 5], 1, [7])]), "pixel_values": pixels(1)}


def other_thread_within(module, run) -> list:
    """Let another thread run something while this thread is behind a module, the next time; give its outcome."""
    outcome: list = []

    def work() -> None:
        try:
            outcome.append(run())
        except BaseException as error:
            outcome.append(error)

    def hook(*_) -> None:
        handle.remove()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    handle = module.register_forward_hook(hook)
    return outcome
