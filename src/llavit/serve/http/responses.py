"""The bodies of answers, as OpenAI's: for one that comes whole, and for one that comes in chunks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from llavit.serve.answers import Answer, TokenLogprob

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON has not; OpenAI's does so too."""


class TopLogprob(BaseModel):
    """A token that could have come, and the logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class ContentLogprob(TopLogprob):
    """A token that came, and those that were likeliest there."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Log-probabilities of an answer's tokens."""

    content: list[ContentLogprob] | None
    refusal: None = None


class AnswerMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The answer; there is always one."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class PromptDetails(BaseModel):
    """Of the prompt's tokens: those that the image cache had, and those of images."""

    cached_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Completion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice] = Field(min_length=1, max_length=1)
    usage: Usage
    timed_out: bool = Field(
        description="an extension: the server's timeout cut the answer; finish_reason is length"
    )


class Model(BaseModel):
    """A model that the server has."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    """All models that the server has: one."""

    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    """How the server is."""

    status: Literal["ok"]


def usage(answer: Answer) -> dict[str, Any]:
    """Return the counts of an answer.

    Example:
        >>> usage(Answer("A cat.", (5, 6), "stop", prompt_tokens=40, cached_tokens=36))["total_tokens"]
        42
    """
    generated = len(answer.token_ids)
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": answer.prompt_tokens + generated,
        "prompt_tokens_details": {
            "cached_tokens": answer.cached_tokens,
            "image_tokens": answer.visual_tokens,
        },
    }


def finish_reason(answer: Answer) -> str:
    """Return OpenAI's word for why an answer ended."""
    return "stop" if answer.finish_reason == "stop" else "length"


def logprobs_body(tokens: tuple[TokenLogprob, ...]) -> dict[str, Any]:
    """Return log-probabilities in OpenAI's shape.

    Example:
        >>> body = logprobs_body((TokenLogprob("a", 5, -0.5, (("a", 5, -0.5),)),))
        >>> body["content"][0]["bytes"], body["content"][0]["top_logprobs"][0]["logprob"]
        ([97], -0.5)
    """
    content = [
        {
            **_logprob(each.token, each.logprob),
            "top_logprobs": [_logprob(token, value) for token, _, value in each.top],
        }
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    partial = "\ufffd" in token  # part of a character: which bytes it is, its text does not say
    bounded = max(LEAST_LOGPROB, logprob)
    return {
        "token": token,
        "logprob": bounded,
        "bytes": None if partial else list(token.encode("utf-8", "replace")),
    }


def completion(head: dict[str, Any], answer: Answer, wants_logprobs: bool) -> dict[str, Any]:
    """Return the body of a whole answer; `head` has its id, time and model."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": logprobs_body(answer.logprobs) if wants_logprobs else None,
        "finish_reason": finish_reason(answer),
    }
    return {
        **head,
        "object": "chat.completion",
        "choices": [choice],
        "usage": usage(answer),
        "timed_out": answer.finish_reason == "timeout",
    }


def chunk(
    head: dict[str, Any],
    delta: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    finish: str | None = None,
) -> dict[str, Any]:
    """Return one chunk of a streamed answer.

    Args:
        head: what all chunks of the answer have.
        delta: what is new.
        logprobs: of the tokens that are new.
        finish: why the answer ends; in its last chunk.
    """
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def usage_chunk(head: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """Return the chunk behind the last one, with the counts (`stream_options.include_usage`)."""
    return {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage(answer)}
