"""What a user sees of a running stage: a bar on a terminal, elsewhere a plain line now and then; and the log file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from llavit.train.store import write_text

STEP_LOG = "train_log.jsonl"
_LINE_EVERY = 30.0  # seconds
_SMOOTHING = 0.9  # of the loss shown; about the last 10 steps


class StageProgress(TrainerCallback):
    """Shows stage, step, smoothed loss, samples and supervised tokens per second, and the time left.

    Args:
        stage: name to show.
        console: where to draw.

    Example:
        ```python
        LlavitTrainer(..., callbacks=[StageProgress("pretrain", Console(stderr=True))])
        ```
    """

    def __init__(self, stage: str, console: Console):
        self.stage = stage
        self.console = console
        self.bar: Progress | None = None
        self.loss: float | None = None
        self.samples = self.tokens = self.seconds = 0.0
        self.last_line = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar where the run starts (a resumed one not at 0)."""
        self.last_line = time.monotonic()
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task(
                self.stage, total=state.max_steps, completed=state.global_step, numbers=""
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Take in one step."""
        if "loss" not in logs:
            return
        loss = logs["loss"]
        self.loss = loss if self.loss is None else _SMOOTHING * self.loss + (1 - _SMOOTHING) * loss
        self.seconds = _SMOOTHING * self.seconds + logs["seconds"]
        self.samples = _SMOOTHING * self.samples + logs["samples"]
        self.tokens = _SMOOTHING * self.tokens + logs["supervised_tokens"]
        numbers = (
            f"loss {self.loss:.3f}  {self.samples / self.seconds:.1f} samples/s  "
            f"{self.tokens / self.seconds:.0f} supervised tokens/s"
        )
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step, numbers=numbers)
        elif time.monotonic() - self.last_line >= _LINE_EVERY or state.global_step == state.max_steps:
            self.last_line = time.monotonic()
            left = (state.max_steps - state.global_step) * self.seconds / _steps_seen(logs, self.samples)
            line = f"{self.stage}  step {state.global_step}/{state.max_steps}  {numbers}  {_clock(left)} left"
            self.console.print(line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar off the terminal, also after an error."""
        if self.bar is not None:
            self.bar.stop()


class StepLog(TrainerCallback):
    """Writes one JSON line per step: step, loss, gradient norm, learning rates and what `Throughput` measures.

    A resumed run first drops the lines of steps that it will take again.

    Args:
        path: the file.

    Example:
        ```python
        LlavitTrainer(..., callbacks=[StepLog(folder / "train_log.jsonl")])
        ```
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the lines up to the step at which the run goes on."""
        if state.is_world_process_zero:
            kept = [row for row in read_step_log(self.path) if row["step"] <= state.global_step]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write one step."""
        if state.is_world_process_zero and "loss" in logs:
            with self.path.open("a", encoding="utf-8") as file:
                row = {key: value for key, value in logs.items() if key != "epoch"}
                file.write(json.dumps({"step": state.global_step, **row}) + "\n")


def read_step_log(path: Path) -> list[dict[str, Any]]:
    """Read a stage's `train_log.jsonl`; a last line that a killed run left unfinished is dropped.

    Returns:
        a row per step; none where there is no file.

    Raises:
        ValueError: a line is no row of a log; names file and line.

    Example:
        ```python
        losses = [row["loss"] for row in read_step_log(Path("runs/starter/pretrain/train_log.jsonl"))]
        ```
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int) or not isinstance(row["loss"], float | int):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with step and loss, got {line[:80]!r}; "
                "the file is damaged: delete that line"
            ) from error
        rows.append(row)
    return rows


def _steps_seen(logs: dict[str, float], samples: float) -> float:
    """How many steps' worth is in the smoothed sums."""
    return samples / logs["samples"] if logs["samples"] else 1.0


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
