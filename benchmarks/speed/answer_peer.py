"""A side that answers with transformers' LLaVA and its `generate`, as a good user would.

LlavaForConditionalGeneration in bfloat16 with sdpa, LlavaProcessor with the PIL image processor, greedy decoding.
Either with the cache that `generate` takes by itself, or with a static one and its compiled decoding step.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from transformers import CompileConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.generation.streamers import BaseStreamer

from benchmarks.speed.asking import Question, Questions, facts_of, sizes
from benchmarks.speed.channel import Channel
from benchmarks.speed.limits import device
from benchmarks.speed.pace import peak_bytes, synchronise
from llavit.precision import resolve_dtype


class Times(BaseStreamer):
    """Notes when each token comes; the prompt comes first and doesn't count."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.prompt = True

    def put(self, value: Any) -> None:
        """Note the time."""
        if not self.prompt:
            synchronise()
            self.times.append(time.perf_counter())
        self.prompt = False

    def end(self) -> None:
        """Nothing to do."""


class Peer:
    """The model and what it takes to ask it."""

    def __init__(self, spec: dict[str, Any]):
        dtype = resolve_dtype("auto")[0]
        model: Any = LlavaForConditionalGeneration.from_pretrained(
            spec["model"], dtype=dtype, attn_implementation="sdpa"
        )
        self.model = model.to(device()).eval()
        self.processor: Any = LlavaProcessor.from_pretrained(spec["model"], backend="pil")
        self.processor.tokenizer.padding_side = "left"
        self.options: dict[str, Any] = {"do_sample": False}
        if spec.get("static"):
            compiling: Any = CompileConfig(fullgraph=False)
            compiling._compile_all_devices = True  # else generate compiles on accelerators only
            self.options |= {"cache_implementation": "static", "compile_config": compiling}

    def inputs(self, asked: list[tuple[str, Any]]) -> Any:
        """Render, tokenise, and prepare pictures."""
        texts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}],
                add_generation_prompt=True,
            )
            for text, _ in asked
        ]
        images = [image for _, image in asked]
        inputs = self.processor(images=images, text=texts, padding=True, return_tensors="pt")
        return inputs.to(device(), self.model.dtype)

    def generate(self, asked: list[tuple[str, Any]], tokens: int, streamer: Any = None) -> tuple[Any, int]:
        """Answer; give the new tokens and the length of the prompt."""
        with torch.inference_mode():
            inputs = self.inputs(asked)
            out = self.model.generate(
                **inputs, max_new_tokens=tokens, min_new_tokens=tokens, streamer=streamer, **self.options
            )
        synchronise()
        length = inputs["input_ids"].shape[1]
        return out[:, length:], length


def side(spec: dict[str, Any], channel: Channel) -> None:
    """Answer until told to stop.

    Args:
        spec: model (folder of a LLaVA), data, quick, static (cache and compiled decoding).
        channel: to the harness.
    """
    peer = Peer(spec)
    questions, size = Questions(spec["data"]), sizes(spec["quick"])
    channel.ready(**facts_of(peer.model), static=spec.get("static", False))
    measure = {"first": _first, "decode": _decode, "batch8": _batch}
    for command in channel.commands():
        answer = measure[command["do"]](peer, questions, command["round"], size)
        channel.send(**answer, peak_bytes=peak_bytes())


def _first(peer: Peer, questions: Questions, round: int, size: dict[str, int]) -> dict[str, Any]:
    firsts: list[float] = []
    seconds: list[float] = []
    prompts: list[int] = []
    for question in questions.take(round, 0, size["questions"]):
        for text, times in ((question.first, firsts), (question.second, seconds)):
            streamer = Times()
            synchronise()
            began = time.perf_counter()
            _, length = peer.generate([(text, question.image)], 2, streamer)
            times.append(streamer.times[0] - began)
            prompts.append(length)
    return {
        "first_seconds": statistics.median(firsts),
        "next_seconds": statistics.median(seconds),
        "all_first_seconds": firsts,
        "all_next_seconds": seconds,
        "prompt_tokens": prompts,
    }


def _decode(peer: Peer, questions: Questions, round: int, size: dict[str, int]) -> dict[str, Any]:
    (question,) = questions.take(round, 100, 1)
    streamer = Times()
    peer.generate([(question.first, question.image)], size["decode_tokens"], streamer)
    counted = len(streamer.times) - 1
    return {
        "tokens_per_second": counted / (streamer.times[-1] - streamer.times[0]),
        "tokens": counted,
        "before": 1,
    }


def _batch(peer: Peer, questions: Questions, round: int, size: dict[str, int]) -> dict[str, Any]:
    asked: list[Question] = questions.take(round, 200, size["batch"])
    began = time.perf_counter()
    new, _ = peer.generate([(question.first, question.image) for question in asked], size["batch_tokens"])
    texts = peer.processor.batch_decode(new, skip_special_tokens=True)
    seconds = time.perf_counter() - began
    assert len(texts) == len(asked)
    return {"tokens_per_second": new.numel() / seconds, "tokens": new.numel(), "seconds": seconds}
