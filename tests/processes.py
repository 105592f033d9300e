"""Processes of tests: forked, for speed, from a clean process that has imported llavit once; their end."""

import contextlib
import io
import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
# The last of them leaves the others out of garbage collection.
CONTEXT.set_forkserver_preload(
    ["llavit.compare.run", "llavit.compare.report", "tests.compare.parts", "tests.frozen"]
)
TIMEOUT = 400
"""Seconds after which processes count as hanging; they take a few."""


def exit_statuses(started, timeout=TIMEOUT):
    """Wait for processes and give their exit statuses; those still running after `timeout` seconds each are killed."""
    for process in started:
        process.join(timeout)
    hanging = [process for process in started if process.is_alive()]
    for process in hanging:
        process.kill()
        process.join()
    assert not hanging, (
        f"{len(hanging)} of {len(started)} processes were still running after {timeout} seconds"
    )
    return [process.exitcode for process in started]


def printed(code: str) -> str:
    """Run Python in a process of its own, which has imported llavit's training already; give what it prints."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_print, args=(code, theirs))
    process.start()
    theirs.close()
    assert exit_statuses([process]) == [0]
    return ours.recv()


def _print(code, pipe):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {"__name__": "__main__"})
    pipe.send(out.getvalue())
