"""Keeping transformers quiet where its messages are nothing that a user of llavit can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' progress bars and its messages below the level of an error; restore both afterwards.

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
