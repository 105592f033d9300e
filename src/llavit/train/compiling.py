"""Compile the LLM's layers: kernels that fuse norms, activations and attention weights around the matrix products.

On a CPU with fast bfloat16 a step of the starter model is half again as fast; the first step of a stage takes some
tens of seconds longer. It needs a C++ compiler (on a GPU, Triton).
"""

from __future__ import annotations

import logging
from typing import Any

from llavit.compiling import Compile, why_not

logger = logging.getLogger(__name__)


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
