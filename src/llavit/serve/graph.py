"""What the compiled graphs of the engine share: how weights are held, and slots as a cache inside a graph.

A graph holds the whole LLM. On a CPU it holds the weights in the order in which products of matrices read them
(inductor's freezing), a copy; norms, rotary embeddings and residuals are fused into few kernels.

Legend: b rows, h kv heads, l tokens, w positions that are looked at, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch

from llavit.precision import cpu_flags

MOST_COPIED = 4 << 30
"""Bytes of weights above which a CPU's graphs read them where they are, instead of holding a copy in another order."""

_COPYING = {"freezing": True, "cpp_wrapper": True}  # a copy of the weights; no Python between kernels

_PACKED = {**_COPYING, "cpp.enable_concat_linear": True}
"""The libraries' products; q, k, v in one, gate and up in another."""

_TILED = {
    **_COPYING,
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
    "cpp.enable_grouped_gemm_template": True,  # q, k, v in one pass, gate and up in another
}
"""Products that the compiler writes: in bfloat16 they have code for a matrix unit (AMX) only, else they compute in
float32, at a sixth of the libraries' speed."""


def has_matrix_unit(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies matrices of a dtype as such (AMX)."""
    return dtype is torch.bfloat16 and "amx_bf16" in cpu_flags()


def copying_weights(dtype: torch.dtype) -> dict[str, Any]:
    """Return inductor's settings under which graphs are made, and run, that hold copies of a CPU's weights.

    (Given as options of `torch.compile`, products of matrices would not be tuned.) Of an older torch, those it knows:
    they make graphs faster, not different.
    """
    from torch._inductor import config  # imports the compiler

    known = config.get_config_copy()
    wanted = _TILED if has_matrix_unit(dtype) else _PACKED
    return {key: value for key, value in wanted.items() if key in known}


def reading_weights() -> dict[str, Any]:
    """Return the settings for graphs that read a CPU's weights as they lie, for one row at a time."""
    from llavit.serve.one_row import ProductsAsReductions  # imports the compiler

    return {"cpp_wrapper": True, "joint_custom_post_pass": ProductsAsReductions()}


class Rows:
    """Rows of the slots as a cache, inside a graph: tensors only.

    Args:
        keys: of each layer, (b, h, length, d); written to.
        values: the same.
        write: puts (b, h, l, d) new keys or values into a layer's.
        w: positions that are looked at.
    """

    is_compileable = True

    def __init__(
        self,
        keys: list[torch.Tensor],
        values: list[torch.Tensor],
        write: Callable[[torch.Tensor, torch.Tensor], None],
        w: int,
    ):
        self.keys, self.values, self.write, self.w = keys, values, write, w

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write tokens' keys and values (b, h, l, d); return what the rows may see, (b, h, w, d)."""
        keys, values, rows = self.keys[layer_idx], self.values[layer_idx], len(key)
        self.write(keys, key)
        self.write(values, value)
        return keys[:rows, :, : self.w], values[:rows, :, : self.w]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing that the LLM need know of: positions and masks are given."""
        return 0


class Graph:
    """An LLM, its head, and how a graph of them is made.

    Args:
        model: a LLaViT or LLaVA, in evaluation mode.
        forward: what is compiled.
        attention: the attention implementation inside the graph, in place of sdpa.
        one_row: for one row only.

    Attributes:
        plain: the weights are on a CPU, and floating point: those in int8 are read as they are, by their own kernel.
    """

    def __init__(
        self,
        model: Any,
        forward: Callable[..., torch.Tensor],
        attention: str | None = None,
        *,
        one_row: bool = False,
    ):
        self.llm, self.head, self.dtype = model.get_decoder(), model.lm_head, model.dtype
        weights = [*self.llm.parameters(), *self.head.parameters()]
        self.plain = model.device.type == "cpu" and all(w.is_floating_point() for w in weights)
        self._settings: dict[str, Any] = {}
        if self.plain and one_row:
            self._settings = reading_weights()
        elif self.plain and sum(w.nbytes for w in weights) <= MOST_COPIED:
            self._settings = copying_weights(self.dtype)
        self._attention = attention if self.llm.config._attn_implementation == "sdpa" else None
        self._compiled = torch.compile(
            _with_own_code(forward), dynamic=False, options={"guard_filter_fn": _needed_guards}
        )

    def run(self, dynamic: list[torch.Tensor], *args: Any) -> torch.Tensor:
        """Run the graph, which is made first if need be.

        Args:
            dynamic: of the arguments, those whose first dimension may be any.
            *args: of `forward`.
        """
        for tensor in dynamic:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        with self._as_compiled(), torch._inductor.config.patch(self._settings):
            return self._compiled(*args)

    @contextmanager
    def _as_compiled(self) -> Iterator[None]:
        """Let the LLM have the graph's attention."""
        config, before = self.llm.config, self.llm.config._attn_implementation
        if self._attention:
            config._attn_implementation = self._attention
        try:
            yield
        finally:
            config._attn_implementation = before


def _needed_guards(guards: Any) -> list[bool]:
    """Choose what is checked before each run: the inputs, and torch's global state.

    Not the model, attribute by attribute, which takes a millisecond: it is the engine's, and its weights are in the
    graph.
    """
    return [
        guard.guard_type in ("SHAPE_ENV", "GLOBAL_STATE")
        or (guard.guard_type == "TENSOR_MATCH" and not isinstance(guard.value, torch.nn.Parameter))
        for guard in guards
    ]


def _with_own_code(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Give a method a code object of its own: graphs hang on it, and nothing checks whose model they were made of."""
    method: Any = forward
    plain = method.__func__
    own = FunctionType(
        plain.__code__.replace(), plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__
    )
    return MethodType(own, method.__self__)
