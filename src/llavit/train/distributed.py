"""Many processes: what each of them takes of a step, how FSDP2 cuts a model up, and what they agree on.

Processes are started by `torchrun` (or `accelerate launch` with `launch/accelerate.yaml`, or one by one with `RANK`
and `WORLD_SIZE` set). How they share the work is a recipe's `parallel`:

    ddp      every process holds the whole model
    fsdp2    weights, gradients and optimizer are cut into one part per process (torch's `fully_shard`)
    zero2    DeepSpeed: gradients and optimizer are cut
    zero3    DeepSpeed: weights as well

DDP and FSDP2 compute the same and write the same checkpoints, which load in any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.data import Sampler
from transformers import PreTrainedModel

from llavit.train.store import reading

T = TypeVar("T")

LAUNCH = Path(__file__).parent / "launch"
"""Configurations of DeepSpeed, one file for each way, and of `accelerate launch`; made to be copied."""


def world_size() -> int:
    """Give the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Say whether this is the process that writes and prints; alone, it is."""
    return os.environ.get("RANK", "0") == "0"


def of_first_process(value: T) -> T:
    """Give all processes what the first one has; all of them must call it.

    Example:
        >>> of_first_process([3])
        [3]
    """
    if world_size() == 1:
        return value
    values = [value]
    broadcast_object_list(values)
    return values[0]


def check_launcher() -> None:
    """Refuse what a configuration of `accelerate launch` asks for besides processes: the recipe says it.

    Raises:
        ValueError: it asks for FSDP, DeepSpeed or mixed precision; names the recipe's key in its place.

    Example:
        >>> check_launcher()
    """
    asked = {
        "FSDP": (_is_set("ACCELERATE_USE_FSDP"), "parallel: fsdp2"),
        "DeepSpeed": (_is_set("ACCELERATE_USE_DEEPSPEED"), "parallel: zero2 or zero3"),
        "mixed precision": (os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no", "dtype: bfloat16"),
    }
    for what, (wanted, key) in asked.items():
        if wanted:
            raise ValueError(
                f"accelerate's configuration asks for {what}, which is the recipe's to say ({key}). Start the "
                f"processes with torchrun, or with accelerate launch --config_file {LAUNCH / 'accelerate.yaml'}"
            )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes", "on", "y", "t")


def leave() -> None:
    """Leave the group of processes, if there is one; for the end of a program that all of them reach.

    Not for after an error: the others are in the middle of a step, and leaving may wait for them. The process just
    ends then, and who started it ends the others.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def deepspeed_config(parallel: str) -> str | None:
    """Give the path of DeepSpeed's configuration for `zero2` and `zero3`.

    Returns:
        the path; None for the ways without DeepSpeed, and for a single process, which has nothing to share.

    Raises:
        ImportError: DeepSpeed is not installed.
        ValueError: ACCELERATE_USE_CPU is set, with which accelerate would train with DDP in its place.

    Example:
        >>> deepspeed_config("fsdp2") is None
        True
    """
    if not parallel.startswith("zero"):
        return None
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"parallel: {parallel} needs DeepSpeed: pip install 'llavit[deepspeed]'; fsdp2 does the same without it"
        ) from error
    if world_size() == 1:
        return None
    if _is_set("ACCELERATE_USE_CPU"):
        raise ValueError(
            f"parallel: {parallel} with ACCELERATE_USE_CPU set: accelerate would leave DeepSpeed out and train with "
            "DDP. Unset it (DS_ACCELERATOR=cpu is DeepSpeed's own way to say it), or set parallel: fsdp2"
        )
    return str(LAUNCH / f"{parallel}.json")


def forget_deepspeed() -> None:
    """End a stage with DeepSpeed: with ZeRO-3 still in force, the next stage's model would be loaded in pieces."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # accelerate's own note of it, which outlives the stage


class StepShares(Sampler[list[int]]):
    """Gives one process its micro-batches, out of an order of samples that all processes know.

    A step takes the next `batch_size` samples, whatever the number of processes: they are dealt out in
    micro-batches, one process after the other. Each process gets equally many. In a last step that is not full some
    are smaller or empty; no sample is taken twice to fill them up.

    Args:
        order: indices of the samples.
        batch_size: samples per step, over all processes.
        micro_batch_size: samples per micro-batch.
        rank: which process.
        processes: how many there are.

    Example:
        >>> [list(StepShares(range(10), 8, 2, rank=rank, processes=2)) for rank in (0, 1)]
        [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], []]]
    """

    def __init__(self, order: Any, batch_size: int, micro_batch_size: int, *, rank: int, processes: int):
        self.order, self.batch_size, self.micro = order, batch_size, micro_batch_size
        self.rank, self.processes = rank, processes

    def _micro_batches(self, samples: int) -> int:
        """Count one process's micro-batches in a step of so many samples."""
        return -(-samples // (self.micro * self.processes))

    def __len__(self) -> int:
        steps, rest = divmod(len(self.order), self.batch_size)
        return steps * self._micro_batches(self.batch_size) + self._micro_batches(rest)

    def __iter__(self) -> Iterator[list[int]]:
        step: list[int] = []
        for index in self.order:
            step.append(index)
            if len(step) == self.batch_size:
                yield from self._share(step)
                step = []
        yield from self._share(step)

    def _share(self, step: list[int]) -> Iterator[list[int]]:
        for number in range(self._micro_batches(len(step))):
            start = (number * self.processes + self.rank) * self.micro
            yield step[start : start + self.micro]


def shard(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> None:
    """Cut a model up over all processes with FSDP2, in place.

    Each layer of the LLM is a unit: its weights are gathered when it runs and let go afterwards. So are embeddings
    and head, where they are not tied. The rest is the root unit, which stays gathered from the forward to the
    backward pass. A vision tower that trains is cut up in the same way; a frozen one stays whole, as it is small and
    a process without images then need not run it for the others' sake.

    Args:
        model: a LLaViT, with the same weights in every process and on any device; they move to `device` unit by unit.
        device: of this process.
        dtype: to compute in. bfloat16 gathers the layers' weights as such (gradients are still summed in float32);
            inputs are left to autocast, so that numbers are those of DDP.

    Example:
        ```python
        shard(model, torch.device("cuda", 0), torch.bfloat16)
        ```
    """
    parts: Any = model.base_model
    tower = parts.vision_tower
    whole = set(tower.parameters())
    if any(parameter.requires_grad for parameter in whole):
        whole = set()
    else:
        tower.to(device)
    as_it_is: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (torch.distributed.get_world_size(),)),
        "mp_policy": MixedPrecisionPolicy(cast_forward_inputs=False),
        "ignored_params": whole,
    }
    layer = dict(as_it_is)
    if dtype is torch.bfloat16:
        layer["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for module in _layers(parts.language_model if whole else model):
        fully_shard(module, **layer)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embeddings.weight is not head.weight:
        fully_shard(embeddings, **as_it_is)
        fully_shard(head, **as_it_is)
    fully_shard(model, **as_it_is)


def _layers(model: nn.Module) -> Iterable[nn.Module]:
    """Find the transformer layers: the members of the outermost module lists."""
    for child in model.children():
        yield from child if isinstance(child, nn.ModuleList) else _layers(child)


# A checkpoint is the same whoever writes it: a model's folder, and the optimizer's state by parameter name.


def full_weights(model: nn.Module) -> dict[str, Any]:
    """Collect a sharded model's weights in the first process; all processes must call it.

    Returns:
        name to tensor on the CPU; empty in the other processes.
    """
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def untied(model: nn.Module, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the second names of tied weights, which a model's folder does not hold."""
    once = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
    return {name: tensor for name, tensor in weights.items() if name not in tied}


def save_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Write an optimizer's state, whole and by parameter name; all processes must call it, the first one writes.

    Beside torch's `state` and `param_groups` the file has `without`: names of parameters that train and have no state
    yet, such as a tower's layers above the deepest one that is read.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: Mapping[str, Any] = get_optimizer_state_dict(model, optimizer, options=options)
    if is_first_process():
        torch.save({**state, "without": sorted(_names(state) - state["state"].keys())}, file)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Read an optimizer's state that any number of processes wrote; all processes must call it.

    Raises:
        ValueError: the file is damaged, or lacks the state of parameters, which would begin anew; names the checkpoint.
    """
    many = world_size() > 1
    state = {}
    if not many or is_first_process():
        with reading(file.parent):
            state = torch.load(file, map_location="cpu", weights_only=True)
            lost = sorted(_names(state) - state["state"].keys() - {*state.pop("without", _names(state))})
            if lost:
                raise ValueError(
                    f"{file.name} lacks the state of {len(lost)} parameters, first {', '.join(lost[:3])}"
                )
    # Not strict: some parameters that train have none, as the file says.
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=many, strict=False)
    set_optimizer_state_dict(model, optimizer, state, options=options)


def _names(state: Mapping[str, Any]) -> set[str]:
    """Names of all parameters of an optimizer whose state this is."""
    return {name for group in state["param_groups"] for name in group["params"]}
