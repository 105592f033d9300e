"""Compile the LLM's layers: kernels that fuse norms, activations and attention weights around the matrix products.

On a CPU with fast bfloat16 a step of the starter model is half again as fast; the first step of a stage takes some
tens of seconds longer. It needs a C++ compiler (on a GPU, Triton).
"""

from __future__ import annotations

from typing import Any

from llavit.compiling import Compile, can_compile

_NO_SECOND_ROUTE = "skip_fwd_side_effects_in_bwd_under_checkpoint"

_GRAPHS = 64
"""Of one function, beyond which dynamo runs it as it is. A stage has some: for the first layer and for the others, with
a mask and without, for one row and for several. The next stage has as many, and torch stops at 8 by itself."""


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
    compiles = can_compile(wanted)
    if compiles:
        # Attention hands the route to its projections (`routing.py`). Where gradient checkpointing runs a layer again,
        # the route is an input of its graph; without this dynamo gives up on such layers and runs them as they are.
        from torch._dynamo import config

        if hasattr(config, _NO_SECOND_ROUTE):  # not in older versions of torch
            setattr(config, _NO_SECOND_ROUTE, True)
        config.recompile_limit = max(config.recompile_limit, _GRAPHS)
        for layer in model.get_decoder().layers:
            layer.compile(dynamic=True)
    return compiles
