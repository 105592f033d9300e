"""What runs that take a while show, and what they hide."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Draw a bar on stderr, if that is a terminal; gives a function to call with (done, in all).

    Example:
        with progress_bar("drawing") as progress:
            progress(1, 10)
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def now_and_then(
    say: Callable[[str], None], what: str, *, every: float = 10.0, clock: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """Make a function to call with (done, in all) that says how far it is every some seconds, and not at once.

    Args:
        say: takes a line.
        what: what is being done.
        every: seconds between lines.
        clock: gives the time in seconds.

    Example:
        >>> count = now_and_then(print, "reading", every=0)
        >>> count(1000, 2000)
        reading: 1,000 of 2,000
    """
    last = clock()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if clock() - last >= every:
            last = clock()
            say(f"{what}: {done:,} of {total:,}")

    return progress


@contextmanager
def status(what: str, *, show: bool = True) -> Iterator[Callable[[str], None]]:
    """Show what is happening and for how long, on stderr, if that is a terminal; the line goes when it is over.

    There is one line at a time: a status within another, also of another thread, speaks in its place and then gives
    it back. What is printed on stdout meanwhile stays on stdout.

    Args:
        what: the first text.
        show: False shows nothing, for callers with an option.

    Returns:
        a function that changes the text.

    Example:
        with status("demo: loading weights (697 MB)") as say:
            say("demo: compiling (the first time takes about 40 s)")
    """
    if not show:
        yield lambda text: None
        return
    with _line_changes:
        line, ours = (_Line(), True) if _Line.shown is None else (_Line.shown, False)
        _Line.shown = line
        before = line.text
        line.say(what)
    try:
        yield line.say
    finally:
        with _line_changes:
            if ours:
                line.stop()
                _Line.shown = None
            else:
                line.say(before)


class _Line:
    """The line of `status`; on something else than a terminal it does nothing."""

    shown: _Line | None = None

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.text = ""
        console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,  # stdout is for answers, and may be a pipe
            disable=not console.is_terminal,
        )
        self._task: Any = self._bar.add_task("")
        self._bar.start()

    def say(self, text: str) -> None:
        self.text = text
        self._bar.update(self._task, description=text, refresh=True)

    def stop(self) -> None:
        self._bar.stop()


_line_changes = threading.RLock()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' progress bars and its messages below the level of an error; restore both afterwards.

    What they say is nothing that a user of llavit can act on.

    Example:
        with quiet_transformers():
            model = LlavitForConditionalGeneration.from_pretrained(folder)
    """
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
