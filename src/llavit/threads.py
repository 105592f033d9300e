"""Threads: helpers of OpenMP, which who has finished lets go, so that others compute at full speed; and `repeated`.

Each thread of a program that computes with torch on a CPU gets helpers of its own from GNU's OpenMP, one for each
further core, and keeps them. Where they and the threads that use them are more than the cores, helpers no longer wait
awake between two operations: waking them takes longer than a small operation does. An engine computes in a thread of
its own; helpers that the loading thread has left over would make each of its tokens half again as slow.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_SOFT = 1


@cache
def _libraries() -> tuple[ctypes.CDLL, ...]:
    """Find GNU's OpenMP in this process; there is none on other systems than Linux, nor in some builds of torch."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return ()
    found = (ctypes.CDLL(name) for name in gomp_files(maps.read_text()) if Path(name).is_file())
    return tuple(library for library in found if hasattr(library, "omp_pause_resource_all"))


def gomp_files(maps: str) -> list[str]:
    """Return the paths of GNU's OpenMP among the files that a process has mapped.

    Args:
        maps: the text of Linux' `/proc/PID/maps`; a path in it may have spaces.

    Example:
        >>> gomp_files("7f00-7f01 r-xp 00000000 fe:00 42    /home/a b/libgomp.so.1\\n7f02-7f03 rw-p 0 00:00 0")
        ['/home/a b/libgomp.so.1']
    """
    columns = (line.split(maxsplit=5) for line in maps.splitlines())
    return sorted({path for *_, path in columns if "libgomp" in Path(path).name})


def release_helpers() -> bool:
    """Let this thread's OpenMP helpers go; they come back when it computes again.

    Returns:
        whether there is something to let go in this process: GNU's OpenMP, version 5 or later.

    Example:
        >>> release_helpers() in (True, False)
        True
    """
    libraries = _libraries()
    for library in libraries:
        library.omp_pause_resource_all(_SOFT)
    return bool(libraries)


@contextmanager
def repeated(act: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function every so many seconds while the block runs, from a thread of its own.

    Example:
        >>> calls = []
        >>> with repeated(lambda: calls.append(1), 0.001):
        ...     while not calls:
        ...         pass
    """
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            act()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
