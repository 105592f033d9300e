"""A tiny random vision tower and LLM as folders, and a tiny data set: what training runs on in seconds."""

import json
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SIDE = 16
HEAD_DIM = 32
"""Of the tiny LLMs. Below 24, torch's compiled flex_attention for CPUs without AVX-512 reads past the keys and
overwrites its row maxima (lengths of 8 modulo 16 under 128): NaN, if memory held it. No real LLM has such heads.
"""
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and <s>, </s>, <pad>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = TEMPLATE
    return fast


def save_parts(folder: Path, width: int = 32) -> tuple[Path, Path]:
    """Write a CLIP tower (4 patches) and a Llama of a width with its tokenizer; give their folders."""
    torch.manual_seed(0)
    vision, llm = folder / "vision", folder / "llm"
    CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=8,
        )
    ).save_pretrained(vision)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size).save_pretrained(vision)
    words = tokenizer()
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=HEAD_DIM,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(llm)
    words.save_pretrained(llm)
    return vision, llm


def save_data(folder: Path, records: int = 12) -> Path:
    """Write LLaVA records: two of three with a picture of one colour, answers of uneven length."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(records):
        colour = (index * 37 % 256, index * 91 % 256, index * 53 % 256)
        answer = {"from": "gpt", "value": " ".join(["word"] * (1 + index % 4))}
        if index % 3 == 2:
            rows.append({"id": f"t{index}", "conversations": [{"from": "human", "value": "Say it."}, answer]})
            continue
        Image.new("RGB", (20, 18), colour).save(folder / f"{index}.png")
        question = {"from": "human", "value": "<image>\nWhat?"}
        rows.append({"id": f"i{index}", "image": f"{index}.png", "conversations": [question, answer]})
    path = folder / "data.json"
    path.write_text(json.dumps(rows))
    return path
