"""int8 weights for the LLM: half the memory of bfloat16, and half the bytes to read for each decoded token.

Weight-only: a row of a weight becomes int8 numbers and one scale, `w = scale * int8`; activations stay as they are.
Every linear layer of the LLM takes part, of text and of visual tokens alike, and the head. Embeddings take part where
they are the head's weight as well. Tower, projector and norms stay in floating point.

A saved model says so in its config.json (`quantization_config`), and `from_pretrained` gives it back as it was.
For weights in bfloat16 numbers and scales are those of torchao's Int8WeightOnlyConfig. docs/int8.md says why torchao
itself is not used.

Shapes: n tokens, d input width, o output width.
"""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "llavit_int8"
"""`quant_method` in config.json."""

_KERNEL_ROWS = (
    8  # torch's int8 kernel reads the weights once per row: beyond this, bfloat16 matrix products are faster
)
_KERNEL_WIDTH = 32  # it computes nonsense where the width is no multiple
_ALIGNMENT = 64  # bytes; it reads aligned words, and a weight that lies elsewhere can end the process
_SCALE = re.compile("weight$")


def quantize_rows(weight_od: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a weight to int8, symmetrically, with one scale for each row.

    Args:
        weight_od: (o, d), of any floating type.

    Returns:
        (o, d) int8 and (o,) scales of the weight's type, all of which bfloat16 can hold.

    Example:
        >>> numbers, scale = quantize_rows(torch.tensor([[0.5, -1.27], [0.0, 0.0]]))
        >>> numbers.tolist()
        [[50, -127], [0, 0]]
        >>> torch.allclose(numbers * scale[:, None], torch.tensor([[0.5, -1.27], [0.0, 0.0]]), atol=0.005)
        True
    """
    weight = weight_od.detach().float()
    largest = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.bfloat16).tiny * 127)
    # The scale is rounded first and the numbers to it, so that no row is longer or shorter as a whole.
    scale = (largest / 127).bfloat16()
    numbers = (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
    return numbers, scale.to(weight_od.dtype)


class Int8Linear(nn.Module):
    """A linear layer whose weight is int8.

    Attributes:
        weight: (o, d) int8.
        scale: (o,) of the type to compute in.
        bias: (o,) or None.

    Example:
        >>> linear = nn.Linear(32, 3)
        >>> x = torch.ones(1, 32)
        >>> torch.allclose(Int8Linear.from_float(linear)(x), linear(x), atol=0.02)
        True
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, device: Any):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = _frozen(torch.empty(out_features, in_features, dtype=torch.int8, device=device))
        self.scale = _frozen(torch.empty(out_features, dtype=dtype, device=device))
        self.bias = _frozen(torch.empty(out_features, dtype=dtype, device=device)) if bias else None

    @classmethod
    def like(cls, linear: nn.Linear) -> Int8Linear:
        """Make one of the same shape, to be filled."""
        weight = linear.weight
        return cls(
            linear.in_features, linear.out_features, linear.bias is not None, weight.dtype, weight.device
        )

    @classmethod
    def from_float(cls, linear: nn.Linear) -> Int8Linear:
        """Quantise a linear layer."""
        made = cls.like(linear)
        made.weight.data, made.scale.data = quantize_rows(linear.weight)
        if made.bias is not None:
            made.bias.data = linear.bias.detach()
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute (..., d) -> (..., o)."""
        scale = self.scale.to(x.dtype)
        rows = x.numel() // self.in_features
        if x.device.type == "cpu" and 0 < rows <= _KERNEL_ROWS and self._suits_kernel():
            flat = x.reshape(rows, self.in_features)
            y = torch.ops.aten._weight_int8pack_mm(flat, self.weight, scale)
            y = y.view(*x.shape[:-1], self.out_features)
        else:
            y = nn.functional.linear(x, self.weight.to(x.dtype)) * scale
        return y if self.bias is None else y + self.bias

    def _suits_kernel(self) -> bool:
        if self.in_features % _KERNEL_WIDTH:
            return False
        # A compiler knows no addresses; `_settle` has seen to them.
        return torch.compiler.is_compiling() or self.weight.data_ptr() % _ALIGNMENT == 0

    def extra_repr(self) -> str:
        """Describe the layer as `nn.Linear` does."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class Int8Embedding(nn.Module):
    """Embeddings in int8, which an `Int8Linear` head can share.

    Args:
        vocabulary: number of rows.
        width: of each.
        dtype: of what it gives.
        device: where it is.
        multiplier: what the family multiplies embeddings by (Gemma).

    Attributes:
        weight: (vocabulary, width) int8.
        scale: (vocabulary,).
    """

    def __init__(self, vocabulary: int, width: int, dtype: torch.dtype, device: Any, multiplier: float = 1.0):
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.multiplier = vocabulary, width, multiplier
        self.weight = _frozen(torch.empty(vocabulary, width, dtype=torch.int8, device=device))
        self.scale = _frozen(torch.empty(vocabulary, dtype=dtype, device=device))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up (...,) ids: (..., width)."""
        scale = self.scale[ids].unsqueeze(-1)
        embedded = self.weight[ids].to(scale.dtype) * scale
        if self.multiplier == 1.0:
            return embedded
        return embedded * torch.tensor(self.multiplier, dtype=scale.dtype, device=scale.device)


def quantize_int8(model: Any) -> Any:
    """Make the LLM's weights int8, in place: linear layers, the head, and embeddings that are tied to it.

    Args:
        model: a `LlavitForConditionalGeneration` without adapters, in a floating type.

    Returns:
        the model; `save_pretrained` writes it as it is, `from_pretrained` gives it back.

    Raises:
        ValueError: it is quantised already, or has adapters.

    Example:
        ```python
        model, processor = load_model("runs/demo/instruct", quantize="int8")
        ```
    """
    if getattr(model, "is_quantized", False):
        raise ValueError("expected a model that is not quantised, got one that is")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError("expected a model without adapters: merge_adapters first, then quantise")
    install_int8(model, fill=True)
    _settle(model)
    model.config.quantization_config = Int8Config()
    model.hf_quantizer = Int8Quantizer(model.config.quantization_config)
    model.is_quantized, model.quantization_method = True, METHOD
    return model


def is_int8(model: nn.Module) -> bool:
    """Say whether a model has int8 weights."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


@torch.no_grad()
def install_int8(model: Any, *, fill: bool) -> None:
    """Put int8 layers where the LLM's linear layers, its head and its tied embeddings are.

    Args:
        model: with or without a head.
        fill: from the weights; otherwise a loader does it.
    """
    make = Int8Linear.from_float if fill else Int8Linear.like
    decoder = model.get_decoder()
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, make(child))
    head = model.get_output_embeddings()
    tied = model.config.tie_word_embeddings
    if tied:
        embeddings = decoder.get_input_embeddings()
        multiplier = _multiplier(embeddings)
        if multiplier is None:
            return  # embeddings that we do not know: they and the head stay as they are
        weight = embeddings.weight
        vocabulary, width = weight.shape
        made = Int8Embedding(vocabulary, width, weight.dtype, weight.device, multiplier)
        if fill:
            made.weight.data, made.scale.data = quantize_rows(weight)
        decoder.set_input_embeddings(made)
    if type(head) is not nn.Linear:
        return
    if not tied:
        model.lm_head = make(head)
        return
    model.lm_head = Int8Linear.like(head)
    model.lm_head.weight, model.lm_head.scale = made.weight, made.scale
    # The scales are tied as the weights are, for loading and for saving.
    for tied_keys in ("_tied_weights_keys", "all_tied_weights_keys"):
        keys = dict(getattr(model, tied_keys))
        setattr(model, tied_keys, keys | {"lm_head.scale": _SCALE.sub("scale", keys["lm_head.weight"])})


def _multiplier(embeddings: nn.Module) -> float | None:
    """What embeddings are multiplied by; None for a kind that we do not know."""
    if type(embeddings) is nn.Embedding:
        return 1.0
    return getattr(embeddings, "scalar_embed_scale", None)


def _settle(model: nn.Module) -> None:
    """Move weights on a CPU out of the mapped file that loading left them in.

    There they lie at any address, and what was read of the file counts as memory as long as one of them is left. They
    are views of it, and remain that when their `data` is replaced: the parameters themselves must be new.
    """
    moved: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is None or old.device.type != "cpu":
                continue
            if old not in moved:
                moved[old] = nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
                moved[old].__dict__.update(old.__dict__)
            module._parameters[name] = moved[old]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type == "cpu":
                module._buffers[name] = buffer.clone()
    moved.clear()
    _trim()


def _trim() -> None:
    """Give freed memory back to the system; the C library of Linux keeps it where smaller pieces are in between."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


@dataclass
class Int8Config(QuantizationConfigMixin):
    """What config.json says of a model with int8 weights; given to `from_pretrained`, it makes one.

    Example:
        >>> Int8Config().to_dict()
        {'quant_method': 'llavit_int8'}
    """

    quant_method: Any = METHOD


class Int8Quantizer(HfQuantizer):
    """Lets transformers load and save models with int8 weights."""

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if self.pre_quantized:
            install_int8(model, fill=False)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            install_int8(model, fill=True)
        _settle(model)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Whether it can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether it can be trained: rounding has no gradient."""
        return False

    @property
    def is_compileable(self) -> bool:
        """Whether it can be compiled."""
        return True


def register_int8() -> None:
    """Make transformers know our int8 models; may be called again."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(Int8Config)
        register_quantizer(METHOD)(Int8Quantizer)
