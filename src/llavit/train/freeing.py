"""Give memory back: what is not needed any more, and what the C library keeps of what was freed."""

from __future__ import annotations

import ctypes
import gc
from functools import cache
from typing import Any

from transformers import TrainerCallback

TRIM_EVERY = 25
"""Steps between two trims of the heap. The step behind a trim takes some tenths of a second longer on a CPU."""


def free_memory() -> None:
    """Collect what only reference cycles keep alive, and return the free pages of the heap to the system.

    A trainer and its model, optimizer and data refer to each other, so `del` alone frees none of them. And glibc
    keeps what was freed below blocks that are in use: after a stage of training, gigabytes.

    Example:
        >>> free_memory()
    """
    gc.collect()
    trim_heap()


def trim_heap() -> bool:
    """Return the free pages of the heap to the system; False where the C library cannot (it is not glibc).

    Example:
        >>> trim_heap() in (True, False)
        True
    """
    trim = _malloc_trim()
    if trim is None:
        return False
    trim(0)
    return True


class TrimHeap(TrainerCallback):
    """Trims the heap now and then while a stage trains.

    Rows are of another length in each step, so blocks do not fit into the gaps that earlier ones left, and what a
    process holds grows from step to step: by a gigabyte in a hundred steps of the demo.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trim after each `TRIM_EVERY` steps."""
        if state.global_step % TRIM_EVERY == 0:
            trim_heap()


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # no glibc: musl, macOS, Windows
        return None
