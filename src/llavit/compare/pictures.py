"""Three pictures: bars with intervals; score against training samples; score against parameters."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llavit.compare.paired import Difference
from llavit.compare.summary import Line, Summary, tested_families
from llavit.evaluate.table import NAMES

if TYPE_CHECKING:
    from llavit.compare.run import Experiment

_COLOURS = (
    *("#3b7dd8", "#e07b39", "#3c9d5d", "#a05cc0", "#c0392b", "#7f7f7f", "#b8860b", "#17a2b8"),
    *("#1f3a68", "#f2b27a", "#8fd3a4", "#d6b3e6", "#f19c93", "#222222", "#e6cf7a", "#0b5563"),
)
"""One for each variant; light and dark ones of the same hue come last."""
_MARKERS = ("o", "s", "^", "D", "v", "P")


def pictures(summary: Summary, experiment: Experiment) -> dict[str, tuple[Any, str]]:
    """Draw what the results allow.

    Returns:
        by name, a matplotlib figure and what it shows.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if not summary.lines:
        return {}
    require_matplotlib()
    count = len(summary.left_out)
    less = f"; without {count} cells whose results other code or other settings made" if count else ""
    found = {name: (draw(summary, experiment), about + less) for name, (draw, about) in _DRAWN.items()}
    return {name: (figure, about) for name, (figure, about) in found.items() if figure is not None}


def require_matplotlib() -> None:
    """Raise an ImportError that names the extra, if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "pictures of a comparison need matplotlib: pip install 'llavit[compare]'"
        ) from error


def as_svg(name: str, summary: Summary, experiment: Experiment) -> str:
    """Draw one picture as SVG, for a page."""
    from matplotlib import pyplot

    figure = _DRAWN[name][0](summary, experiment)
    out = io.StringIO()
    figure.savefig(out, format="svg")
    pyplot.close(figure)
    return out.getvalue()[out.getvalue().index("<svg") :]


def _bars(summary: Summary, experiment: Experiment) -> Any:
    """Mean of the families and each family, a bar for each variant; whiskers over seeds, dots for single seeds."""
    keys = list(dict.fromkeys((line.llm, line.size) for line in summary.lines))
    figure, axes = _panels(len(keys), 1, 8.5, 1.1)
    for axis, key in zip(axes, keys, strict=True):
        lines = [line for line in summary.lines if (line.llm, line.size) == key]
        families = list(dict.fromkeys(tested_families(lines).values()))
        thick = 0.8 / len(lines)
        for number, line in enumerate(lines):
            for place, family in enumerate(["mean", *families]):
                one = line.mean if family == "mean" else line.of_family(family)
                at = place - 0.4 + thick * (number + 0.5)
                axis.bar(
                    at,
                    100 * one.mean,
                    thick * 0.9,
                    yerr=_whiskers(one),
                    color=_colour(summary, line),
                    label=_label(line) if place == 0 else None,
                    error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": "#333333"},
                )
                single = [_of(record, family) for record in line.records.values()]
                axis.plot([at] * len(single), single, ".", color="#222222", markersize=3)
        axis.set_xticks(range(len(families) + 1), [NAMES[name] for name in ("mean", *families)])
        axis.set(ylabel="test score, per cent", title=f"{key[0]}, {key[1]}")
        axis.set_ylim(bottom=0)
        axis.grid(axis="y", alpha=0.25)
        _legend_beside(axis)
    figure.tight_layout()
    return figure


def _whiskers(one: Difference) -> list[list[float]] | None:
    """Give the interval as matplotlib takes it, within what a score can be: that of two seeds may reach beyond."""
    if math.isnan(one.low):
        return None
    return [[100 * (one.mean - max(one.low, 0.0))], [100 * (min(one.high, 1.0) - one.mean)]]


def _of(record: Any, family: str) -> float:
    return 100 * (record["test"]["score"] if family == "mean" else record["test"]["families"][family])


def _samples(summary: Summary, experiment: Experiment) -> Any:
    """Score on val at the points of training; a thin line for each seed, a thick one for their mean."""
    keys = list(dict.fromkeys((line.llm, line.size) for line in summary.lines))
    figure, axes = _panels(len(keys), 1, 8.5, 1.0)
    for axis, key in zip(axes, keys, strict=True):
        for line in (line for line in summary.lines if (line.llm, line.size) == key):
            colour = _colour(summary, line)
            curves = [record["curve"] for record in line.records.values()]
            for curve in curves if len(curves) > 1 else ():
                axis.plot(*_curve(curve), color=colour, linewidth=0.7, alpha=0.45)
            common = [point["samples"] for point in curves[0]]
            scores = [
                sum(100 * curve[place]["score"] for curve in curves) / len(curves)
                for place in range(len(common))
            ]
            axis.plot(common, scores, "o-", color=colour, linewidth=1.8, markersize=4, label=_label(line))
        last_of_first = _first_stage_samples(summary, key)
        if last_of_first is not None:
            axis.axvline(last_of_first, color="#888888", linewidth=0.8, linestyle=":")
        axis.set(
            xlabel="training samples",
            ylabel="val score, per cent",
            title=f"{key[0]}, {key[1]} (dotted: stage ends)",
        )
        _keep_small_small(axis)
        axis.grid(alpha=0.25)
        _legend_beside(axis)
    figure.tight_layout()
    return figure


def _curve(curve: list[Any]) -> tuple[list[int], list[float]]:
    return [point["samples"] for point in curve], [100 * point["score"] for point in curve]


def _first_stage_samples(summary: Summary, key: tuple[str, str]) -> int | None:
    record = next(line.first for line in summary.lines if (line.llm, line.size) == key)
    stages = list(record["data"].values())
    return stages[0]["samples"] if len(stages) > 1 else None


def _parameters(summary: Summary, experiment: Experiment) -> Any:
    """Test score against all parameters, a panel for each size; colours are variants, marks are LLMs."""
    llms = list(dict.fromkeys(line.llm for line in summary.lines))
    sizes = list(dict.fromkeys(line.size for line in summary.lines))
    figure, axes = _panels(len(sizes), 1, 8.5, 1.2)
    for axis, size in zip(axes, sizes, strict=True):
        for line in (line for line in summary.lines if line.size == size):
            one = line.mean
            axis.errorbar(
                line.parameters[0] / 1e6,
                100 * one.mean,
                yerr=_whiskers(one),
                fmt=_MARKERS[llms.index(line.llm) % len(_MARKERS)],
                color=_colour(summary, line),
                capsize=2,
                markersize=7,
                label=f"{line.llm}, {_label(line)}",
            )
        axis.set(xlabel="parameters, million (tower included)", ylabel="test score, per cent", title=size)
        _keep_small_small(axis)
        axis.grid(alpha=0.25)
        _legend_beside(axis)
    figure.tight_layout()
    return figure


def _keep_small_small(axis: Any) -> None:
    """Let scores span ten points or more: a tenth of a point must not look like a gain."""
    low, high = axis.get_ylim()
    more = max(0.0, 10.0 - (high - low)) / 2
    axis.set_ylim(low - more, high + more)


def _label(line: Line) -> str:
    """Name a line with its number of seeds: means over different seeds stand side by side."""
    count = len(line.records)
    return f"{line.variant}, {count} seed{'s' * (count > 1)}"


def _legend_beside(axis: Any) -> None:
    axis.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _panels(rows: int, columns: int, width: float, stretch: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width, 3.6 * stretch * rows), squeeze=False, layout=None
    )
    return figure, axes.flatten()


def _colour(summary: Summary, line: Line) -> str:
    """One colour for a variant in all pictures."""
    names = list(dict.fromkeys(one.variant for one in summary.lines))
    return _COLOURS[names.index(line.variant) % len(_COLOURS)]


_DRAWN: dict[str, tuple[Callable[[Summary, Any], Any], str]] = {
    "scores": (
        _bars,
        "Test scores with 95 % intervals over seeds, none with one seed; dots are single seeds",
    ),
    "samples": (_samples, "Score on val against training samples"),
    "parameters": (_parameters, "Test score against parameters"),
}

PICTURES = tuple(_DRAWN)
"""Their names."""
