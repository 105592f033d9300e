"""What an engine gives: answers, pieces of them, counters, and errors of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "timeout"]
"""Why an answer ended: end-of-turn token or stop string, `max_new_tokens`, `Stream.cancel`, `timeout`."""


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was: natural logarithm, in the model's own distribution.

    That is the softmax of the logits as the model gives them, in float32, before temperature, penalties and all else
    that `Sampling` does to them.

    Attributes:
        token: as text, with the space that it begins with, also where the answer's text begins without it; a token
            that is part of a character gives the replacement character.
        token_id: as number.
        logprob: of the token that was taken.
        top: (token, id, log-probability) of the likeliest tokens, the likeliest first.
    """

    token: str
    token_id: int
    logprob: float
    top: tuple[tuple[str, int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """Part of an answer, as it comes.

    Attributes:
        text: whole characters; the texts of all pieces together are the answer's.
        token_ids: tokens that came since the piece before.
        logprobs: of those tokens, if asked for.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A whole answer; `str()` of it is its text.

    Attributes:
        text: up to the end-of-turn token or a stop string, both left out.
        token_ids: generated tokens, without the end-of-turn token; those of a stop string count.
        finish_reason: see `FinishReason`.
        logprobs: of each token of `token_ids`, if asked for.
        prompt_tokens: of the conversation, visual tokens among them.
        cached_tokens: of those, the ones whose keys and values were there already.
        visual_tokens: of the prompt's tokens, those of images.
        seconds_to_first_token: from `submit` to the first token, waiting included; None without a token.
        seconds: from `submit` to the end.

    Example:
        >>> str(Answer("A cat.", (5, 6), "stop"))
        'A cat.'
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    visual_tokens: int = 0
    seconds_to_first_token: float | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class EngineStats:
    """Counters since the engine began, and what it does now.

    Attributes:
        running: requests that are being answered now.
        waiting: requests in the queue now.
        requests: taken so far.
        cancelled: of those, cancelled.
        failed: of those, ended by an exception.
        timed_out: of those, ended by their timeout.
        prompt_tokens: of the requests whose prompts have been read.
        cached_tokens: of those tokens, not computed again.
        generated_tokens: of all answers.
        image_cache_hits: images of prompts that were not computed again.
        image_cache_misses: images of prompts that were computed.
        image_cache_entries: stretches of tokens in the image cache.
        image_cache_bytes: their size.
        image_cache_limit: greatest size.
        image_cache_evictions: stretches that were dropped for lack of room.
        prefills: passes over prompts, of one request or of several together.
        steps: decode steps; each gives one token to each running request.
    """

    running: int = 0
    waiting: int = 0
    requests: int = 0
    cancelled: int = 0
    failed: int = 0
    timed_out: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    image_cache_hits: int = 0
    image_cache_misses: int = 0
    image_cache_entries: int = 0
    image_cache_bytes: int = 0
    image_cache_limit: int = 0
    image_cache_evictions: int = 0
    prefills: int = 0
    steps: int = 0


class EngineBusy(RuntimeError):
    """The queue is full.

    Attributes:
        retry_after: seconds until there should be room, from how long requests took lately.
    """

    def __init__(self, waiting: int, retry_after: float):
        super().__init__(
            f"the queue is full: {waiting} requests wait; try again in {retry_after:.1f} s, or give the engine a "
            "greater max_queue"
        )
        self.retry_after = retry_after


class EngineClosed(RuntimeError):
    """The engine takes nothing any more: it drains or is closed."""
