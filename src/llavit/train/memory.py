"""How much memory a training step takes: by running it on tensors that have shapes and no data.

Nothing is approximated by a formula: the model itself runs forward and backward under torch's `FakeTensorMode`, with
adapters, frozen parts, autocast and gradient checkpointing as in training, while each piece of memory that an
operation would take is counted until it is let go. What an allocator loses to fragmentation is not seen, nor what
libraries keep for themselves (a CUDA context takes some 0.5 GB).

Shapes: b rows, l tokens of a row, n images, k supervised tokens, d LLM width.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from llavit.model.adapters import add_lora
from llavit.model.compat import recompute_activations
from llavit.model.configuration import LlavitConfig
from llavit.model.loss import cross_entropy, floats_at_a_time
from llavit.model.modeling import LlavitForConditionalGeneration
from llavit.model.routing import VisualRoute
from llavit.precision import resolve_frozen_dtype
from llavit.train.lora import hold_frozen
from llavit.train.parts import freeze, parameters_by_part
from llavit.train.recipe import Stage

_NF4_BYTES = 0.516
"""Bytes of a 4-bit weight with its twice-quantised scales (QLoRA, arXiv 2305.14314: 4.127 bits)."""


@dataclass(frozen=True)
class Batch:
    """The shape of a micro-batch.

    Attributes:
        rows: number of sequences.
        length: tokens of each, visual ones included.
        images: images in all rows together.
        supervised: tokens with a label, in all rows together.
    """

    rows: int
    length: int
    images: int
    supervised: int


@dataclass(frozen=True)
class StepMemory:
    """Bytes that one process needs for a stage, without sharding.

    Attributes:
        weights: all parameters, as they are held.
        gradients: of what trains.
        optimizer: AdamW's two moments.
        activations: the most that is in use beside these three at once, in the forward or backward pass.
        parameters: numbers in each part of the model.
        trained: numbers that train in each part.
        largest_layer: numbers in the LLM's largest layer, for what sharding gathers at a time.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    parameters: dict[str, int]
    trained: dict[str, int]
    largest_layer: int

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        return self.weights + self.gradients + self.optimizer + self.activations


class MemoryCount(TorchDispatchMode):
    """Counts the bytes of all tensors that operations have made and that are still alive.

    Attributes:
        now: bytes at present.
        peak: the most so far.

    Example:
        >>> with MemoryCount() as memory:
        ...     kept = torch.zeros(100) + torch.zeros(100)
        >>> memory.now, memory.peak
        (400, 1200)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, result)
        return result

    def known(self, tensor: torch.Tensor) -> None:
        """Leave a tensor out of the count."""
        self._alive[tensor.untyped_storage()] = None

    def _see(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._alive:
            size = storage.nbytes()
            self._alive[storage] = weakref.finalize(storage, self._let_go, size)
            self.now += size
            self.peak = max(self.peak, self.now)
        return tensor

    def _let_go(self, size: int) -> None:
        self.now -= size


def step_memory(
    config: LlavitConfig,
    stage: Stage,
    batch: Batch,
    *,
    dtype: torch.dtype,
    attention: str = "sdpa",
    accumulates: bool = False,
    gathers: bool = False,
    device: str = "cuda",
) -> StepMemory:
    """Find the memory of a stage's training step.

    Args:
        config: of the model.
        stage: says what trains, adapters, dtype of frozen parts and gradient checkpointing.
        batch: shape of a micro-batch.
        dtype: to compute in.
        attention: the LLM's attention implementation.
        accumulates: a step has several micro-batches, so that the gradients of one are there while the next runs.
        gathers: the LLM's layers are cut up over processes (FSDP), and each is put together in `dtype` to run.
        device: type of the device to train on; the loss holds more at a time on a GPU than on a CPU.

    Raises:
        ImportError: the stage has adapters and peft is missing.
    """
    quantised: set[str] = set()
    with torch.device("meta"):
        model: Any = LlavitForConditionalGeneration._from_config(config, attn_implementation=attention)
        layers = [sum(p.numel() for p in layer.parameters()) for layer in model.get_decoder().layers]
        if stage.lora is not None:
            targets = None if stage.lora.targets == "auto" else stage.lora.targets
            add_lora(
                model, base="", rank=stage.lora.rank, alpha=1, dropout=stage.lora.dropout, targets=targets
            )
            if stage.lora.quantize == "nf4":
                quantised = {n for n, _ in model.named_parameters() if n.endswith(".base_layer.weight")}
    freeze(model, stage.learning_rates.by_part())
    hold_frozen(model, resolve_frozen_dtype(stage.frozen_dtype, dtype), computes_in=dtype)
    weights = sum(
        p.numel() * (_NF4_BYTES if n in quantised else p.element_size()) for n, p in model.named_parameters()
    )
    for name in quantised:  # what they are while they are multiplied; autocast makes no copy of them
        model.get_parameter(name).data = model.get_parameter(name).data.to(dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    if gathers:
        model.get_decoder().layers.to(dtype)
    if stage.gradient_checkpointing:
        recompute_activations(model)
        model.disable_input_require_grads()
    model.train()
    with FakeTensorMode(), _own_autocast_cache():
        _to_fake(model)
        parts = parameters_by_part(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        beside = sum(p.numel() * p.element_size() for p in trained)  # gradients, counted apart
        with MemoryCount() as memory:
            for tensor in (*model.parameters(), *model.buffers()):
                memory.known(tensor)
            if accumulates or gathers:
                for parameter in trained:
                    parameter.grad = torch.empty_like(parameter)
            _step(model, config, batch, dtype, floats_at_a_time(device))
    return StepMemory(
        weights=weights,
        gradients=gradients,
        optimizer=2 * gradients,
        activations=max(memory.peak - beside, 0),
        parameters={part: sum(p.numel() for p in members.values()) for part, members in parts.items()},
        trained={
            part: sum(p.numel() for p in members.values() if p.requires_grad)
            for part, members in parts.items()
        },
        largest_layer=max(layers),
    )


def _to_fake(model: Any) -> None:
    """Put fake tensors on the CPU, as far as the model knows, in the place of those on the meta device."""
    fakes: dict[int, torch.Tensor] = {}  # tied weights stay tied
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is None:
                    continue
                if id(tensor) not in fakes:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    fakes[id(tensor)] = (
                        torch.nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                    )
                kind[name] = fakes[id(tensor)]


@contextlib.contextmanager
def _own_autocast_cache() -> Iterator[None]:
    """Empty autocast's cache of weights afterwards: fake ones must not outlive their mode."""
    try:
        yield
    finally:
        torch.clear_autocast_cache()


def _step(model: Any, config: LlavitConfig, batch: Batch, dtype: torch.dtype, loss_piece: int) -> None:
    """Run one micro-batch forward and backward, its loss in pieces of so many logits.

    [Contract] with `LlavitForConditionalGeneration.forward`: the same operations, but which tokens are visual and
    supervised is given by number, as fake tensors have no values to look at.
    """
    rows, length = batch.rows, batch.length
    visual = batch.images * config.image_seq_length
    side = math.isqrt(config.image_seq_length) * config.tower.patch_size
    ids_bl = torch.zeros(rows, length, dtype=torch.long)
    order = torch.zeros(rows * length, dtype=torch.long)
    supervised_k = torch.zeros(batch.supervised, dtype=torch.long)
    kwargs: dict[str, Any] = {}
    if config.bidirectional_visual_attention and visual:
        kwargs["attention_mask"] = torch.ones(rows, 1, length, length, dtype=torch.bool)
    if config.visual_qkv:
        kwargs["visual_route"] = VisualRoute(order, order.clone(), rows * length - visual)
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        embeds_bld = model.get_input_embeddings()(ids_bl)
        if batch.images:
            pixels = torch.zeros(batch.images, config.tower.num_channels, side, side)
            images = model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
            features_vd = torch.cat(list(images)).to(embeds_bld.dtype)
            visual_bl1 = torch.zeros(rows, length, 1, dtype=torch.bool)
            embeds_bld = embeds_bld.masked_scatter(visual_bl1, features_vd)
            del images, features_vd
        hidden_bld = model.get_decoder()(
            inputs_embeds=embeds_bld, use_cache=False, **kwargs
        ).last_hidden_state
        hidden_kd = hidden_bld.flatten(0, 1).index_select(0, supervised_k)
        del embeds_bld, hidden_bld
        logits_kv = model.lm_head(hidden_kd)
        loss = cross_entropy(logits_kv, supervised_k, piece=loss_piece)
        del hidden_kd, logits_kv
    loss.backward()
