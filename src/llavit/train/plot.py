"""Loss curves of several runs in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llavit.train.progress import STEP_LOG, read_step_log

Curves = dict[str, tuple[list[int], list[float]]]
"""Stage to steps and losses."""

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
"""Okabe and Ito's, which colour-blind readers can tell apart."""

_WINDOW = 0.04  # of a stage's steps: what the thick line is a mean over
_LEFT_OUT = 0.02  # of the raw losses, the highest: they would press the rest flat


def loss_curves(run: str | Path) -> Curves:
    """Read a run's losses, finished stages and those under way.

    Args:
        run: the output folder of `train`.

    Returns:
        stage, in the recipe's order, to steps and losses.

    Raises:
        FileNotFoundError: the folder is no run, or has no step in its logs yet.
        ValueError: a log is garbled; names file and line.

    Example:
        >>> loss_curves("no/such/run")
        Traceback (most recent call last):
        FileNotFoundError: no/such/run: expected the folder of a run (with recipe.yaml), it holds none
    """
    folder = Path(run)
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        raise FileNotFoundError(f"{run}: expected the folder of a run (with {recipe.name}), it holds none")
    stages = [stage["name"] for stage in yaml.safe_load(recipe.read_text(encoding="utf-8"))["stages"]]
    curves = {}
    for stage in stages:
        for place in (folder / stage, folder / f"{stage}.work"):
            rows = read_step_log(place / STEP_LOG)
            if rows:
                curves[stage] = [row["step"] for row in rows], [row["loss"] for row in rows]
                break
    if not curves:
        raise FileNotFoundError(f"{run}: no step in any {STEP_LOG} of its stages {', '.join(stages)} yet")
    return curves


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Average each value with its neighbours; at the ends, with those that there are.

    Example:
        >>> smooth([0.0, 3.0, 6.0, 3.0], window=3)
        [1.5, 3.0, 4.0, 4.5]
    """
    import numpy as np

    weights = np.ones(min(window, len(values)) | 1)
    total = np.convolve(values, weights, mode="full")
    count = np.convolve(np.ones(len(values)), weights, mode="full")
    start = len(weights) // 2
    return (total / count)[start : start + len(values)].tolist()


def plot_losses(runs: Sequence[str | Path], output: str | Path) -> Path:
    """Draw the losses of runs into a file.

    Args:
        runs: output folders of `train`; the folders' names tell them apart.
        output: the picture; its ending says what kind (png, svg, pdf).

    Returns:
        the picture's path.

    Raises:
        ImportError: matplotlib is not installed.
        FileNotFoundError: a folder is no run, or has no step in its logs yet.
        ValueError: a log is garbled, or the picture's ending is not known.

    Example:
        ```python
        plot_losses(["runs/llava", "runs/llavit"], "loss.png")
        ```
    """
    figure = draw(dict(zip(_names(runs), map(loss_curves, runs), strict=True)))
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)
    return target


def draw(curves: Mapping[str, Curves]) -> Any:
    """Draw a panel for each stage: thin as logged, thick smoothed.

    Args:
        curves: name of a run to its curves, of `loss_curves`.

    Returns:
        a matplotlib figure.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> figure = draw({"llavit": {"pretrain": ([1, 2, 3], [3.0, 2.0, 1.5])}})
        >>> figure.axes[0].get_title(loc="left")
        'pretrain'
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'llavit[plot]'") from error
    stages = list(dict.fromkeys(stage for run in curves.values() for stage in run))
    figure = Figure(figsize=(5.2 * len(stages) + 0.6, 3.9), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for panel, stage in zip(panels, stages, strict=True):
        tops, bottoms = [], []
        for index, (name, curve) in enumerate(curves.items()):
            if stage not in curve:
                continue
            steps, losses = curve[stage]
            even = smooth(losses, max(1, round(_WINDOW * len(losses))))
            colour = _COLOURS[index % len(_COLOURS)]
            panel.plot(steps, losses, color=colour, linewidth=0.6, alpha=0.22, zorder=1)
            panel.plot(steps, even, color="white", linewidth=3.2, zorder=2)  # a rim, over the thin lines
            (handles[name],) = panel.plot(steps, even, color=colour, linewidth=1.8, zorder=3)
            tops += [max(even), sorted(losses)[int((1 - _LEFT_OUT) * (len(losses) - 1))]]
            bottoms.append(min(losses))
        margin = 0.05 * (max(tops) - min(bottoms)) or 0.1
        panel.set_ylim(min(bottoms) - margin, max(tops) + margin)
        panel.set_title(stage, fontsize=11, loc="left")
        panel.set_xlabel("optimizer step")
        panel.grid(color="#e6e6e6", linewidth=0.6, zorder=0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("loss per supervised token")
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=min(4, len(handles)),
        frameon=False,
    )
    return figure


def _names(runs: Sequence[str | Path]) -> list[str]:
    """Name runs by as many of their last folders as it takes to tell them apart."""
    parts = [Path(run).resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(part[-1:])} ({number})" for number, part in enumerate(parts, 1)]
