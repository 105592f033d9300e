import pytest

from llavit.train import freeing
from llavit.train.run import train
from tests.processes import printed

# Blocks that stay keep the ones between them, once these are free, from going back to the system by themselves.
SCRIPT = """
import ctypes, sys
from llavit.train.freeing import trim_heap

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 // 10**6

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
blocks = []
for _ in range(4000):
    for size in (100_000, 5_000):
        blocks.append(libc.malloc(size))
        ctypes.memset(blocks[-1], 1, size)
full = resident()
for block in blocks[::2]:
    libc.free(block)
freed = resident()
trim_heap()
print(full, freed, resident())
"""


FAULTS = """
import resource
import numpy as np
from llavit.train.freeing import held_heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(2**26, dtype=np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
with held_heap():
    faults()
    held = faults()
print(before, held, faults())
"""


@pytest.mark.skipif(
    not freeing.trim_heap(), reason="the C library is not glibc, which is what keeps free pages"
)
def test_the_heap_gives_back_what_lies_free_between_blocks_in_use():
    full, freed, trimmed = map(int, printed(SCRIPT).split())
    assert full - freed < 50  # of 400 MB: this is what training meets without
    assert freed - trimmed > 300


@pytest.mark.skipif(
    not freeing.trim_heap(), reason="the C library is not glibc, which is what gives pages back"
)
def test_pages_of_freed_blocks_stay_while_the_heap_is_held():
    before, held, after = map(int, printed(FAULTS).split())
    assert held < before / 10
    assert after > before / 2  # and go back to the system again afterwards


def test_a_stage_trims_the_heap_now_and_then_and_at_its_end(tiny, tmp_path, monkeypatch):
    trims = []
    monkeypatch.setattr(freeing, "TRIM_EVERY", 2)
    monkeypatch.setattr(freeing, "trim_heap", lambda: trims.append(None))
    train(tiny.recipe(), output=tmp_path, progress=False)
    assert len(trims) == 4 // 2 + 1 + 2 // 2 + 1  # steps of both stages, and their ends


def test_a_gpu_gets_back_what_torch_keeps_between_stages(monkeypatch):
    emptied = []
    monkeypatch.setattr(freeing.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(freeing.torch.cuda, "empty_cache", lambda: emptied.append(True))
    freeing.free_memory()
    assert emptied
