"""How losses by knock-out are drawn: a panel for each family, a row for each knock-out, a colour for each model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llavit.inspect.report import COLOURS, escape, new_figure

if TYPE_CHECKING:
    from llavit.inspect.knockouts import Knockouts


def draw(results: Sequence[Knockouts], columns: int = 4) -> Any:
    """Draw the losses of one or more models, measured on the same tasks.

    Args:
        results: with the same families. A row that one of them lacks, such as layers of a deeper model, is empty in it.
        columns: panels beside each other.

    Raises:
        ValueError: results of different families.
    """
    first = results[0]
    if any(each.families != first.families for each in results):
        raise ValueError("expected results on the same families")
    names = _rows(results)
    panels = [len(first.families) - 1, *range(len(first.families) - 1)]  # the mean first
    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    rows = len(names)
    width = 2.6 + 2.1 * columns
    beside = max(1, int(width / (0.7 + 0.08 * max(len(each.model) for each in results))))  # names of models
    figure = new_figure(width, 0.2 * -(-len(results) // beside) + lines * (1.4 + 0.2 * rows))
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    place = np.arange(rows)[::-1]
    for axis, family in zip(axes, panels, strict=False):
        axis.axvline(0, color="0.6", linewidth=1)
        for number, result in enumerate(results):
            value, low, high = 100 * result.loss_kf3[:, family].T
            there = ~np.isnan(value)
            own = place[[names.index(name) for name in result.names]]
            shift = (len(results) - 1) / 2 - number
            axis.errorbar(
                value[there],
                own[there] + 0.28 * shift,
                xerr=np.abs(np.stack([value - low, high - value]))[:, there],
                fmt="o",
                markersize=3.5,
                elinewidth=1.2,
                color=COLOURS[number % len(COLOURS)],
                label=result.model,
            )
        scores = ", ".join(f"{100 * result.score_f3[family, 0]:.1f}" for result in results)
        axis.set_title(f"{first.families[family]} ({first.items[family]} items)\n{scores}", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.set_yticks(place, names)
        axis.set_ylim(-0.7, rows - 0.3)
        axis.grid(axis="x", alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.supxlabel("points of accuracy lost; above each panel the scores of the whole models", fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=beside)
    return figure


def _rows(results: Sequence[Knockouts]) -> list[str]:
    """Names of all knock-outs of several models: each behind the one that it follows in its own model."""
    names: list[str] = []
    for result in results:
        at = 0
        for name in result.names:
            if name not in names:
                names.insert(at, name)
            at = names.index(name) + 1
    return names


def cells(result: Knockouts) -> list[list[str]]:
    """Return a table of losses in points: a row for each knock-out, a column for each family."""
    found = []
    for name, losses in zip(result.names, result.loss_kf3, strict=True):
        if name in result.not_applicable:
            found.append([name, *["not applicable"] * len(result.families)])
            continue
        shown = [f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for value, low, high in losses]
        found.append([name, *(text.replace("-0.0", "0.0") for text in shown)])
    return found


def failures(result: Knockouts) -> list[str]:
    """Say which runs have errors in place of answers: these count as wrong, in the whole model's score or as a loss."""
    return [
        f"{run}: {count} questions failed, with an error in place of an answer, and count as wrong"
        for run, count in result.settings.get("failed", {}).items()
    ]


def table(result: Knockouts) -> str:
    """Return scores and losses as an HTML table."""
    heads = "".join(f'<th class="number">{escape(family)}</th>' for family in result.families)
    scores = "".join(f'<td class="number">{100 * score:.1f}</td>' for score in result.score_f3[:, 0])
    items = "".join(f'<td class="number">{count}</td>' for count in result.items)
    rows = f"<tr><th>items</th>{items}</tr><tr><th>score of the whole model</th>{scores}</tr>"
    rows += f'<tr><th colspan="{len(result.families) + 1}">points lost, with 95 % interval</th></tr>'
    for name, *losses in cells(result):
        if name in result.not_applicable:
            reason = f"not applicable: {result.not_applicable[name]}"
            rows += f'<tr><th>{escape(name)}</th><td colspan="{len(losses)}">{escape(reason)}</td></tr>'
            continue
        inside = "".join(f'<td class="number">{escape(loss)}</td>' for loss in losses)
        rows += f"<tr><th>{escape(name)}</th>{inside}</tr>"
    return f'<div class="wide"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def summary(results: Sequence[Knockouts]) -> str:
    """Return the picture of several models together as HTML; nothing for one model."""
    from llavit.inspect.report import figure_html

    if len(results) < 2:
        return ""
    return figure_html(draw(results), "loss of accuracy by knock-out, family and model")
