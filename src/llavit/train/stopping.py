"""A run that is told to end (SIGTERM: `kill`, SLURM's time limit, a preempted machine) saves and leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from transformers import TrainerCallback

EXIT_STATUS = 128 + signal.SIGTERM
"""What the command line ends with then: 143, as any program that SIGTERM ends."""


class Stopped(RuntimeError):
    """Training was told to end and did so after saving; the same call goes on where it stopped."""


class StopAtStepEnd(TrainerCallback):
    """Within `with`, SIGTERM no longer ends the process: the step under way is finished and saved, then training ends.

    All processes stop after the same step, also if only one of them was told to.

    Args:
        any_process: says whether any process's argument is true; all processes call it together.

    Attributes:
        stopped: training ended because of a signal, at a saved step.

    Example:
        ```python
        with StopAtStepEnd(any_process=bool) as stop:
            LlavitTrainer(..., callbacks=[stop]).train()
        ```
    """

    def __init__(self, any_process: Callable[[bool], bool] = bool):
        self.any_process = any_process
        self.told = False
        self.stopped = False

    def __enter__(self) -> StopAtStepEnd:
        self._installed = (
            threading.current_thread() is threading.main_thread()
        )  # only there can handlers be set
        if self._installed:
            self._before = signal.signal(signal.SIGTERM, self._tell)
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._before)

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self.told = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and end if any process was told to."""
        if self.any_process(self.told):
            self.stopped = True
            control.should_save = control.should_training_stop = True


def ignore_sigterm(worker: int) -> None:
    """Let a data worker outlive the SIGTERM that a whole process group gets: its training process ends it.

    Args:
        worker: its number, not used (`worker_init_fn` of a DataLoader).
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
