"""Where each step's numbers go besides `train_log.jsonl`: TensorBoard always, Weights & Biases if asked for."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from transformers import TrainerCallback

from llavit.train.store import write_text


class TensorBoardLog(TrainerCallback):
    """Writes each step's numbers for TensorBoard; a resumed run takes the place of the steps that it takes again.

    Args:
        folder: of the stage; `tensorboard --logdir` on the folder above shows all stages.

    Example:
        ```python
        LlavitTrainer(..., callbacks=[TensorBoardLog(folder / "tensorboard/pretrain")])
        ```
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.writer: SummaryWriter | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the file."""
        if state.is_world_process_zero:
            # The suffix: files are named by the second, and a resumed run may be as quick as that.
            step = state.global_step
            self.writer = SummaryWriter(str(self.folder), purge_step=step + 1, filename_suffix=f".{step}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write one step."""
        if self.writer is not None and "loss" in logs:
            for name, value in numbers(logs).items():
                self.writer.add_scalar(name, value, state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have on disk what a checkpoint includes."""
        if self.writer is not None:
            self.writer.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()


class WandbLog(TrainerCallback):
    """Sends each step's numbers to Weights & Biases; a resumed stage goes on in the same run there.

    Entity, mode (`WANDB_MODE=offline`) and key come from wandb's own settings.

    Args:
        project: name of the project there.
        name: of the run there.
        config: what it shows as configuration.
        work: folder of the stage under way, where its run's id is kept; gone when the stage is finished.
        output: folder that stays; wandb's own files go to `OUTPUT/wandb`, where `wandb sync` finds offline runs.

    Raises:
        ImportError: wandb is not installed.

    Example:
        ```python
        WandbLog("llavit", "starter/pretrain", to_plain(recipe), folder / "pretrain.work", folder)
        ```
    """

    def __init__(self, project: str, name: str, config: Mapping[str, Any], work: Path, output: Path):
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "wandb: logging to Weights & Biases needs its package: pip install 'llavit[wandb]'; "
                "or leave `wandb` out of the recipe"
            ) from error
        self.wandb = wandb
        self.project, self.name, self.config = project, name, dict(config)
        self.id_file = work / "wandb_id"
        self.output = output
        self.run: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the run, new or again."""
        if not state.is_world_process_zero:
            return
        if not self.id_file.exists():
            write_text(self.id_file, uuid.uuid4().hex)
        self.run = self.wandb.init(
            project=self.project,
            name=self.name,
            config=self.config,
            id=self.id_file.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(self.output),
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Send one step."""
        if self.run is not None and "loss" in logs:
            self.run.log(numbers(logs), step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the run."""
        if self.run is not None:
            self.run.finish()


def numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """Group a step's numbers under the headings of TensorBoard and W&B.

    Example:
        >>> numbers({"loss": 2.5, "lr_projector": 1e-3, "mfu": 0.4, "epoch": 0.1})
        {'train/loss': 2.5, 'learning_rate/projector': 0.001, 'speed/mfu': 0.4}
    """
    grouped = {}
    for key, value in logs.items():
        if key in ("loss", "grad_norm"):
            grouped[f"train/{key}"] = value
        elif key.startswith("lr_"):
            grouped[f"learning_rate/{key.removeprefix('lr_')}"] = value
        elif key in ("samples", "tokens", "supervised_tokens", "padding", "skipped"):
            grouped[f"data/{key}"] = value
        elif key != "epoch":
            grouped[f"speed/{key}"] = value
    return grouped
