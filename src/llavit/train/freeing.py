"""Give memory back, and keep it where it is needed again: what the C library does with what was freed."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from transformers import TrainerCallback

TRIM_EVERY = 25
"""Steps between two trims of the heap. The step behind a trim takes some tenths of a second longer on a CPU."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def free_memory() -> None:
    """Collect what only reference cycles keep alive, and return free memory to the system and to the GPU.

    A trainer and its model, optimizer and data refer to each other, so `del` alone frees none of them. And glibc
    keeps what was freed below blocks that are in use: after a stage of training, gigabytes. On a GPU torch keeps all
    that was freed, in blocks that are cut for what is gone.

    Example:
        >>> free_memory()
    """
    gc.collect()
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim_heap() -> bool:
    """Return the free pages of the heap to the system; False where the C library cannot (it is not glibc).

    Example:
        >>> trim_heap() in (True, False)
        True
    """
    trim = _of_glibc("malloc_trim")
    if trim is None:
        return False
    trim(0)
    return True


@contextmanager
def held_heap() -> Iterator[bool]:
    """Let freed memory stay with the process while the block runs; gives False where the C library is not glibc.

    Each training step takes and frees the same gigabytes. Large blocks go back to the system when they are freed, and
    come from it page by page, each filled with zeros: without this a sixth of a step of the starter model on a CPU.

    Example:
        >>> with held_heap() as held:
        ...     held in (True, False)
        True
    """
    mallopt = _of_glibc("mallopt") if _of_glibc("malloc_trim") else None
    if mallopt is None:
        yield False
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield True
    finally:
        mallopt(_M_TRIM_THRESHOLD, 128 << 10)
        mallopt(_M_MMAP_MAX, 65536)  # both glibc's own


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
def _of_glibc(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):  # no glibc: musl, macOS, Windows
        return None
