"""What every analysis gives: arrays, facts, a picture, and a page that needs no other file and no network.

An analysis is a frozen dataclass that derives from `Analysis` and draws itself:

    @dataclass(frozen=True, kw_only=True, eq=False)
    class Norms(Analysis):
        NAME, TITLE, ABOUT = "norms", "Norms by layer", "How long visual and text tokens are in each layer."
        visual_n: np.ndarray  # (layers + 1,) mean length of visual tokens

        def figure(self):
            figure = new_figure(5, 3)
            figure.subplots().plot(self.visual_n)
            return figure

Arrays, facts, page and files follow from its fields.
"""

from __future__ import annotations

import base64
import dataclasses
import html as escaping
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
"""Of lines and bars, in this order: Okabe and Ito's, which colour-blind readers can tell apart."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """The result of looking at one model.

    Attributes:
        model: what tables and pages call the model.
        settings: how the result was made; plain values for JSON.
        NAME: of its files.
        TITLE: heading of its page.
        ABOUT: one or two sentences for the reader of the page: what is shown, how to read it.
    """

    NAME: ClassVar[str] = "analysis"
    TITLE: ClassVar[str] = "Analysis"
    ABOUT: ClassVar[str] = ""

    model: str = "model"
    settings: dict[str, Any] = field(default_factory=dict)

    def figure(self) -> Any:
        """Draw it as a matplotlib `Figure`, made by `new_figure`."""
        raise NotImplementedError(f"{type(self).__name__} has no figure()")

    def body(self) -> str:
        """Return its part of a page, as HTML: the figure, unless an analysis shows more."""
        return figure_html(self.figure(), self.TITLE)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the fields that are arrays, by name."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def facts(self) -> dict[str, Any]:
        """Return everything that is no array as plain values for JSON, and the versions that made it."""
        from llavit.evaluate.environment import environment

        plain = (str, int, float, bool, list, tuple, dict, type(None))
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        kept = {name: value for name, value in values.items() if isinstance(value, plain)}
        return {"analysis": self.NAME, **kept, "environment": environment()}

    def html(self) -> str:
        """Return a page of its own."""
        return side_by_side([self])

    def save(self, folder: str | Path, name: str | None = None) -> Path:
        """Write NAME.npz (arrays), NAME.json (facts), NAME.png (the figure) and NAME.html.

        Args:
            folder: made if missing.
            name: of the files, without an ending; `NAME` if not given.

        Returns:
            the page's path.

        Raises:
            ImportError: matplotlib is not installed.

        Example:
            ```python
            page = result.save("runs/inspect")
            ```
        """
        stem = self._save_data(folder, name or self.NAME)
        page = stem.with_name(stem.name + ".html")
        page.write_text(self.html(), encoding="utf-8")
        return page

    def _save_data(self, folder: str | Path, name: str) -> Path:
        """Write all but the page; give the path without an ending."""
        stem = Path(folder) / name
        stem.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(stem.with_name(name + ".npz"), **self.arrays())  # type: ignore[arg-type]
        facts = json.dumps(self.facts(), indent=2, ensure_ascii=False, default=_plain)
        stem.with_name(name + ".json").write_text(facts + "\n", encoding="utf-8")
        stem.with_name(name + ".png").write_bytes(figure_png(self.figure()))
        return stem


def side_by_side(results: Sequence[Analysis], summary: str = "") -> str:
    """Return one page of several results of the same kind, a column for each; narrow screens stack them.

    Args:
        results: of one analysis on several models.
        summary: HTML that is shown above the columns, such as a figure of all results.

    Raises:
        ValueError: no results, or results of different analyses.

    Example:
        >>> from llavit.inspect.report import Analysis, side_by_side
        >>> class Note(Analysis):
        ...     TITLE = "Note"
        ...     def body(self):
        ...         return "<p>hello</p>"
        >>> page = side_by_side([Note(model="llava"), Note(model="llavit")])
        >>> page.count("<p>hello</p>"), "http://" in page or "https://" in page
        (2, False)
    """
    if not results:
        raise ValueError("side_by_side: expected at least one result, got none")
    kinds = sorted({type(result).__name__ for result in results})
    if len(kinds) > 1:
        raise ValueError(f"side_by_side: expected results of one analysis, got {', '.join(kinds)}")
    first = results[0]
    columns = [
        {
            "model": result.model,
            "body": result.body(),
            "facts": json.dumps(result.facts(), indent=2, ensure_ascii=False, default=_plain),
        }
        for result in results
    ]
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2"]))
    return pages.get_template("report.html.j2").render(
        title=first.TITLE, about=first.ABOUT, columns=columns, summary=summary
    )


def save_all(
    results: Sequence[Analysis], folder: str | Path, name: str | None = None, summary: str = ""
) -> Path:
    """Write one result as `Analysis.save` does; of several, NAME.html side by side and the rest as NAME-1, NAME-2, ...

    Returns:
        the page's path.

    Raises:
        ValueError: as `side_by_side`.
        ImportError: matplotlib is not installed.

    Example:
        ```python
        page = save_all([of_llava, of_llavit], "runs/inspect")
        ```
    """
    page = side_by_side(results, summary)
    name = name or results[0].NAME
    for number, result in enumerate(results, 1):
        result._save_data(folder, name if len(results) == 1 else f"{name}-{number}")
    path = Path(folder) / f"{name}.html"
    path.write_text(page, encoding="utf-8")
    return path


def slider(frames: Sequence[tuple[str, str]], group: str = "layers", start: int = 0, label: str = "") -> str:
    """Return HTML that shows one of several frames, chosen by a slider.

    The sliders of one group on a page move together, so that the same layer of two models stands side by side. Without
    JavaScript all frames are shown, one below the other.

    Args:
        frames: (caption, HTML) of each.
        group: sliders of one name move together.
        start: number of the frame that is shown first.
        label: in front of the slider.

    Raises:
        ValueError: no frames, or no such start.

    Example:
        >>> slider([("input", "<p>a</p>"), ("layer 1", "<p>b</p>")], label="layer").count("<figure")
        2
    """
    if not 0 <= start < len(frames):
        raise ValueError(
            f"slider: start={start}, expected 0 to {len(frames) - 1}; there are {len(frames)} frames"
        )
    inside = ""
    for caption, html in frames:
        shown = escape(caption)
        inside += (
            f'<figure class="frame" data-caption="{shown}"><figcaption>{shown}</figcaption>{html}</figure>'
        )
    about = f'data-group="{escape(group)}" data-start="{start}" data-label="{escape(label)}"'
    return f'<div class="frames" {about}>{inside}</div>'


def escape(text: Any) -> str:
    """Return text as HTML shows it, also inside of attributes.

    Example:
        >>> escape('<a "b">')
        '&lt;a &quot;b&quot;&gt;'
    """
    return escaping.escape(str(text))


def data_url(image: Image.Image | bytes) -> str:
    """Return a picture, or the bytes of a PNG, as a `data:` URL.

    Example:
        >>> data_url(Image.new("RGB", (1, 1)))[:22]
        'data:image/png;base64,'
    """
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, "PNG")
        image = file.getvalue()
    return "data:image/png;base64," + base64.b64encode(image).decode()


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of so many inches; it belongs to no window and may be used in any thread.

    Raises:
        ImportError: matplotlib is not installed; names the extra.

    Example:
        >>> new_figure(4, 3).get_size_inches().tolist()
        [4.0, 3.0]
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'llavit[inspect]'") from error
    return Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")


def figure_png(figure: Any) -> bytes:
    """Return a figure as the bytes of a PNG.

    Example:
        >>> figure_png(new_figure(1, 1))[:4]
        b'\\x89PNG'
    """
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def figure_html(figure: Any, alt: str) -> str:
    """Return a figure as an `<img>` that needs no other file.

    Args:
        figure: of matplotlib.
        alt: what readers who do not see it are told.

    Example:
        >>> figure_html(new_figure(1, 1), "empty")[:34]
        '<img class="chart" alt="empty" src'
    """
    return f'<img class="chart" alt="{escape(alt)}" src="{data_url(figure_png(figure))}">'


def _plain(value: Any) -> Any:
    """Turn what JSON does not know into what it does."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
