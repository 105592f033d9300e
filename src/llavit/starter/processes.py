"""Work dealt to plain subprocesses, so that a script which builds data needs no main guard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from queue import Queue
from threading import Thread
from typing import Any

# A worker draws and needs nothing else: it registers the package without running its front, which imports torch.
_FRONT = (
    "import importlib.util as u, sys; sys.modules['llavit'] = u.module_from_spec(u.find_spec('llavit')); "
)


def lines_of_processes(code: str, orders: Sequence[dict[str, Any]], what: str) -> Iterator[str]:
    """Run one Python process per order, and give the lines that they print as they come.

    Args:
        code: Python that imports its function from llavit and calls it; the function reads its order as json
            from stdin.
        orders: one per process.
        what: is named in the error.

    Raises:
        RuntimeError: a process failed; the message holds the end of what it wrote to stderr.
    """
    lines: Queue[tuple[int, str | None]] = Queue()
    processes: list[subprocess.Popen[str]] = []
    errors = []
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": "1",
    }
    try:
        for worker, order in enumerate(orders):
            error = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed below
            errors.append(error)
            process = subprocess.Popen(
                [sys.executable, "-c", _FRONT + code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=error,
                text=True,
                encoding="utf-8",
                env=environment,
            )
            processes.append(process)
            assert process.stdin is not None
            # A process that ends before it reads its order says why by its status, below.
            with suppress(BrokenPipeError), process.stdin:
                process.stdin.write(json.dumps(order))
            Thread(target=_listen, args=(worker, process, lines), daemon=True).start()
        running = len(processes)
        while running:
            worker, line = lines.get()
            if line is not None:
                yield line
                continue
            running -= 1
            if processes[worker].wait() != 0:
                errors[worker].seek(0)
                raise RuntimeError(f"a worker of {what} failed:\n{errors[worker].read()[-4000:]}")
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
            process.wait()
        for error in errors:
            error.close()


def _listen(worker: int, process: subprocess.Popen[str], lines: Queue[tuple[int, str | None]]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put((worker, line))
    lines.put((worker, None))
