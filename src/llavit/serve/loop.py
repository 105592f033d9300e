"""The thread that owns the model: it runs the scheduler's rounds while there is something to do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llavit.serve.answers import EngineClosed
from llavit.serve.scheduler import Scheduler
from llavit.threads import release_helpers

logger = logging.getLogger(__name__)


class Loop:
    """Runs a scheduler in a thread of its own; all methods are safe to call from any thread.

    Args:
        scheduler: whose rounds are run.

    Attributes:
        thread: the thread.
    """

    def __init__(self, scheduler: Scheduler):
        self._scheduler, self._changed = scheduler, scheduler.changed
        self._borrowers = 0
        self._borrower: int | None = None
        self._stepping = self._borrowed = self._closed = False
        self._owed = False  # a borrower has left, and no round has begun since
        self.thread = threading.Thread(target=self._run, name="llavit-engine", daemon=True)
        self.thread.start()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Wait for the end of the round under way, and let no other begin before the block ends.

        Behind another borrower it waits for one round more, if there is something to do.

        Raises:
            RuntimeError: this thread is in such a block already, and would wait for itself.
        """
        if self._borrower == threading.get_ident():
            raise RuntimeError("this thread has borrowed the model already; leave that block first")
        with self._changed:
            self._borrowers += 1
            self._changed.wait_for(lambda: not (self._stepping or self._borrowed or self._must_step()))
            self._borrowed, self._borrower = True, threading.get_ident()
        try:
            yield
        finally:
            with self._changed:
                self._borrowed, self._borrower, self._owed = False, None, True
                self._borrowers -= 1
                self._changed.notify_all()

    def drain(self, timeout: float | None = None) -> bool:
        """Take nothing new; return whether everything has ended within so many seconds."""
        with self._changed:
            self._scheduler.taking = False
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._scheduler.idle() and not self._stepping, timeout)

    def close(self) -> None:
        """End the thread; what still runs or waits ends with `EngineClosed`."""
        with self._changed:
            self._scheduler.taking = False
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self.thread:
            self.thread.join()

    def _run(self) -> None:
        with torch.inference_mode():
            while self._may_step():
                try:
                    self._scheduler.round()
                except BaseException as error:  # never leave callers waiting
                    logger.exception("the engine's round failed")
                    self._scheduler.abandon(error)
                with self._changed:
                    self._stepping = False
                    self._changed.notify_all()
        self._scheduler.abandon(EngineClosed("the engine was closed before the answer ended"))

    def _may_step(self) -> bool:
        """Wait until there is something to do and it is a round's turn; return False at the end."""
        with self._changed:
            if not self._has_turn():
                release_helpers()  # the borrower, or another engine, computes meanwhile
            self._changed.wait_for(lambda: self._closed or self._has_turn())
            self._stepping, self._owed = not self._closed, False
            return self._stepping

    def _has_turn(self) -> bool:
        return self._must_step() if self._borrowers else not self._scheduler.idle()

    def _must_step(self) -> bool:
        """Whether the next borrower has to wait for a round."""
        return self._owed and not self._borrowed and not self._scheduler.idle()
