"""The chart of a drift: distances of projections, attention entropy, norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llavit.inspect.report import COLOURS, new_figure

if TYPE_CHECKING:
    from llavit.inspect.drift import Drift

STYLES = ("-", "--", ":")


def drift_figure(drift: Drift) -> Any:
    """Draw distances and cosines by layer, and if tokens were looked at their entropy and norms.

    Returns:
        a matplotlib figure: two rows of two panels, or one.

    Raises:
        ImportError: matplotlib is not installed.
    """
    rows = 1 if drift.tokens is None else 2
    figure = new_figure(9, 3.4 * rows)
    axes = figure.subplots(rows, 2, squeeze=False)
    _distances(axes[0][0], drift, drift.relative, "relative distance")
    _distances(axes[0][1], drift, drift.cosine, "cosine")
    if drift.tokens is not None:
        _entropy(axes[1][0], drift)
        _norms(axes[1][1], drift)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _distances(axis: Any, drift: Drift, values: np.ndarray, title: str) -> None:
    axis.set_title(f"projections: {title}", fontsize=10)
    if not drift.pairs:
        axis.text(0.5, 0.5, "not applicable", ha="center", va="center", transform=axis.transAxes)
        axis.set_xticks([])
        axis.set_yticks([])
        return
    for number, pair in enumerate(drift.pairs):
        for column, letter in enumerate("qkv"):
            label = f"{letter}, {pair}"
            axis.plot(values[number, :, column], STYLES[number % 3], color=COLOURS[column], label=label)
    axis.set_xlabel("layer of the LLM")
    axis.legend(fontsize=7, frameon=False)


def _entropy(axis: Any, drift: Drift) -> None:
    assert drift.tokens is not None
    axis.set_title("attention entropy in bits, mean and range of heads", fontsize=10)
    for kind, name in enumerate(("text", "visual")):
        bits, colour = drift.tokens.entropy[kind], COLOURS[kind]
        layers = np.arange(len(bits))
        axis.plot(layers, bits.mean(-1), color=colour, label=f"{name} tokens")
        axis.fill_between(layers, bits.min(-1), bits.max(-1), color=colour, alpha=0.12, linewidth=0)
        axis.plot(layers, drift.tokens.ceiling[kind], ":", color=colour, label=f"{name}: at most")
    axis.set_xlabel("layer of the LLM")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7, frameon=False)


def _norms(axis: Any, drift: Drift) -> None:
    assert drift.tokens is not None
    axis.set_title("norm of tokens, median and 10 to 90 %", fontsize=10)
    for kind, name in enumerate(("text", "visual")):
        low, middle, high = drift.tokens.norms[kind].T
        layers = np.arange(len(middle))
        axis.plot(layers, middle, color=COLOURS[kind], label=f"{name} tokens")
        axis.fill_between(layers, low, high, color=COLOURS[kind], alpha=0.12, linewidth=0)
    axis.set_yscale("log")
    axis.set_xlabel("0: input of the LLM, then after each layer")
    axis.legend(fontsize=7, frameon=False)
