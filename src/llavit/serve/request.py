"""A request on its way through the engine, and the stream by which its caller follows it.

The caller's thread makes a request (tokens, pixels) and reads its stream; the engine's thread does everything else.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from llavit.serve.answers import Answer, FinishReason, Piece, TokenLogprob
from llavit.serve.image_cache import TokenPath
from llavit.serve.sampling import Choice, Sampler, Sampling
from llavit.serve.text import TextPieces, token_texts


@dataclass
class Prompt:
    """A conversation, tokenised.

    Attributes:
        ids: token ids, image tokens repeated.
        image_ids: (l,) -1 for text, else the image's number in the conversation.
        pixels: (n, 3, height, width) of its images, or None.
        path: its tokens by identity, for the image cache.
        image_ends: of each image, the number of tokens up to its end.
    """

    ids: list[int]
    image_ids: torch.Tensor
    pixels: torch.Tensor | None
    path: TokenPath
    image_ends: list[int]

    @property
    def visual_tokens(self) -> int:
        """How many of the tokens are visual."""
        return int((self.image_ids >= 0).sum())


class Stream:
    """An answer as it comes: an iterator of `Piece`, and the way to wait for the whole or to give it up.

    As a context manager it cancels what is not done at the end of the block.

    Example:
        with engine.stream("What is this?", ["cat.jpg"]) as stream:
            for piece in stream:
                print(piece.text, end="", flush=True)
        answer = stream.result()
    """

    def __init__(self, wake: Callable[[], None]):
        self._wake = wake
        self._pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._answer: Answer | None = None
        self._error: BaseException | None = None
        self.cancelled = False

    @property
    def done(self) -> bool:
        """Whether the answer has ended, in whatever way."""
        return self._ended.is_set()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        piece = self._pieces.get()
        if piece is not None:
            return piece
        self._pieces.put(None)  # whoever asks again gets the same
        if self._error is not None:
            raise self._error
        raise StopIteration

    def cancel(self) -> None:
        """Give the answer up: its row leaves the batch at the next step. What has come so far is its result."""
        self.cancelled = True
        self._wake()

    def result(self, timeout: float | None = None) -> Answer:
        """Wait for the end and return the whole answer.

        Args:
            timeout: seconds to wait here; the request goes on.

        Raises:
            TimeoutError: it has not ended by then.
            Exception: what went wrong with the request.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"no end of the answer after {timeout} s; it goes on")
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.done:
            self.cancel()

    def give(self, piece: Piece) -> None:
        """Hand over the next piece (called by the engine)."""
        self._pieces.put(piece)

    def end(self, answer: Answer | None, error: BaseException | None = None) -> None:
        """Hand over the end (called by the engine)."""
        self._answer, self._error = answer, error
        self._wake = _nothing  # an answer that is kept does not keep the engine
        self._ended.set()
        self._pieces.put(None)


class Request:
    """What the engine knows of a request.

    Args:
        prompt: the conversation.
        sampling: options.
        timeout: seconds from `submitted` to the end of the answer, or None.
        tokenizer: turns tokens into text.
        ends: ids of end-of-turn tokens.
        device: where logits are.
        stream: where the answer goes.
        submitted: when it came, of `time.monotonic`.
        room: greatest number of tokens that its slot has room for behind the prompt.

    Attributes:
        deadline: when its answer is cut, of `time.monotonic`, or None.
        slot: its row.
        filled: positions of its slot that hold keys and values.
        touched: positions that its prompt's pass wrote to, with what filled it up.
        cached: of the prompt's tokens, those that came from the image cache.
        pending: the token that has been chosen and not been run yet.
    """

    def __init__(
        self,
        prompt: Prompt,
        sampling: Sampling,
        *,
        timeout: float | None,
        tokenizer: Any,
        ends: frozenset[int],
        device: Any,
        stream: Stream,
        submitted: float,
        room: int,
    ):
        self.prompt, self.sampling, self.stream = prompt, sampling, stream
        self.sampler = Sampler(sampling, prompt.ids, ends, device)
        self.slot = self.filled = self.touched = self.cached = 0
        self.pending = 0
        self._tokenizer, self._ends = tokenizer, ends
        self._text = TextPieces(tokenizer, sampling.stop)
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._given = 0  # tokens that went out in pieces
        self._most = min(sampling.max_new_tokens, room)
        self._timeout = timeout
        self._first: float | None = None
        self.count_from(submitted)

    def count_from(self, submitted: float) -> None:
        """Let the timeout, and the seconds of the answer, count from a moment of `time.monotonic`."""
        self._submitted = submitted
        self.deadline = None if self._timeout is None else submitted + self._timeout

    def take(self, choice: Choice) -> FinishReason | None:
        """Take the next token; return why the answer ends with it, or None if it goes on."""
        if self._first is None:
            self._first = time.monotonic()
        if choice.token in self._ends:
            return "stop"
        self.pending = choice.token
        self.sampler.took(choice.token)
        if choice.logprob is not None:
            self._logprobs.append(self._named(choice, choice.logprob))
        text = self._text.add(choice.token)
        if text:
            self._give(text)
        if self._text.stopped:
            return "stop"
        return "length" if len(self.sampler.answer) >= self._most else None

    def finish(self, reason: FinishReason) -> Answer:
        """End the answer."""
        rest = self._text.finish()
        tokens = self.sampler.answer
        if rest or self._given < len(tokens):
            self._give(rest)
        now = time.monotonic()
        answer = Answer(
            text="".join(self._texts),
            token_ids=tuple(tokens),
            finish_reason="stop" if self._text.stopped else reason,
            logprobs=tuple(self._logprobs),
            prompt_tokens=len(self.prompt.ids),
            cached_tokens=self.cached,
            visual_tokens=self.prompt.visual_tokens,
            seconds_to_first_token=None if self._first is None else self._first - self._submitted,
            seconds=now - self._submitted,
        )
        self.stream.end(answer)
        return answer

    def fail(self, error: BaseException) -> None:
        """End with what went wrong."""
        self.stream.end(None, error)

    def gone(self) -> FinishReason | None:
        """Say whether nobody waits for the answer any more."""
        if self.stream.cancelled:
            return "cancelled"
        if self.deadline is not None and time.monotonic() > self.deadline:
            return "timeout"
        return None

    def _give(self, text: str) -> None:
        tokens = self.sampler.answer
        self._texts.append(text)
        new = slice(self._given, len(tokens))
        self.stream.give(Piece(text, tuple(tokens[new]), tuple(self._logprobs[new])))
        self._given = len(tokens)

    def _named(self, choice: Choice, logprob: float) -> TokenLogprob:
        name, *names = token_texts(self._tokenizer, [choice.token, *(token for token, _ in choice.top)])
        top = tuple((text, token, value) for text, (token, value) in zip(names, choice.top, strict=True))
        return TokenLogprob(name, choice.token, logprob, top)


def _nothing() -> None:
    pass
