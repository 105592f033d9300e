"""Whether to compile: torch.compile needs a C++ compiler (on a GPU, Triton)."""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

import torch

Compile = Literal["never", "auto", "always"]
"""Run as it is; compile where that works; or fail where it does not."""

logger = logging.getLogger(__name__)


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


def can_compile(wanted: Compile) -> bool:
    """Decide whether to compile; where that is wanted and does not work, say so once.

    Args:
        wanted: "auto" compiles where that works; "always" raises where it does not.

    Raises:
        RuntimeError: wanted is "always", and nothing can be compiled here; says why.

    Example:
        >>> can_compile("never")
        False
    """
    if wanted == "never":
        return False
    reason = why_not()
    if reason is not None:
        if wanted == "always":
            raise RuntimeError(
                f"compile: always, but torch.compile does not work here ({reason}); install a C++ compiler and "
                "Python's headers (and on a GPU Triton), or set compile: auto"
            )
        _say_once(f"layers are not compiled: {reason}")
    return reason is None


@cache
def _say_once(text: str) -> None:
    logger.warning(text)
