import subprocess
import sys

MB = 10**6
SCRIPT = """
import subprocess, sys, time
from llavit import peak
peak._EVERY = 0.05
with peak.peak_memory() as seen:
    time.sleep(0.2)
print(seen.bytes)
with peak.peak_memory() as seen:
    hold = "import sys; block = bytearray(400 * 10**6); print('up', flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    time.sleep(0.3)
    child.communicate()
print(seen.bytes)
block = bytearray(800 * 10**6)
del block
with peak.peak_memory() as seen:
    pass
print(seen.bytes)
"""


def test_the_peak_is_that_of_all_processes_and_misses_nothing_of_this_one():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    alone, with_child, after_a_large_block = map(int, done.stdout.split())
    assert 5 * MB < alone < 200 * MB
    assert 400 * MB < with_child - alone < 500 * MB  # the block, and an interpreter
    assert 750 * MB < after_a_large_block - alone < 850 * MB  # was gone before anybody looked
