"""Who runs when: continuous batching of requests on one model.

Each round lets new requests in, up to a budget of tokens, so that nobody who runs waits long, and then runs one token
of every running request. A request gives its place up the moment it ends: the last row moves there, so that running
requests always have the first rows of the slots.

    round:  prefill some, prefill some, ... (until `PREFILL_BUDGET` tokens)  ->  one decode step for all

Only the engine's thread comes here, with the exception of what its docstring calls thread-safe.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable, Sequence

import torch

from llavit.serve.answers import EngineBusy, EngineClosed, EngineStats, FinishReason
from llavit.serve.image_cache import ImageCache
from llavit.serve.request import Request
from llavit.serve.runner import Runner
from llavit.serve.sampling import Choice, choose_tokens

PREFILL_BUDGET = 512
"""Between two decode steps prompts are run until they have so many tokens, the last one whole, however long it is."""

MOST_PADDED = 1.25
"""Prompts run together as long as filling the shorter ones up takes no more tokens than this many times theirs."""

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
    "prefills",
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
        self._starting: list[Request] = []
        self._count: dict[str, int] = dict.fromkeys(_COUNTED, 0)
        self._seconds_per_request, self._busy = 1.0, 0.0

    # Thread-safe

    def refuse(self) -> None:
        """Raise what `add` would raise now."""
        with self.changed:
            if not self.taking:
                raise EngineClosed("the engine takes no more requests: it is draining or closed")
            if len(self._waiting) >= self.max_queue:
                raise EngineBusy(len(self._waiting), self._seconds_per_request)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            EngineClosed: nothing is taken any more.
            EngineBusy: the queue is full.
        """
        with self.changed:
            self.refuse()
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
                running=len({*self.running, *self._starting}),
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
        for request in {*self.running, *self._starting, *waiting}:
            if not request.stream.done:
                self._count["failed"] += 1
                request.fail(error)
        self.running.clear()
        self._starting = []
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
        while budget > 0 and (group := self._next_group(budget)):
            budget -= max(len(each.prompt.ids) - each.cached for each in group) * len(group)
            self._start(group)
            self._starting = []

    def _next_group(self, budget: int) -> list[Request]:
        """Take from the queue, in its order, prompts that can be run together.

        That is, behind equally many cached tokens, of like lengths, and without a new image in common, which the second
        finds in the cache if it waits for the first.
        """
        group: list[Request] = []
        images: set[Hashable] = set()
        padded = total = 0
        with self.changed:
            while self._waiting and len(self.running) + len(group) < self.max_batch:
                request = self._waiting[0]
                prompt = request.prompt
                found = self.cache.find(prompt.path, most=len(prompt.ids) - 1)
                request.cached = found[-1].end if found else 0
                new = {prompt.path.tokens[end - 1] for end in prompt.image_ends if end > request.cached}
                length = len(prompt.ids) - request.cached
                if group:
                    longest = max(padded // len(group), length)
                    fits = longest * (len(group) + 1) <= min(budget, MOST_PADDED * (total + length))
                    ends = request.cached + longest
                    if (
                        not fits
                        or ends > self.runner.max_length
                        or request.cached != group[0].cached
                        or new & images
                    ):
                        break
                    padded = longest * (len(group) + 1)
                else:
                    padded = length
                total += length
                images |= new
                request.slot = len(self.running) + len(group)
                group.append(self._waiting.popleft())
            self._starting = group
        return group

    def _start(self, group: list[Request]) -> None:
        """Run prompts and choose the first token of each; where that fails, find out whose fault it was."""
        try:
            choices = choose_tokens(
                self._prefill(group), [request.sampler for request in group], self.suppressed
            )
        except Exception as error:
            if len(group) == 1:
                self._fail(group[0], error)
                return
            for request in group:
                request.slot, request.cached = len(self.running), 0
                self._start([request])
            return
        for request, choice in zip(group, choices, strict=True):
            request.filled = len(request.prompt.ids)
            self.running.append(request)
            if not isinstance(choice, Exception):
                self._count_prompt(request)
                for end in sorted({*request.prompt.image_ends, request.filled - 1}):
                    if end > request.cached:
                        self._keep(request, end)
            request.prompt.pixels = None
        self._take(group, choices)

    def _prefill(self, group: list[Request]) -> torch.Tensor:
        """Run prompts behind what the cache has of them; return the logits behind each."""
        past = group[0].cached
        end = max(len(request.prompt.ids) for request in group) + self.runner.idle
        pixels = []
        for request in group:
            request.touched = end
            for stretch in self.cache.find(request.prompt.path, most=past):
                self.runner.slots.write(request.slot, stretch.start, stretch.kv)
            known = sum(end <= past for end in request.prompt.image_ends)
            if request.prompt.pixels is not None and known < len(request.prompt.pixels):
                pixels.append(request.prompt.pixels[known:])
        with self.changed:
            self._count["prefills"] += 1
        return self.runner.prefill_rows(
            group[0].slot,
            [request.prompt.ids[past:] for request in group],
            [request.prompt.image_ids[past:] for request in group],
            self.runner.features(torch.cat(pixels)) if pixels else None,
            past,
        )

    def _decode(self) -> None:
        rows = self.running
        try:
            logits = self.runner.decode([row.pending for row in rows], [row.filled for row in rows])
            choices = choose_tokens(logits, [row.sampler for row in rows], self.suppressed)
        except Exception as error:  # of no row in particular, such as a lack of memory
            for row in rows[::-1]:
                self._fail(row, error)
            return
        self._count["steps"] += 1
        for row in rows:
            row.filled += 1
        self._take(rows, choices)

    def _take(self, rows: Sequence[Request], choices: Sequence[Choice | Exception]) -> None:
        """Give rows their next tokens, and end those that end with them."""
        ended: list[tuple[Request, FinishReason | Exception]] = []
        for row, choice in zip(rows, choices, strict=True):
            try:
                end = choice if isinstance(choice, Exception) else row.take(choice)
            except Exception as error:
                end = error
            if end:
                ended.append((row, end))
        for row, end in reversed(ended):  # the highest first: see `_leave`
            if isinstance(end, Exception):
                self._fail(row, end)
            else:
                self._finish(row, end)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        """End a running request, keep its conversation and give its row up."""
        request.prompt.path.extend(request.sampler.answer[: request.filled - len(request.prompt.ids)])
        self._keep(request, request.filled)
        self._leave(request)
        self._count_end(request, reason)

    def _fail(self, request: Request, error: BaseException) -> None:
        """End a request by an exception; what was written into its row may be anything."""
        self.runner.slots.clear(request.slot, max(request.touched, request.filled + 1))
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
        """Give a row up to the last one, which is copied there: of rows that failed the highest must leave first."""
        last = self.running.pop()
        if last is not request:
            self.runner.slots.move(last.slot, request.slot, last.filled)
            last.slot = request.slot
            self.running[last.slot] = last

    def _count_prompt(self, request: Request) -> None:
        known = sum(end <= request.cached for end in request.prompt.image_ends)
        with self.changed:
            self._count["prompt_tokens"] += len(request.prompt.ids)
            self._count["cached_tokens"] += request.cached
            self._count["image_cache_hits"] += known
            self._count["image_cache_misses"] += len(request.prompt.image_ends) - known

    def _count_end(self, request: Request, reason: FinishReason) -> None:
        answer = request.finish(reason)
        with self.changed:
            self._count["generated_tokens"] += len(answer.token_ids)
            if reason in ("cancelled", "timeout"):
                self._count["cancelled" if reason == "cancelled" else "timed_out"] += 1

    def _ended(self) -> int:
        """How many requests have ended so far."""
        with self.changed:  # one that comes in between would count on one side only
            return self._count["requests"] - len(self.running) - len(self._waiting)

    def _measure(self, seconds: float, ended: int) -> None:
        """Keep a running mean of the time per request, over some dozens of rounds."""
        self._busy = self._busy + seconds
        if ended:
            self._seconds_per_request += 0.3 * (self._busy / ended - self._seconds_per_request)
            self._busy = 0.0
