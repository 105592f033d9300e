"""Looks at a model on its way: weights are put aside at several steps of each stage, and scored afterwards.

Training is not touched: it gives the same weights, to the bit, as without.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llavit.model.adapters import has_adapters
from llavit.train.parts import parameters_by_part
from llavit.train.store import write_text

PARAMETERS = "parameters.json"


def point_steps(steps: int, points: int) -> list[int]:
    """Say after which steps of a stage to look: at equal distances, the last step included.

    Example:
        >>> point_steps(100, 3), point_steps(2, 5)
        ([33, 67, 100], [1, 2])
    """
    return sorted({max(1, round(steps * number / points)) for number in range(1, points + 1)})


class Points(TrainerCallback):
    """Puts aside weights at the points of each stage but its end, whose weights are the stage's result.

    Stages with adapters have their end only: adapters alone do not make a model.

    Args:
        folder: each point is a folder `STAGE.STEP` in it; `parameters.json` says what trains in each stage.
        points: of a stage, its end included.

    Example:
        ```python
        train(recipe, output=folder, callbacks=[Points(folder / "points", 3)])
        ```
    """

    def __init__(self, folder: Path, points: int):
        self.folder, self.points = folder, points

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Write down how many parameters there are and how many train."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / PARAMETERS
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        parts = parameters_by_part(model)
        found[_stage(args)] = {
            "total": sum(p.numel() for part in parts.values() for p in part.values()),
            "trained": {
                name: count
                for name, part in parts.items()
                if (count := sum(p.numel() for p in part.values() if p.requires_grad))
            },
        }
        write_text(path, json.dumps(found, indent=1))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Save the weights, whole or not at all."""
        if state.global_step == state.max_steps or has_adapters(model):
            return
        if state.global_step not in point_steps(state.max_steps, self.points):
            return
        place = self.folder / f"{_stage(args)}.{state.global_step}"
        if place.exists():  # a run that was resumed comes by again
            return
        unfinished = place.with_name(f".{place.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.save_pretrained(unfinished)
        os.replace(unfinished, place)


def _stage(args: Any) -> str:
    return Path(args.output_dir).name.removesuffix(".work")
