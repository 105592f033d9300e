"""What the machine can do: products of matrices, and reading memory."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.speed.channel import Channel
from benchmarks.speed.pace import synchronise

SIDES_OF_SQUARES = (1024, 2048, 4096)
GIB = 2**30


def device() -> torch.device:
    """Give the accelerator, or the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def matmul_flops(side: int, dtype: torch.dtype, seconds: float) -> float:
    """Multiply square matrices again and again; give the FLOP/s of the fastest product.

    Args:
        side: of the squares.
        dtype: of the numbers.
        seconds: to go on for.
    """
    a = torch.randn(side, side, device=device()).to(dtype)
    b = torch.randn(side, side, device=device()).to(dtype)
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        synchronise()
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        synchronise()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def read_bytes_per_second(seconds: float, size: int = GIB) -> dict[str, float]:
    """Read more memory than any cache holds, in a few ways; give the bytes per second of each way's fastest pass.

    Args:
        seconds: to go on for, each way.
        size: bytes to read in a pass.
    """
    rows = size // (2 * 4096)
    weights = torch.ones(rows, 4096, dtype=torch.bfloat16, device=device())
    vector = torch.ones(4096, dtype=torch.bfloat16, device=device())
    words = weights.view(torch.int64).view(-1)
    floats = weights.view(torch.float32).view(-1)
    ways = {
        "bfloat16 matrix times vector": lambda: torch.mv(weights, vector),
        "sum of int64": lambda: words.sum(),
        "greatest of float32": lambda: floats.max(),
        "dot of float32 with itself": lambda: torch.dot(floats, floats),
    }
    found = {}
    for name, way in ways.items():
        way()
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            synchronise()
            began = time.perf_counter()
            way()
            synchronise()
            best = min(best, time.perf_counter() - began)
        found[name] = size / best
    return found


def side(spec: dict[str, Any], channel: Channel) -> None:
    """Measure when told to.

    Args:
        spec: seconds, of each measurement; quick: smaller matrices and less memory.
        channel: to the harness.
    """
    from llavit.precision import resolve_dtype

    dtype = resolve_dtype("auto")[0]
    sizes = SIDES_OF_SQUARES[:1] if spec["quick"] else SIDES_OF_SQUARES
    channel.ready(dtype=str(dtype), threads=torch.get_num_threads())
    for command in channel.commands():
        if command["do"] == "matmul":
            channel.send(flops={str(side): matmul_flops(side, dtype, spec["seconds"]) for side in sizes})
        else:
            size = GIB // 16 if spec["quick"] else GIB
            channel.send(bytes_per_second=read_bytes_per_second(spec["seconds"], size))
