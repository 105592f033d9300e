"""What the compiled graphs of the engine share: how weights are held, and slots as a cache inside a graph.

A graph holds the whole LLM. On a CPU it holds the weights in the order in which the matrix unit reads them (inductor's
freezing), a copy; norms, rotary embeddings and residuals are fused into few kernels.

Legend: b rows, h kv heads, l tokens, w positions that are looked at, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch

MOST_COPIED = 4 << 30
"""Bytes of weights above which a CPU's graphs read them where they are, instead of holding a copy in another order."""

_COPYING = {
    "freezing": True,
    "cpp_wrapper": True,  # no Python between kernels
    "max_autotune": True,
    "max_autotune_gemm_backends": "CPP,ATEN",
    "cpp.enable_grouped_gemm_template": True,  # q, k, v in one pass, gate and up in another
}


def copying_weights(copies: bool) -> Any:
    """Return a context in which graphs are made, and run, that hold copies of weights; or one that changes nothing.

    (Given as options of `torch.compile`, products of matrices would not be tuned.)
    """
    return torch._inductor.config.patch(_COPYING if copies else {})


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
    """

    def __init__(self, model: Any, forward: Callable[..., torch.Tensor], attention: str | None = None):
        self.llm, self.head, self.dtype = model.get_decoder(), model.lm_head, model.dtype
        weights = [*self.llm.parameters(), *self.head.parameters()]
        self.copies = (
            model.device.type == "cpu"
            and sum(w.nbytes for w in weights) <= MOST_COPIED
            and all(w.is_floating_point() for w in weights)  # int8 ones are read as they are
        )
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
        with self._settings():
            return self._compiled(*args)

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """What holds while the graph is made and run."""
        config, before = self.llm.config, self.llm.config._attn_implementation
        if self._attention:
            config._attn_implementation = self._attention
        try:
            with copying_weights(self.copies):
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
