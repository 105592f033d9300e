"""What `llavit inspect probe` shows: scores with the patches in colours, and several models in one picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llavit.inspect.pca import PatchPca
from llavit.inspect.probe import GROUPS, Probe
from llavit.inspect.probe_charts import probe_figure
from llavit.inspect.report import escape, figure_html, figure_png


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeReport(Probe):
    """A `Probe` with pictures of patch features.

    Attributes:
        pca: of some test pictures; None shows none.
    """

    pca: PatchPca | None = None

    @classmethod
    def of(cls, probe: Probe, pca: PatchPca | None) -> ProbeReport:
        """Put the two together."""
        return cls(**{f.name: getattr(probe, f.name) for f in dataclasses.fields(probe)}, pca=pca)

    def arrays(self) -> dict[str, Any]:
        """Return the scores, and the colours of patches as `pca_rgb`, `pca_explained` and `pca_seen`."""
        pca = {} if self.pca is None else self.pca.arrays()
        return {**super().arrays(), **{f"pca_{name}": value for name, value in pca.items()}}

    def body(self) -> str:
        """Return the scores, then the patches in colours."""
        html = super().body()
        if self.pca is not None:
            about = f"<h3>{escape(self.pca.TITLE)}</h3><p>{escape(self.pca.ABOUT)}</p>"
            html += about + figure_html(self.pca.figure(), self.pca.TITLE)
        return html


def best_places(results: Sequence[Probe]) -> list[list[str]]:
    """Return the best place of each part of each model, on pictures of an unseen style, as rows of a table.

    The place is chosen by the score that is shown, which flatters it a little.

    Returns:
        rows of model, part, and for each kind of probe the score and its place.

    Example:
        ```python
        for row in best_places([of_llava, of_llavit]):
            print(*row)
        ```
    """
    rows = []
    for result in results:
        for part in ("tower", "LLM"):
            if any(place.startswith(part) for place in result.places):
                best = [result.best(measure, part) for measure in ("knn", "linear", "dense")]
                shown = ("no pictures" if np.isnan(s) else f"{100 * s:.1f} % at {place}" for place, s in best)
                rows.append([result.model, part, *shown])
    return rows


def save_comparison(results: Sequence[Probe], folder: str | Path) -> str:
    """Write probe.png and probe.json of several models together; give the HTML that shows it.

    Returns:
        "" for one model, whose own files have these names.
    """
    if len(results) < 2:
        return ""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    html = ""
    for group in GROUPS:
        figure = probe_figure(results, group)
        figure.suptitle(f"pictures in {'an unseen style' if group == GROUPS[1] else 'styles of training'}")
        png = figure_png(figure)
        file = folder / ("probe.png" if group == GROUPS[1] else "probe-seen.png")
        file.write_bytes(png)
        html += figure_html(figure, f"scores by place, {group}")
    facts = {"models": [result.facts() for result in results]}
    (folder / "probe.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return html
