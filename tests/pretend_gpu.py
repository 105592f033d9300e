"""Tensors that say they are on a GPU, on a machine that has none: their numbers are on the CPU, the rules are a GPU's.

Inside `pretend_gpu()` there is a device cuda:0. An operation that mixes its tensors with the CPU's raises, as on a GPU,
and so does `numpy()` of one. What makes the program wait for the GPU (a value read back, an index by a mask, a copy to
the CPU) is counted with the line that did it. Kernels are the CPU's: nothing is learned of CUDA's own.

To torch's C++ these tensors are wrappers on the CPU, as a build without CUDA runs no backward pass for others.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
_aten = torch.ops.aten

_WRITES_AT = {_aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_TAKES_AT = {_aten.index.Tensor, *_WRITES_AT}
_MIXES = {_aten.copy_.default, _aten._to_copy.default, *_TAKES_AT}
"""What takes tensors of both devices."""

_WAITS = {
    _aten._local_scalar_dense.default,
    _aten._unique2.default,
    _aten.bincount.default,
    _aten.equal.default,
    _aten.masked_select.default,
    _aten.nonzero.default,
    _aten.repeat_interleave.Tensor,
    _aten.unique_consecutive.default,
    _aten.unique_dim.default,
}
"""What the program waits for, as the result's size or value must be known."""

_pretences: list[Pretence] = []


class OnGpu(torch.Tensor):
    """A tensor that pretends; `held` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=held.device,
        )

    def __init__(self, held: torch.Tensor):
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} of a pretended tensor, outside of pretend_gpu()")

    def to(self, *args: Any, **kwargs: Any) -> Any:
        copy = kwargs.pop("copy", False)
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        named = any(isinstance(value, str | torch.device) for value in (*args, kwargs.get("device")))
        leaves = (
            named and device is not None and device.type == "cpu"
        )  # a tensor's own device is not seen here
        dtype = dtype or self.dtype
        if not leaves and dtype == self.dtype and not copy:
            return self
        pretence = _pretences[-1]
        pretence.leaves = leaves
        try:
            return _aten._to_copy.default(
                self, dtype=dtype, device="cpu" if leaves else GPU, memory_format=memory_format
            )
        finally:
            pretence.leaves = False

    def cpu(self, *args: Any, **kwargs: Any) -> Any:
        return self.to("cpu")

    def cuda(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def tolist(self) -> Any:
        _pretences[-1].wait("tolist")
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy: copy it to the CPU first")

    __array__ = numpy


class Pretence(TorchDispatchMode):
    """Runs operations of pretended tensors on what they hold.

    Attributes:
        waits: how often the program waited, by operation and line.
        leaves: whether the present operation is a copy to the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.leaves = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        pretended = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
        wanted = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if func in _TAKES_AT:
            self._check_index(func, args)
        elif pretended and func not in _MIXES:
            # a number on the CPU may stand beside tensors on a GPU
            strange = [tuple(t.shape) for t in tensors if not isinstance(t, OnGpu) and t.ndim]
            if strange:
                raise RuntimeError(f"{func}: expected all tensors on cuda:0, found shapes {strange} on cpu")
        # Options that torch's C++ takes over from a tensor say CPU: only `to` and `copy_` leave the GPU.
        stays = bool(pretended) and not self.leaves
        if func is _aten.copy_.default:
            stays = isinstance(args[0], OnGpu)
        if pretended and (func in _WAITS or not stays):
            self.wait(str(func))
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
            stays = stays or wanted.type == "cuda"
        if "pin_memory" in kwargs:
            kwargs["pin_memory"] = None
        held = tree_map(lambda leaf: leaf.held if isinstance(leaf, OnGpu) else leaf, (args, kwargs))
        result = func(*held[0], **held[1])
        if not stays:
            return result
        known = {id(tensor.held): tensor for tensor in pretended}  # of operations in place

        def outside(leaf: Any) -> Any:
            return (
                leaf
                if not isinstance(leaf, torch.Tensor)
                else known[id(leaf)]
                if id(leaf) in known
                else OnGpu(leaf)
            )

        return tree_map(outside, result)

    def _check_index(self, func: Any, args: Any) -> None:
        there = isinstance(args[0], OnGpu)
        for index in args[1]:
            if index is None:
                continue
            if isinstance(index, OnGpu) and not there:
                raise RuntimeError(f"{func}: an index on cuda:0 into a tensor on cpu")
            if there and (not isinstance(index, OnGpu) or index.dtype in (torch.bool, torch.uint8)):
                self.wait(f"{func} by a mask" if isinstance(index, OnGpu) else f"{func} by an index on cpu")
        if func in _WRITES_AT and isinstance(args[2], OnGpu) != there and args[2].ndim:
            raise RuntimeError(f"{func}: values on another device than what they are written to")

    def wait(self, what: str) -> None:
        """Note that the program waits, and in which line of it."""
        own = next(
            (
                frame
                for frame in reversed(traceback.extract_stack())
                if "/torch/" not in frame.filename and frame.filename != __file__
            ),
            None,
        )
        where = f"{'/'.join(Path(own.filename).parts[-2:])}: {own.line}" if own else "somewhere"
        self.waits[f"{what} in {where}"] += 1


@contextlib.contextmanager
def pretend_gpu() -> Iterator[Pretence]:
    """Let there be a device cuda:0 in the block."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(
        True
    )  # torch.tensor(..., device=) makes a tensor first, and moves it then
    generator, replaced = torch.Generator, torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `module.to` then makes new parameters
    with (
        mock.patch.object(torch.cuda, "_lazy_init", lambda: None),
        mock.patch.object(torch.cuda, "is_available", lambda: True),
        mock.patch.object(torch, "Generator", lambda device=None: generator()),
        mock.patch.object(torch, "autocast", _autocast),
        mock.patch.object(torch.amp, "autocast", _autocast),
        mock.patch.object(torch, "is_autocast_enabled", _is_autocast_enabled),
        mock.patch.object(torch, "get_autocast_dtype", lambda device_type: _DTYPE("cpu")),
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention),
        torch.autograd.set_multithreading_enabled(False),
        Pretence() as pretence,
    ):
        _pretences.append(pretence)
        try:
            yield pretence
        finally:
            _pretences.pop()
            torch._C._set_only_lift_cpu_tensors(before)
            torch.__future__.set_overwrite_module_params_on_conversion(replaced)


def move(module: torch.nn.Module) -> torch.nn.Module:
    """Move a module to the pretended GPU, in place; tied weights stay tied."""
    moved: dict[int, Any] = {}
    for each in module.modules():
        for kind in (each._parameters, each._buffers):
            for name, old in kind.items():
                if old is None:
                    continue
                if id(old) not in moved:
                    new = OnGpu(old.detach())
                    moved[id(old)] = (
                        torch.nn.Parameter(new, old.requires_grad)
                        if isinstance(old, torch.nn.Parameter)
                        else new
                    )
                kind[name] = moved[id(old)]
    return module


_ENABLED, _DTYPE = torch.is_autocast_enabled, torch.get_autocast_dtype


@contextlib.contextmanager
def _autocast(
    device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None
) -> Iterator[None]:
    """Autocast of the CPU plays that of the GPU; asked for by its own name, it does nothing, as on a GPU."""
    if device_type != "cuda":
        yield
        return
    before = _ENABLED("cpu"), _DTYPE("cpu")
    torch.set_autocast_enabled("cpu", enabled)
    torch.set_autocast_dtype("cpu", dtype or before[1])
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cpu", before[0])
        torch.set_autocast_dtype("cpu", before[1])


def _is_autocast_enabled(device_type: str = "cuda") -> bool:
    return device_type == "cuda" and _ENABLED("cpu")


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attend step by step: torch's own asks CUDA which kernel to take. Its conditions are checked."""
    if _is_autocast_enabled(query.device.type):
        dtype = _DTYPE("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    if not query.dtype == key.dtype == value.dtype or (
        attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype)
    ):
        raise RuntimeError(
            "attention: expected query, key, value and a mask that is not bool to have one dtype"
        )
    if is_causal and attn_mask is not None:
        raise RuntimeError("attention: expected a mask or is_causal, got both")
    with _autocast("cuda", enabled=False):
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
        elif attn_mask is not None:
            scores = scores + attn_mask
        return torch.nn.functional.dropout(scores.softmax(-1), dropout_p) @ value
