"""Helpers of threads that have finished do not slow down those that compute."""

import subprocess
import sys

import pytest

from llavit.threads import gomp_files, release_helpers

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


def test_an_environment_in_a_folder_with_a_space_is_found():
    maps = """\
7f1c00000000-7f1c00001000 r-xp 00000000 fe:00 42                         /home/a b/lib/libgomp-e985bcbb.so.1.0.0
7f1c00002000-7f1c00003000 rw-p 00002000 fe:00 42                         /home/a b/lib/libgomp-e985bcbb.so.1.0.0
7f1c00004000-7f1c00005000 r-xp 00000000 fe:00 43                         /opt/libgomp.so.1 (deleted)
7f1c00006000-7f1c00007000 rw-p 00000000 00:00 0
7ffd00000000-7ffd00001000 rw-p 00000000 00:00 0                          [stack]
"""
    assert gomp_files(maps) == ["/home/a b/lib/libgomp-e985bcbb.so.1.0.0", "/opt/libgomp.so.1 (deleted)"]
