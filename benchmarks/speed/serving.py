"""Many chats at once over HTTP: `llavit serve`, vLLM serving the same LLaViT, vLLM serving LLaVA.

The load comes from the official `openai` client. Each chat is about a picture of its own that no server has seen: a
question, its answer, a second question with all that was said, its answer. All answers have the same number of tokens.
"""

from __future__ import annotations

import asyncio
import base64
import io
import statistics
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from benchmarks.speed.asking import Question, Questions
from benchmarks.speed.material import save_models
from benchmarks.speed.servers import (
    Server,
    llavit_command,
    llavit_environment,
    vllm_command,
    vllm_environment,
    vllm_facts,
)

if TYPE_CHECKING:
    from benchmarks.speed.groups import Bench

CHATS = 16
LABELS = ("ours", "vllm", "vllm_llava")


def serving(bench: Bench) -> dict[str, Any]:
    """Let the servers answer rounds of chats in turn; the first round of each does not count.

    Returns:
        for each server and round what `chats` says; or why it was left out.
    """
    import torch

    from llavit.precision import resolve_dtype

    settings, parts = bench.settings, bench.parts
    python, facts = vllm_facts(settings.vllm)
    if python is None:
        return facts
    dtype = str(resolve_dtype("auto")[0]).removeprefix("torch.")
    options = tuple(settings.vllm_options)
    if torch.cuda.is_available():  # two of them share one GPU, and llavit serve with them
        options = ("--gpu-memory-utilization", "0.3", *options)
    bench.tell("building models")
    folders = save_models(parts, parts.image_sizes[0], settings.folder)
    plans = {
        "ours": (
            llavit_command(folders["llavit"], dtype, CHATS, settings.eager),
            llavit_environment(settings.threads),
        ),
        "vllm": (
            vllm_command(python, folders["llavit"], dtype, CHATS, settings.eager, options),
            vllm_environment(settings.threads),
        ),
        "vllm_llava": (
            vllm_command(python, folders["llava_ours"], dtype, CHATS, settings.eager, options),
            vllm_environment(settings.threads),
        ),
    }
    questions, tokens = Questions(parts.instruct), settings.tokens
    answers: dict[str, list[dict[str, Any]]] = {label: [] for label in plans}
    with ExitStack() as stack:
        running = {}
        for label, (command, environment) in plans.items():
            bench.tell(f"starting {label}")
            log = settings.folder / "logs" / f"serving-{label}.log"
            running[label] = stack.enter_context(Server(label, command, log, environment))
            running[label].wait_ready(900)
        for number in range(settings.pairs + 1):
            asked = questions.take(number, 500, CHATS)
            for label, server in running.items():
                bench.tell(f"serving: {label}, " + (f"{number} of {settings.pairs}" if number else "warm-up"))
                answer = chats(server.url, label, asked, tokens)
                if number:
                    answers[label].append(answer)
    return {
        "chats": CHATS,
        "tokens": tokens,
        "dtype": dtype,
        "vllm": facts,
        "eager": settings.eager,
        "options": options,
        "answers": answers,
    }


def chats(url: str, model: str, asked: list[Question], tokens: int) -> dict[str, Any]:
    """Have a chat about each question's picture, all of them at once.

    Args:
        url: of the server's API.
        model: its name there.
        asked: pictures, each with two questions.
        tokens: of each answer.

    Returns:
        tokens_per_second: tokens of all answers over the time from the first question to the last token.
        first_seconds, next_seconds: median time to first token of a chat's first and second question.
        seconds, tokens, prompt_tokens, all_first_seconds, all_next_seconds: what they are made of.

    Raises:
        ValueError: an answer of another length.
    """
    return asyncio.run(_chats(url, model, asked, tokens))


async def _chats(url: str, model: str, asked: list[Question], tokens: int) -> dict[str, Any]:
    import openai

    shown = [_data_url(question) for question in asked]  # before the clock runs
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=1800) as client:
        began = time.perf_counter()
        done = await asyncio.gather(
            *(_chat(client, model, *each, tokens) for each in zip(asked, shown, strict=True))
        )
        seconds = time.perf_counter() - began
    turns = [turn for chat in done for turn in chat]
    counted = sum(turn["tokens"] for turn in turns)
    if counted != 2 * len(asked) * tokens:
        raise ValueError(
            f"{model}: expected {tokens} tokens of each answer, got {[t['tokens'] for t in turns]}"
        )
    first, following = ([chat[turn]["first_seconds"] for chat in done] for turn in (0, 1))
    return {
        "tokens_per_second": counted / seconds,
        "first_seconds": statistics.median(first),
        "next_seconds": statistics.median(following),
        "seconds": seconds,
        "tokens": counted,
        "prompt_tokens": sum(turn["prompt_tokens"] for turn in turns),
        "all_first_seconds": first,
        "all_next_seconds": following,
    }


async def _chat(client: Any, model: str, question: Question, image: str, tokens: int) -> list[dict[str, Any]]:
    """Ask both questions of a chat, one after the other."""
    picture = {"type": "image_url", "image_url": {"url": image}}
    said: list[dict[str, Any]] = [
        {"role": "user", "content": [picture, {"type": "text", "text": question.first}]}
    ]
    first, text = await _turn(client, model, said, tokens)
    said += [{"role": "assistant", "content": text}, {"role": "user", "content": question.second}]
    second, _ = await _turn(client, model, said, tokens)
    return [first, second]


async def _turn(
    client: Any, model: str, messages: list[dict[str, Any]], tokens: int
) -> tuple[dict[str, Any], str]:
    """Ask, and note when the first text came and how many tokens there were."""
    began, came, text, usage = time.perf_counter(), 0.0, "", None
    stream = await client.chat.completions.create(
        model=model,
        messages=messages,
        temperature=0,
        max_tokens=tokens,
        extra_body={"min_tokens": tokens},
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        piece = "".join(choice.delta.content or "" for choice in chunk.choices)
        if piece and not came:
            came = time.perf_counter()
        text, usage = text + piece, chunk.usage or usage
    assert usage is not None, "the server sends no usage"
    if not came:  # all tokens together are no character yet
        came = time.perf_counter()
    counts = {"tokens": usage.completion_tokens, "prompt_tokens": usage.prompt_tokens}
    return {"first_seconds": came - began, **counts}, text


def _data_url(question: Question) -> str:
    file = io.BytesIO()
    question.image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
