"""Who runs when: continuous batching of requests on one model.

Each round lets new requests in, up to a budget of tokens, so that nobody who runs waits long, and then runs one token
of every running request. A request gives its place up the moment it ends: the last row moves there, so that running
requests always have the first rows of the slots.

    round:  prefill, prefill, ... (at most `PREFILL_BUDGET` tokens, at least one prompt)  ->  one decode step for all

Only the engine's thread comes here, with the exception of what its docstring calls thread-safe.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable

import torch

from llavit.serve.answers import EngineBusy, EngineClosed, EngineStats, FinishReason
from llavit.serve.image_cache import ImageCache
from llavit.serve.request import Request
from llavit.serve.runner import Runner
from llavit.serve.sampling import choose_tokens

PREFILL_BUDGET = 512
"""Tokens of prompts that are run between two decode steps; a longer prompt runs at once, alone."""

_COUNTED = (
    "requests",
    "cancelled",
    "failed",
    "timed_out",
    "prompt_tokens",
    "cached_tokens",
    "generated_tokens",
    "image_cache_hits",
    "image_cache_misses",
    "steps",
)


class Scheduler:
    """Runs requests.

    Args:
        runner: the model.
        max_batch: requests that run together.
        max_queue: requests that may wait.
        cache: of beginnings of conversations.
        suppressed: ids of tokens that are never generated.
    """

    def __init__(
        self, runner: Runner, *, max_batch: int, max_queue: int, cache: ImageCache, suppressed: Iterable[int]
    ):
        self.runner, self.cache = runner, cache
        self.max_batch, self.max_queue = max_batch, max_queue
        self.suppressed = torch.tensor(sorted(suppressed), device=runner.device)
        self.changed = threading.Condition()
        self.taking = True
        self.running: list[Request] = []
        self._waiting: deque[Request] = deque()
        self._starting: Request | None = None
        self._count: dict[str, int] = dict.fromkeys(_COUNTED, 0)
        self._seconds_per_request, self._busy = 1.0, 0.0

    # Thread-safe

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            EngineClosed: nothing is taken any more.
            EngineBusy: the queue is full.
        """
        with self.changed:
            if not self.taking:
                raise EngineClosed("the engine takes no more requests: it is draining or closed")
            if len(self._waiting) >= self.max_queue:
                raise EngineBusy(len(self._waiting), self._seconds_per_request)
            self._waiting.append(request)
            self._count["requests"] += 1
            self.changed.notify_all()

    def wake(self) -> None:
        """Let the engine's thread look around."""
        with self.changed:
            self.changed.notify_all()

    def has_room(self) -> bool:
        """Whether `add` need not wait: there is room, or it will never be taken."""
        return not self.taking or len(self._waiting) < self.max_queue

    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not (self.running or self._waiting or self._starting)

    def stats(self) -> EngineStats:
        """Return the counters."""
        with self.changed:
            return EngineStats(
                running=len(self.running) + (self._starting is not None),
                waiting=len(self._waiting),
                image_cache_entries=len(self.cache),
                image_cache_bytes=self.cache.bytes,
                image_cache_limit=self.cache.limit,
                image_cache_evictions=self.cache.evictions,
                **self._count,
            )

    # The engine's thread

    def round(self) -> None:
        """Let requests in and run one token of each running request."""
        began, ended = time.monotonic(), self._ended()
        self._drop_waiting()
        for request in [each for each in self.running if each.gone()]:
            self._finish(request, request.gone() or "cancelled")
        self._admit()
        if self.running:
            self._decode()
        self._measure(time.monotonic() - began, self._ended() - ended)

    def abandon(self, error: BaseException) -> None:
        """End all requests with an error."""
        with self.changed:
            waiting, self._waiting = list(self._waiting), deque()
        for request in [*self.running, *waiting]:
            self._count["failed"] += 1
            request.fail(error)
        self.running.clear()
        self.wake()

    def _drop_waiting(self) -> None:
        with self.changed:
            gone = [request for request in self._waiting if request.gone()]
            for request in gone:
                self._waiting.remove(request)
        for request in gone:
            self._count_end(request, request.gone() or "cancelled")

    def _admit(self) -> None:
        budget = PREFILL_BUDGET
        while len(self.running) < self.max_batch and budget > 0:
            with self.changed:
                if not self._waiting:
                    return
                request = self._starting = self._waiting.popleft()
            request.slot = len(self.running)
            try:
                budget -= self._start(request)
            except Exception as error:  # whatever it is, it is this request's
                self._fail(request, error, len(request.prompt.ids))
            self._starting = None

    def _start(self, request: Request) -> int:
        """Run a prompt and choose the first token; return how many tokens were run."""
        prompt, length = request.prompt, len(request.prompt.ids)
        for stretch in self.cache.find(prompt.path, most=length - 1):
            self.runner.slots.write(request.slot, stretch.start, stretch.kv)
            request.cached = stretch.end
        past = request.cached
        known = sum(end <= past for end in prompt.image_ends)
        features = None
        if prompt.pixels is not None and known < len(prompt.pixels):
            features = self.runner.features(prompt.pixels[known:])
        logits = self.runner.prefill(request.slot, prompt.ids[past:], prompt.image_ids[past:], features, past)
        prompt.pixels = None
        request.filled = length
        (choice,) = choose_tokens(logits[None], [request.sampler], self.suppressed)
        if isinstance(choice, Exception):
            raise choice
        reason = request.take(choice)
        with self.changed:
            self._count["prompt_tokens"] += length
            self._count["cached_tokens"] += past
            self._count["image_cache_hits"] += known
            self._count["image_cache_misses"] += len(prompt.image_ends) - known
        for end in sorted({*prompt.image_ends, length - 1}):
            if end > past:
                self._keep(request, end)
        self.running.append(request)
        if reason:
            self._finish(request, reason)
        return length - past

    def _decode(self) -> None:
        rows = self.running
        try:
            logits = self.runner.decode([row.pending for row in rows], [row.filled for row in rows])
        except Exception as error:  # of no row in particular, such as a lack of memory
            for row in list(rows):
                self._fail(row, error, row.filled + 1)
            return
        self._count["steps"] += 1
        ended: list[tuple[Request, FinishReason | Exception]] = []
        for row, choice in zip(
            rows, choose_tokens(logits, [row.sampler for row in rows], self.suppressed), strict=True
        ):
            row.filled += 1
            try:
                end = choice if isinstance(choice, Exception) else row.take(choice)
            except Exception as error:
                end = error
            if end:
                ended.append((row, end))
        for row, end in ended:
            if isinstance(end, Exception):
                self._fail(row, end, row.filled)
            else:
                self._finish(row, end)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        """End a running request, keep its conversation and give its row up."""
        request.prompt.path.extend(request.sampler.answer[: request.filled - len(request.prompt.ids)])
        self._keep(request, request.filled)
        self._leave(request)
        self._count_end(request, reason)

    def _fail(self, request: Request, error: BaseException, length: int) -> None:
        """End a request by an exception; `length` positions of its row may hold anything."""
        self.runner.slots.clear(request.slot, length)
        if request in self.running:
            self._leave(request)
        with self.changed:
            self._count["failed"] += 1
        request.fail(error)

    def _keep(self, request: Request, end: int) -> None:
        """Put the first `end` tokens into the image cache, unless that would cut an image."""
        image_ids = request.prompt.image_ids
        if end < len(image_ids) and image_ids[end] >= 0 and image_ids[end] == image_ids[end - 1]:
            return
        read = self.runner.slots.read
        self.cache.put(request.prompt.path, end, lambda start, end: read(request.slot, start, end))

    def _leave(self, request: Request) -> None:
        """Give a row up to the last one."""
        last = self.running.pop()
        if last is not request:
            self.runner.slots.move(last.slot, request.slot, last.filled)
            last.slot = request.slot
            self.running[last.slot] = last

    def _count_end(self, request: Request, reason: FinishReason) -> None:
        answer = request.finish(reason)
        with self.changed:
            self._count["generated_tokens"] += len(answer.token_ids)
            if reason in ("cancelled", "timeout"):
                self._count["cancelled" if reason == "cancelled" else "timed_out"] += 1

    def _ended(self) -> int:
        """How many requests have ended so far."""
        return self._count["requests"] - len(self.running) - len(self._waiting)

    def _measure(self, seconds: float, ended: int) -> None:
        """Keep a running mean of the time per request, over some dozens of rounds."""
        self._busy = self._busy + seconds
        if ended:
            self._seconds_per_request += 0.3 * (self._busy / ended - self._seconds_per_request)
            self._busy = 0.0
