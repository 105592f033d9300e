"""What to compute in: bfloat16 where the hardware multiplies it fast, else float32."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

_FAST_ON_CPU = ("amx_bf16", "avx512_bf16")


def resolve_dtype(wanted: str) -> tuple[torch.dtype, str]:
    """Choose the dtype to compute in.

    Args:
        wanted: "auto", "float32" or "bfloat16".

    Returns:
        the dtype, and the reason in a few words.

    Example:
        >>> resolve_dtype("float32")
        (torch.float32, 'as asked')
    """
    if wanted != "auto":
        return getattr(torch, wanted), "as asked"
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU multiplies bfloat16 natively"
        return torch.float32, "this GPU does not multiply bfloat16 natively"
    unit = next((flag for flag in _FAST_ON_CPU if flag in cpu_flags()), None)
    if unit is not None:
        return torch.bfloat16, f"this CPU multiplies bfloat16 natively ({unit})"
    return torch.float32, "this CPU does not multiply bfloat16 natively"


def resolve_frozen_dtype(wanted: str, computes_in: torch.dtype) -> torch.dtype:
    """Choose what frozen matrices are held in.

    Args:
        wanted: "auto", "float32" or "bfloat16".
        computes_in: dtype of the run, which is what "auto" takes.

    Example:
        >>> resolve_frozen_dtype("auto", torch.bfloat16), resolve_frozen_dtype("float32", torch.bfloat16)
        (torch.bfloat16, torch.float32)
    """
    return computes_in if wanted == "auto" else getattr(torch, wanted)


def resolve_attention(wanted: str, dtype: torch.dtype) -> str:
    """Choose the LLM's attention implementation.

    Args:
        wanted: "auto", or the name of one.
        dtype: what the model computes in.

    Returns:
        sdpa for "auto", but `documents` (`model/attention.py`) in bfloat16 on a CPU, where sdpa's backward pass is slow
        and padding costs most.

    Example:
        >>> resolve_attention("auto", torch.float32)
        'sdpa'
    """
    if wanted != "auto":
        return wanted
    return "documents" if dtype is torch.bfloat16 and not torch.accelerator.is_available() else "sdpa"


@cache
def cpu_flags() -> frozenset[str]:
    """Read the CPU's features, by Linux' names; empty where the system does not tell (then float32 is the safe choice).

    Example:
        >>> "bf16" in cpu_flags()  # not a flag by itself
        False
    """
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return frozenset()
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
