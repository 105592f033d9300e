"""Threads that help with computing: who has finished lets them go, so that others compute at full speed.

Each thread of a program that computes with torch on a CPU gets helpers of its own from GNU's OpenMP, one for each
further core, and keeps them. Where they and the threads that use them are more than the cores, helpers no longer wait
awake between two operations: waking them takes longer than a small operation does. An engine computes in a thread of
its own; helpers that the loading thread has left over would make each of its tokens half again as slow.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

_SOFT = 1


@cache
def _libraries() -> tuple[ctypes.CDLL, ...]:
    """Find GNU's OpenMP in this process; there is none on other systems than Linux, nor in some builds of torch."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return ()
    names = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line}
    found = (ctypes.CDLL(name) for name in sorted(names))
    return tuple(library for library in found if hasattr(library, "omp_pause_resource_all"))


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
