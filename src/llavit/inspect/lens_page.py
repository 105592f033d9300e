"""The vocabulary lens to look at: words on patches, as a picture and as a page with a slider over layers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from llavit.inspect.report import data_url, escape, new_figure, slider

if TYPE_CHECKING:
    from llavit.inspect.lens import Lens

_STYLE = """<style>
.lens { display: grid; grid-template-columns: repeat(var(--columns), 1fr); aspect-ratio: var(--columns) / var(--rows);
  background-size: 100% 100%; container-type: inline-size; border-radius: .3rem; overflow: hidden; }
.lens span { display: flex; align-items: center; justify-content: center; overflow: hidden; min-width: 0; color: #fff;
  background: #0007; box-shadow: inset 0 0 0 .5px #fff5; white-space: nowrap; cursor: default;
  font: calc(100cqw / var(--columns) / max(3.2, var(--n) * .62))/1 ui-monospace, monospace; }
.lens span.found { background: #0a7d2ccc; font-weight: 700; }
.lens span:hover { outline: 2px solid #fff; background: #000a; }
</style>"""

_LONGEST = 12  # letters of a word that are drawn


def lens_figure(lens: Lens) -> Any:
    """Draw the first image with the words on it, at the input and behind up to four layers, spread evenly."""
    from matplotlib.patheffects import withStroke

    count = len(lens.views)
    views = sorted({round(i) for i in np.linspace(0, count - 1, min(5, count))})
    rows, columns = lens.grids[0]
    figure = new_figure(4.2 * len(views), 4.2 * rows / columns + 0.5)
    for axis, number in zip(figure.subplots(1, len(views), squeeze=False)[0], views, strict=True):
        if lens.pictures:
            axis.imshow(lens.pictures[0], extent=(0, columns, rows, 0), alpha=0.6)
        axis.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[], title=lens.views[number])
        found = lens.patches(lens.found_nvk, 0)[number].any(-1)
        for patch, i in enumerate(lens.patches(lens.ids_nvk, 0)[number, :, 0]):
            word = shown(lens.text[int(i)])[:_LONGEST]
            axis.text(
                patch % columns + 0.5,
                patch // columns + 0.5,
                word,
                fontsize=min(11.0, 430 / columns / max(5, len(word))),
                ha="center",
                va="center",
                color="#006400" if found[patch] else "black",
                weight="bold" if found[patch] else "normal",
                parse_math=False,
                path_effects=[withStroke(linewidth=1.6, foreground="white")],
            )
    figure.suptitle(lens.model, fontsize=10)
    return figure


def lens_html(lens: Lens) -> str:
    """Return each image with a word on every patch, and a slider over views that starts at the last."""
    parts, start = [_STYLE, _looked_for(lens)], len(lens.views) - 1
    for image in range(len(lens.grids)):
        name = "seen"
        if lens.pictures:
            url = data_url(lens.pictures[image])
            name = "seen-" + hashlib.sha256(url.encode()).hexdigest()[:12]
            parts.append(f"<style>.{name} {{ background-image: url({url}); }}</style>")
        if len(lens.grids) > 1:
            parts.append(f"<h3>image {image + 1}</h3>")
        frames = [(view, _overlay(lens, number, image, name)) for number, view in enumerate(lens.views)]
        parts.append(slider(frames, group="lens", start=start))
    return "".join(parts)


def _looked_for(lens: Lens) -> str:
    """Say by which tokens the words are found that are looked for: of some words it is a beginning only, or none."""
    said = [
        f"{escape(word)} as {', '.join(escape(repr(text)) for text in texts)}"
        if texts
        else f"{escape(word)}: no token of this vocabulary writes it or its beginning"
        for word, texts in lens.settings.get("found as", {}).items()
    ]
    return f'<p class="about">Looked for: {"; ".join(said)}.</p>' if said else ""


def _overlay(lens: Lens, number: int, image: int, name: str) -> str:
    rows, columns = lens.grids[image]
    ids = lens.patches(lens.ids_nvk, image)[number]
    scores = lens.patches(lens.scores_nvk, image)[number]
    found = lens.patches(lens.found_nvk, image)[number].any(-1)
    cells = []
    for patch, (words, values) in enumerate(zip(ids, scores, strict=True)):
        texts = [shown(lens.text[int(i)]) for i in words]
        listed = "\n".join(f"{text}  {value:.3f}" for text, value in zip(texts, values, strict=True))
        word = texts[0][:_LONGEST]
        mark = ' class="found"' if found[patch] else ""
        cells.append(f'<span{mark} style="--n:{len(word)}" title="{escape(listed)}">{escape(word)}</span>')
    measure = "cosine" if lens.views[number] == "input" else "probability"
    common = ", ".join(
        f"{escape(word)} &times; {count}" for word, count in lens.common(lens.views[number], 6, image)
    )
    share = f" {found.mean():.0%} of the patches have a word that is looked for." if lens.find else ""
    grid = f'<div class="lens {name}" style="--columns:{columns};--rows:{rows}">{"".join(cells)}</div>'
    return f'{grid}<p class="about">Nearest word by {measure}; most often: {common}.{share}</p>'


def shown(text: str) -> str:
    """Return what a token writes so that it can be seen: without spaces around it, line breaks as signs.

    Example:
        >>> shown(" cat"), shown("\\n"), shown("  ")
        ('cat', '\u23ce', '\u2423')
    """
    if not text:
        return "\u2205"
    return text.strip() or ("\u23ce" if "\n" in text else "\u2423")
