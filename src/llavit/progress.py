"""What runs that take a while show, and what they hide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
