"""A small decoder from scratch, on the text of LLaVA-format data: an LLM of which many seeds are affordable."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from llavit.compare.grid import Scratch
from llavit.folders import whole_folder
from llavit.precision import resolve_dtype

TEMPLATE = (
    "{%- for message in messages -%}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
_PAD, _END, _USER, _ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"
RECORD = "scratch.json"


def train_small_llm(
    texts: Iterable[str | Path],
    folder: str | Path,
    spec: Scratch,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Train a byte-level BPE and a Llama of `spec`'s size on conversations without their pictures.

    The same texts and settings give the same decoder on the same machine.

    Args:
        texts: LLaVA-format JSON files.
        folder: appears when it is whole; an ordinary folder for the Auto classes.
        spec: sizes and training.
        progress: called with (steps done, steps in all).

    Returns:
        the folder; `scratch.json` in it has the losses.

    Raises:
        ValueError: the folder is taken, or there is less text than one row.

    Example:
        ```python
        train_small_llm(["data/instruct.json"], "runs/small-llm", Scratch(steps=500))
        ```
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    conversations = list(_conversations(texts, spec))
    tokenizer = _train_tokenizer(conversations, spec.vocabulary)
    rendered = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in conversations]
    ids = [token for text in rendered for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    if len(ids) < spec.row + 1:
        raise ValueError(f"expected at least {spec.row + 1} tokens of text to train on, got {len(ids)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=spec.width,
                intermediate_size=spec.width * 8 // 3 // 32 * 32,
                num_hidden_layers=spec.layers,
                num_attention_heads=spec.width // 32,
                num_key_value_heads=spec.width // 32,
                max_position_embeddings=2048,
                tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.eos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        losses = _train(model, torch.tensor(ids), spec, progress)
    with whole_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        about = {"tokens": len(ids), "parameters": model.num_parameters(), "losses": losses}
        (unfinished / RECORD).write_text(json.dumps(about), encoding="utf-8")
    return Path(folder)


def _conversations(texts: Iterable[str | Path], spec: Scratch) -> Iterator[list[dict[str, str]]]:
    """Give the turns of each record without the marks of pictures; with scenes in words where `spec` asks for them."""
    from llavit.data import open_reader

    dice = random.Random(spec.seed)
    for text in texts:
        reader = open_reader(str(text))
        scenes = _facts_by_image(Path(text)) if spec.described else {}
        for index in range(len(reader)):
            turns, facts = [], []
            for message in reader.sample(index).messages:
                parts: Any = message["content"]
                if not isinstance(parts, str):
                    facts += [fact for p in parts if p["type"] == "image" for fact in scenes.get(_key(p), ())]
                    parts = "".join(p.get("text", "") for p in parts)
                turns.append({"role": message["role"], "content": parts.strip()})
            if facts and dice.random() < spec.described:
                dice.shuffle(facts)
                turns[0]["content"] = f"{'; '.join(facts)}\n{turns[0]['content']}"
            yield turns


def _facts_by_image(text: Path) -> dict[str, list[str]]:
    """Read the scenes of a split of the starter's corpus, in words, by the picture's path."""
    from llavit.starter.truth import facts, read_truth

    try:
        shown = read_truth(text.parent, [text.stem])
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"described: expected data of a starter corpus beside {text}: {error}") from error
    return {str(one.image.resolve()): facts(one.scene) for one in shown}


def _key(part: Any) -> str:
    return str(Path(part["image"]).resolve())


def _train_tokenizer(conversations: Sequence[Sequence[dict[str, str]]], size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_PAD, _END, _USER, _ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((turn["content"] for turns in conversations for turn in turns), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=_PAD, eos_token=_END, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _train(
    model: Any, ids: torch.Tensor, spec: Scratch, progress: Callable[[int, int], None] | None
) -> list[float]:
    """Train on random rows of the text; returns the loss of each step."""
    dtype, _ = resolve_dtype("auto")
    device = torch.device("cpu")
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator() or device
    model.to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=spec.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    warm = max(1, spec.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / warm) * (0.1 + 0.9 * (1 + math.cos(math.pi * step / spec.steps)) / 2)
        ),
    )
    generator = torch.Generator().manual_seed(spec.seed)
    losses = []
    for step in range(spec.steps):
        starts = torch.randint(0, len(ids) - spec.row, (spec.batch_size,), generator=generator)
        rows = torch.stack([ids[start : start + spec.row] for start in starts.tolist()]).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 4))
        if progress:
            progress(step + 1, spec.steps)
    model.cpu().eval()
    return losses
