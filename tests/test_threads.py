"""Helpers of threads that have finished do not slow down those that compute."""

import subprocess
import sys

import pytest

from llavit.threads import release_helpers

COUNTS = """
import sys, threading, torch
from llavit.threads import release_helpers

def threads():
    return int(next(line for line in open("/proc/self/status") if line.startswith("Threads")).split()[1])

torch.set_num_threads(2)
before = threads()
torch.ones(1000, 1000).mul_(2)
used = threads()
release_helpers()
for _ in range(100):  # they end on their own time
    if threads() == before:
        break
    threading.Event().wait(0.05)
print(used - before, threads() - before)
assert float(torch.ones(1000, 1000).mul_(2).sum()) == 2e6  # and come back when they are needed
"""


@pytest.mark.skipif(not release_helpers(), reason="this torch computes without GNU's OpenMP")
def test_helpers_end_when_they_are_released_and_come_back():
    done = subprocess.run([sys.executable, "-c", COUNTS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]
