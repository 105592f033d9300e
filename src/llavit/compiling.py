"""Whether torch.compile works on this machine: it needs a C++ compiler (on a GPU, Triton)."""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch

Compile = Literal["never", "auto", "always"]
"""Run as it is; compile where that works; or fail where it does not."""


@cache
def why_not() -> str | None:
    """Compile a small function; return what went wrong, in a line, or None if it works.

    Example:
        >>> why_not() is None or isinstance(why_not(), str)
        True
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    try:
        torch.compile(lambda x: torch.nn.functional.silu(x) * x.square(), dynamic=True)(
            torch.ones(4, 32, device=device)
        )
    except Exception as error:  # whatever a compiler that is missing or broken raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return None
