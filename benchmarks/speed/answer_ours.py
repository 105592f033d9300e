"""A side that answers with llavit's engine."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

import torch

from benchmarks.speed.asking import Question, Questions, facts_of, sizes
from benchmarks.speed.channel import Channel
from benchmarks.speed.pace import peak_bytes, synchronise
from llavit import Engine


def side(spec: dict[str, Any], channel: Channel) -> None:
    """Answer until told to stop.

    Args:
        spec: model (folder), data, quick, quantize ("int8" or None).
        channel: to the harness.
    """
    options = {"quantize": spec["quantize"]} if spec.get("quantize") else {}
    began = time.perf_counter()
    engine = Engine.load(
        spec["model"], compile="never" if spec["quick"] else "auto", progress=False, **options
    )
    questions, size = Questions(spec["data"]), sizes(spec["quick"])
    channel.ready(
        **facts_of(engine.model),
        quantize=spec.get("quantize"),
        loading_seconds=time.perf_counter() - began,
        bytes_per_token=decoded_bytes(engine.model),
        options=getattr(engine, "options", None),
    )
    measure = {"first": _first, "decode": _decode, "batch8": _batch, "concurrent8": _concurrent}
    with engine:
        for command in channel.commands():
            answer = measure[command["do"]](engine, questions, command["round"], size)
            channel.send(**answer, peak_bytes=peak_bytes())


def decoded_bytes(model: Any) -> int:
    """Count the bytes of weights that decoding a token reads: layers, norm and head of the LLM, as they are stored.

    Visual projections are not among them (no visual token is decoded), nor the one row of the embedding.
    """
    llm, head = model.get_decoder(), model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    weights: dict[int, torch.Tensor] = {}
    for part in (llm, head):
        for name, tensor in [*part.named_parameters(), *part.named_buffers()]:
            if ".visual." not in f".{name}." and (tensor is not embedding.weight or part is head):
                weights[id(tensor)] = tensor
    return sum(_stored(tensor) for tensor in weights.values())


def _stored(tensor: Any) -> int:
    """Count the bytes of a tensor; of a quantised one those of the tensors in it."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_stored(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def _first(engine: Engine, questions: Questions, round: int, size: dict[str, int]) -> dict[str, Any]:
    """Time from question and picture to the first token; then a second question on the same picture."""
    firsts: list[float] = []
    seconds: list[float] = []
    prompts: list[int] = []
    for question in questions.take(round, 0, size["questions"]):
        for text, times in ((question.first, firsts), (question.second, seconds)):
            synchronise()
            began = time.perf_counter()
            stream = engine.stream(text, [question.image], max_new_tokens=2, min_new_tokens=2)
            next(stream)
            times.append(time.perf_counter() - began)
            prompts.append(stream.result().prompt_tokens)
    return {
        "first_seconds": statistics.median(firsts),
        "next_seconds": statistics.median(seconds),
        "all_first_seconds": firsts,
        "all_next_seconds": seconds,
        "prompt_tokens": prompts,
    }


def _decode(engine: Engine, questions: Questions, round: int, size: dict[str, int]) -> dict[str, Any]:
    """Time the tokens of an answer after its first piece."""
    (question,) = questions.take(round, 100, 1)
    tokens = size["decode_tokens"]
    stream = engine.stream(question.first, [question.image], max_new_tokens=tokens, min_new_tokens=tokens)
    first = next(stream)
    began = time.perf_counter()
    counted = sum(len(piece.token_ids) for piece in stream)
    seconds = time.perf_counter() - began
    return {"tokens_per_second": counted / seconds, "tokens": counted, "before": len(first.token_ids)}


def _batch(engine: Engine, questions: Questions, round: int, size: dict[str, int]) -> dict[str, Any]:
    """Time the answers to several questions asked at once, each about its own picture, from the pictures on."""
    asked = questions.take(round, 200, size["batch"])
    tokens = size["batch_tokens"]
    began = time.perf_counter()
    answers = engine.answer_many(
        [(question.first, [question.image]) for question in asked],
        max_new_tokens=tokens,
        min_new_tokens=tokens,
    )
    seconds = time.perf_counter() - began
    counted = sum(len(answer.token_ids) for answer in answers)
    return {"tokens_per_second": counted / seconds, "tokens": counted, "seconds": seconds}


def _concurrent(engine: Engine, questions: Questions, round: int, size: dict[str, int]) -> dict[str, Any]:
    """Time several clients at once, and as many questions one after the other."""
    tokens = size["batch_tokens"]

    def ask(question: Question) -> None:
        engine.answer(question.first, [question.image], max_new_tokens=tokens, min_new_tokens=tokens)

    rates = {}
    for start, name in ((300, "alone"), (400, "together")):
        asked = questions.take(round, start, size["batch"])
        began = time.perf_counter()
        if name == "alone":
            for question in asked:
                ask(question)
        else:
            clients = [threading.Thread(target=ask, args=(question,)) for question in asked]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
        rates[name] = len(asked) * tokens / (time.perf_counter() - began)
    return {"alone_tokens_per_second": rates["alone"], "tokens_per_second": rates["together"]}
