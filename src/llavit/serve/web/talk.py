"""A conversation on the page: what was asked, what each model answered, and how an answer is fetched.

A talk belongs to one open page. The thread that answers the browser asks each engine in a thread of its own, so that
two models answer at the same time, and shows what has come at most some twenty times a second.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from llavit.inspect.attention import Word, answer_words
from llavit.serve import Answer, Engine, EngineBusy, EngineClosed, Sampling, Stream

logger = logging.getLogger(__name__)

REDRAW = 0.05
"""Seconds between two states that are shown."""


@dataclass
class Picture:
    """A picture that was shown, and the address at which the browser gets it."""

    image: Image.Image
    url: str


@dataclass
class Look:
    """Where a model looked when it wrote a word.

    Attributes:
        word: number of the word in the answer.
        maps: for each picture of the conversation (h, w) attention weights.
        layers: what they are averaged over, in words.
    """

    word: int
    maps: list[np.ndarray]
    layers: str


@dataclass
class Reply:
    """What one model says to one question.

    Attributes:
        text: so far.
        answer: when it has ended.
        words: of the answer, when it has ended.
        error: why there is no answer.
        look: the heat map that is open under it.
    """

    text: str = ""
    answer: Answer | None = None
    words: list[Word] = field(default_factory=list)
    error: str | None = None
    look: Look | None = None

    @property
    def running(self) -> bool:
        """Whether more may come."""
        return self.answer is None and self.error is None


@dataclass
class Exchange:
    """A question with its pictures, and a reply of each model."""

    question: str
    pictures: list[Picture]
    replies: list[Reply]


class Talk:
    """A conversation with one or more models, which all get the same questions.

    Args:
        engines: one for each model.

    Attributes:
        exchanges: what was said.
        busy: whether an answer is being written.
        left: nobody looks at it any more.
    """

    def __init__(self, engines: Sequence[Engine]):
        self.engines = list(engines)
        self.exchanges: list[Exchange] = []
        self.busy = self.left = False
        self._lock = threading.Lock()
        self._streams: list[Stream] = []
        self._stopped = False

    def begin(self) -> bool:
        """Claim the talk for a question; false while another one is being answered."""
        with self._lock:
            was_busy, self.busy = self.busy, True
        return not was_busy

    def messages(self, model: int, end: int) -> list[dict[str, Any]]:
        """Return the conversation of one model up to question `end`, that one included, its answer not.

        Questions that the model could not answer are left out.
        """
        turns: list[dict[str, Any]] = []
        for number, exchange in enumerate(self.exchanges[: end + 1]):
            reply = exchange.replies[model]
            if number < end and reply.answer is None:
                continue
            shown = [{"type": "image", "image": picture.image} for picture in exchange.pictures]
            turns.append({"role": "user", "content": [*shown, {"type": "text", "text": exchange.question}]})
            if number < end:
                said = [{"type": "text", "text": reply.text}]
                turns.append({"role": "assistant", "content": said})
        return turns

    def pictures(self, model: int, end: int) -> list[Picture]:
        """Return the pictures of `messages(model, end)`, in that order."""
        return [
            picture
            for number, exchange in enumerate(self.exchanges[: end + 1])
            if number == end or exchange.replies[model].answer is not None
            for picture in exchange.pictures
        ]

    def ask(self, question: str, pictures: list[Picture], sampling: Sampling) -> Generator[None, None, None]:
        """Ask all models; the talk changes as answers come, and this yields when there is something new to show.

        What goes wrong becomes the reply's `error`. Closing the iterator stops the answers.
        """
        exchange = Exchange(question, pictures, [Reply() for _ in self.engines])
        self.exchanges.append(exchange)
        number = len(self.exchanges) - 1
        self.busy, self._stopped = True, False
        events: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        try:
            for model in range(len(self.engines)):
                messages = self.messages(model, number)
                threading.Thread(
                    target=self._fetch, args=(model, messages, sampling, events), daemon=True
                ).start()
            yield
            drawn = time.monotonic()
            while any(reply.running for reply in exchange.replies):
                self._take(exchange, *events.get())
                while not events.empty():
                    self._take(exchange, *events.get())
                if time.monotonic() - drawn >= REDRAW:
                    yield
                    drawn = time.monotonic()
        finally:
            self.stop()
            for reply in exchange.replies:
                if reply.running:
                    reply.error = "stopped: nobody read on"
            self.busy = False
            with self._lock:
                self._streams.clear()

    def stop(self) -> None:
        """Stop the answers that are being written; what has come so far stays."""
        with self._lock:
            self._stopped = True
            for stream in self._streams:
                if not stream.done:
                    stream.cancel()

    def _fetch(
        self,
        model: int,
        messages: list[dict[str, Any]],
        sampling: Sampling,
        events: queue.SimpleQueue[tuple[int, Any]],
    ) -> None:
        """Ask one engine and pass on what it says, in a thread."""
        try:
            stream = self.engines[model].submit(messages, (), sampling)
            with self._lock:
                self._streams.append(stream)
                if self._stopped:
                    stream.cancel()
            for piece in stream:
                events.put((model, piece.text))
            events.put((model, stream.result()))
        except Exception as error:
            events.put((model, error))

    def _take(self, exchange: Exchange, model: int, event: str | Answer | Exception) -> None:
        reply = exchange.replies[model]
        if isinstance(event, str):
            reply.text += event
        elif isinstance(event, Exception):
            reply.error = said(event)
        else:
            text, words = answer_words(self.engines[model].processor.tokenizer, event.token_ids)
            reply.text, reply.answer = event.text, event
            reply.words = words if text == event.text else []


def said(error: BaseException) -> str:
    """Say what went wrong: the error's own words, with its kind in front unless llavit wrote them.

    Example:
        >>> said(ValueError("temperature=0: expected more"))
        'temperature=0: expected more'
        >>> said(KeyError("layer"))
        "KeyError: 'layer'"
    """
    if isinstance(error, ValueError | EngineBusy | EngineClosed) and str(error):
        return str(error)
    logger.error("an answer on the web page failed", exc_info=error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
