"""Training that stops after each piece and waits to be told to go on; and what a process holds in memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.speed.channel import Channel


class Finished(Exception):
    """The harness has seen enough: ends a training run in the middle."""


class Pace(TrainerCallback):
    """Runs optimizer steps in pieces, as the harness says, and times each piece.

    The clock runs from the command to the end of the last step: batches are fetched, put together and computed in it.

    Args:
        channel: to the harness.
        batches: the samples of each step, from `material.Batches`: what a step holds is counted from it.
        facts: to tell with each answer.
    """

    def __init__(self, channel: Channel, facts: dict[str, Any]):
        self.channel, self.facts = channel, facts
        self.left, self.began, self.cpu, self.count = 0, 0.0, 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say that everything is there, and wait."""
        self.channel.ready(**self.facts)
        self._wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the last step of a piece: answer, and wait for the next one."""
        self.left -= 1
        if self.left:
            return
        synchronise()
        self.channel.send(
            seconds=time.perf_counter() - self.began,
            cpu_seconds=time.process_time() - self.cpu,
            steps=self.count,
            first_step=state.global_step - self.count,
            peak_bytes=peak_bytes(),
        )
        self._wait()

    def _wait(self) -> None:
        command = self.channel.receive()
        if command["do"] == "stop":
            raise Finished
        self.left = self.count = command["count"]
        synchronise()
        reset_peak()
        self.began, self.cpu = time.perf_counter(), time.process_time()


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def resident_bytes() -> int:
    """Give what this process holds now: of the GPU where there is one, else of the machine's memory."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return _status("VmRSS") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


def peak_bytes() -> int:
    """Give the most that this process held since `reset_peak` (or since its start, where that cannot be reset)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


def reset_peak() -> None:
    """Forget the peak so far. Linux has a file for it; elsewhere the peak stays that of the whole run."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


_UNIT = 1 if sys.platform == "darwin" else 1024


def _status(field: str) -> int:
    """Read a field of /proc/self/status in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
