"""Charts of probes: scores by place, of one model or of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llavit.inspect.report import COLOURS, new_figure

if TYPE_CHECKING:
    from llavit.inspect.probe import Probe

PANELS = {
    "knn": "What is in the picture?\nk nearest neighbours, accuracy",
    "linear": "What is in the picture?\nlinear probe, accuracy",
    "dense": "What is on this patch?\nlinear probe, balanced accuracy",
}


def probe_figure(results: Sequence[Probe], group: str | None = None) -> Any:
    """Draw scores by place with their intervals.

    Args:
        results: of several models; one line each and group.
        group: of test pictures; all if not given.

    Returns:
        a matplotlib figure: a panel for each kind of probe.

    Raises:
        ImportError: matplotlib is not installed.
    """
    places = list(dict.fromkeys(place for result in results for place in result.places))
    places.sort(key=_order)
    positions = {place: number for number, place in enumerate(places)}
    figure = new_figure(13, 4.4)
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, (measure, title) in zip(axes, PANELS.items(), strict=True):
        for number, result in enumerate(results):
            for column, name in enumerate(result.groups):
                if group in (None, name):
                    _line(
                        axis, result, measure, column, positions, _label(results, result, name, group), number
                    )
        guess = "balanced accuracy of guessing" if measure == "dense" else "accuracy of guessing"
        axis.axhline(results[0].counts[guess], color="#999999", linewidth=0.8, linestyle=":")
        for edge in _edges(places):
            axis.axvline(edge, color="#cccccc", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(places)), [place.replace("projector reads", "read") for place in places])
        axis.tick_params(axis="x", labelrotation=90, labelsize=8)
        axis.set_ylim(0, 1)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False, loc="best")
    return figure


def _label(results: Sequence[Probe], result: Probe, name: str, group: str | None) -> str:
    parts = ([result.model] if len(results) > 1 else []) + ([name] if group is None else [])
    return ", ".join(parts) or result.model


def _line(
    axis: Any, result: Probe, measure: str, column: int, positions: dict[str, int], label: str, number: int
) -> None:
    scores = getattr(result, measure)[:, column]
    colour = COLOURS[number % len(COLOURS)]
    x = [positions[place] for place in result.places]
    for part in ("tower", "projector", "LLM"):
        rows = [row for row, place in enumerate(result.places) if place.startswith(part)]
        if not rows:
            continue
        at, values = [x[row] for row in rows], scores[rows]
        style = {"linestyle": ("-", "--")[column % 2], "marker": "o^"[column % 2], "markersize": 4}
        axis.plot(at, values[:, 0], color=colour, label=label, **style)
        if len(rows) > 1:
            axis.fill_between(at, values[:, 1], values[:, 2], color=colour, alpha=0.13, linewidth=0)
        else:
            axis.vlines(at, values[:, 1], values[:, 2], color=colour, alpha=0.4)
        label = ""  # one entry of the legend for all parts


def _order(place: str) -> tuple[int, int]:
    part, _, layer = place.partition(" ")
    return ("tower", "projector", "LLM").index(part), int(layer) if layer.isdigit() else 0


def _edges(places: Sequence[str]) -> list[float]:
    parts = [place.split()[0] for place in places]
    return [number - 0.5 for number in range(1, len(parts)) if parts[number] != parts[number - 1]]
