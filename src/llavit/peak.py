"""How much memory a piece of work took, with the processes that it started."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llavit.threads import repeated

_EVERY = 0.5  # seconds


class Peak:
    """The most memory that was seen, in bytes."""

    def __init__(self) -> None:
        self.bytes = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Watch the memory of this process and of all that descend from it: workers, compilers.

    What counts is resident memory, summed over the processes twice a second. Pages that several of them share count
    several times, so the truth may be a little less. This process's own peak comes from the kernel, over its whole
    life, and misses nothing.

    Raises:
        ImportError: psutil is not installed; it comes with the extra `starter`.

    Example:
        >>> with peak_memory() as peak:
        ...     block = bytearray(10**6)
        >>> peak.bytes > 10**6
        True
    """
    import psutil

    peak = Peak()
    this = psutil.Process()

    def look() -> None:
        total = 0
        for process in (this, *this.children(recursive=True)):
            with suppress(psutil.Error):  # it has just ended
                total += process.memory_info().rss
        peak.bytes = max(peak.bytes, total)

    try:
        with repeated(look, _EVERY):
            yield peak
    finally:
        look()
        peak.bytes = max(peak.bytes, _own_peak())


def _own_peak() -> int:
    status = Path("/proc/self/status")
    if (
        status.is_file()
    ):  # of this program: ru_maxrss would be that of the one that started it, if that was larger
        return 1024 * int(re.findall(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
