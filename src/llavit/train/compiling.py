"""Compile the LLM's layers: kernels that fuse norms, activations and attention weights around the matrix products.

On a CPU with fast bfloat16 a step of the starter model is half again as fast; the first step of a stage takes some
tens of seconds longer. It needs a C++ compiler (on a GPU, Triton).
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, Literal

import torch

Compile = Literal["never", "auto", "always"]

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


def compile_layers(model: Any, wanted: Compile) -> bool:
    """Compile each layer of the LLM, in place; names of weights stay as they are.

    Rows of any length share one graph, and so do batches with any number of visual tokens.

    Args:
        model: a LLaViT.
        wanted: "auto" compiles where that works; "always" raises where it does not.

    Returns:
        whether the layers are compiled.

    Raises:
        RuntimeError: wanted is "always", and nothing can be compiled here; says why.

    Example:
        ```python
        compile_layers(model, "auto")
        ```
    """
    if wanted == "never":
        return False
    reason = why_not()
    if reason is not None:
        if wanted == "always":
            raise RuntimeError(
                f"compile: always, but torch.compile does not work here ({reason}); install a C++ compiler and "
                "Python's headers, or set compile: auto"
            )
        logger.info("layers are not compiled: %s", reason)
        return False
    for layer in model.get_decoder().layers:
        layer.compile(dynamic=True)
    return True
