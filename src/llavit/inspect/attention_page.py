"""Attention maps as a picture and as a page: words to choose, a slider over layers, heads, and patches to click.

Words are chosen without JavaScript. Another patch than the one that was looked at closely is chosen with it.
"""

from __future__ import annotations

import base64
import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from llavit.inspect.heat import RAMP, STYLE, background, draw_heat, heat_html
from llavit.inspect.report import escape, new_figure, slider

if TYPE_CHECKING:
    from llavit.inspect.maps import AttentionMaps

_NUMBERS = itertools.count()  # tells the parts of one page apart

_MOST = 3_000_000  # weights between patches that a page carries; beyond, layers are left out

_STYLE = """<style>
.pick > input { position: absolute; opacity: 0; } .pick .panel { display: none; } .pick .choice { line-height: 1.9; }
.choice label { display: inline-block; padding: 0 .3rem; border-radius: .25rem; border: 1px solid var(--line); }
.choice label { cursor: pointer; } .choice label:hover { background: var(--soft); }
.frames.live .maps figcaption, .frames.live .heads figcaption { display: block; }
.cells { position: absolute; inset: 0; display: grid; } .cells i { cursor: crosshair; }
.cells i.at { box-shadow: 0 0 0 2px #fff, 0 0 0 3px #000; z-index: 1; }
</style>"""

_SCRIPT = """<script>
"use strict";
(() => {
  const box = document.currentScript.previousElementSibling, about = JSON.parse(box.dataset.about);
  const bytes = Uint8Array.from(atob(box.dataset.weights), (c) => c.charCodeAt(0));
  const { rows, columns, layers, ramp, under } = about, v = rows * columns;
  let layer = layers.length - 1, patch = about.patch;
  const make = (name) => document.createElement(name);
  const control = make("label"), range = make("input"), output = make("output");
  control.className = "control";
  Object.assign(range, { type: "range", min: 0, max: layers.length - 1, value: layer });
  control.append("layer", range, output);
  const maps = make("div");
  maps.className = "maps";
  const grids = ["where it looks", "who looks at it"].map((title) => {
    const figure = make("figure"), caption = make("figcaption");
    const map = make("div"), cells = make("div");
    map.className = "map " + under;
    map.style.aspectRatio = columns + "/" + rows;
    cells.className = "cells";
    cells.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
    for (let n = 0; n < v; n++) {
      const cell = make("i");
      cell.addEventListener("click", () => { patch = n; show(); });
      cells.append(cell);
    }
    map.append(cells); figure.append(caption, map); maps.append(figure);
    return { title, caption, cells: [...cells.children] };
  });
  const colour = (share) => {
    let k = 1;
    while (k < ramp.length - 1 && share > ramp[k][0]) k++;
    const [a, b] = [ramp[k - 1], ramp[k]], t = Math.min(1, (share - a[0]) / (b[0] - a[0]));
    const mix = a.map((value, n) => value + t * (b[n] - value));
    return `rgba(${mix[1]},${mix[2]},${mix[3]},${mix[4]})`;
  };
  const show = () => {
    output.textContent = "layer " + layers[layer];
    grids.forEach(({ title, caption, cells }, turned) => {
      const at = (q, k) => (bytes[layer * v * v + q * v + k] / 255) ** 2;
      const values = cells.map((cell, n) => turned ? at(n, patch) : at(patch, n)), top = Math.max(...values, 1e-9);
      cells.forEach((cell, n) => {
        cell.style.background = colour(values[n] / top);
        cell.classList.toggle("at", n === patch);
      });
      caption.textContent = `${title}: row ${Math.floor(patch / columns)}, column ${patch % columns}`;
    });
  };
  range.addEventListener("input", () => { layer = Number(range.value); show(); });
  box.append(control, maps);
  show();
})();
</script>"""


def maps_figure(maps: AttentionMaps) -> Any:
    """Draw a row each for the word, the word rolled out, the patch, and who looks at it; columns are layers."""
    count = len(maps.layers)
    chosen = sorted({round(i) for i in np.linspace(0, count - 1, min(5, count))})
    word, k = maps.words[maps.word], maps.word
    rows = [
        (f'"{word}"\nlooks at', maps.word_maps[k], None),
        (f'"{word}"\nrolled out', maps.word_rollout[k], None),
        ("the patch\nlooks at", maps.patch_looks.mean(1), maps.patch),
        ("who looks\nat the patch", maps.patch_seen.mean(1), maps.patch),
    ]
    high = 1.9 * maps.grid[0] / maps.grid[1]
    figure = new_figure(1.9 * (len(chosen) + 1) + 0.5, len(rows) * high + 0.9)
    axes = figure.subplots(len(rows), len(chosen) + 1, squeeze=False)
    for axis, number in zip(axes[0], [None, *chosen], strict=True):
        axis.set_title("all layers" if number is None else f"layer {maps.layers[number]}", fontsize=9)
    for line, (title, of_layers, patch) in zip(axes, rows, strict=True):
        rolled = "rolled" in title
        for axis, number in zip(line, [None, *chosen], strict=True):
            shown = (
                of_layers[number] if number is not None else of_layers[-1] if rolled else of_layers.mean(0)
            )
            draw_heat(axis, maps.picture, shown, patch)
            if patch is None:
                axis.set_xlabel(f"{shown.sum():.0%} on the image", fontsize=7)
        line[0].set_ylabel(title, fontsize=9)
    asked = f"{maps.model}: {maps.settings['question']!r} {maps.answer!r}"[:110]
    figure.suptitle(asked, fontsize=9, parse_math=False)  # a price is no formula
    return figure


def maps_html(maps: AttentionMaps) -> str:
    """Return words to choose, a slider over layers, heads, and patches to click."""
    under, style = background(maps.picture)
    close = escape(maps.words[maps.word])
    row, column = divmod(maps.patch, maps.grid[1])
    patch_frames = [
        (
            f"layer {layer}",
            _beside(
                ("where it looks", looks.mean(0), maps.patch),
                ("who looks at it", seen.mean(0), maps.patch),
                ("rolled out: what it is made of", rolled, maps.patch),
                under=under,
            )
            + _heads(looks, under, maps.patch, "where it looks, head by head"),
        )
        for layer, looks, seen, rolled in zip(
            maps.layers, maps.patch_looks, maps.patch_seen, maps.patch_rollout, strict=True
        )
    ]
    heads = [
        (f"layer {layer}", _heads(of_heads, under, None))
        for layer, of_heads in zip(maps.layers, maps.word_heads, strict=True)
    ]
    last = len(maps.layers) - 1
    parts = [
        STYLE,
        _STYLE,
        style,
        f"<p><strong>{escape(maps.settings['question'])}</strong> Choose a word of the answer:</p>",
        _words(maps, under),
        f"<h3>Heads: &ldquo;{close}&rdquo;</h3>",
        slider(heads, start=last),
        f"<h3>Patch in row {row}, column {column}</h3>",
        slider(patch_frames, start=last),
        "<h3>Any patch</h3><p class='about'>Mean over heads. Click a patch to choose it.</p>",
        _explorer(maps, under),
    ]
    return "".join(parts)


def _words(maps: AttentionMaps, under: str) -> str:
    """Return the answer's words as buttons, and for each a slider over layers."""
    group = f"words{next(_NUMBERS)}"
    radios = labels = panels = rules = ""
    for k, word in enumerate(maps.words):
        name = f"{group}-{k}"
        radios += f'<input type="radio" name="{group}" id="{name}" {"checked" if k == maps.word else ""}>'
        labels += f'<label for="{name}">{escape(word)}</label> '
        rules += f"#{name}:checked ~ .panels .{name} {{ display: block; }} "
        rules += f'#{name}:checked ~ .choice label[for="{name}"] {{ background: var(--edge); color: #fff; }} '
        rules += f'#{name}:focus-visible ~ .choice label[for="{name}"] {{ outline: 2px solid var(--edge); }} '
        frames = [("all layers", _word_frame(maps.word_maps[k].mean(0), maps.word_rollout[k, -1], under))]
        frames += [
            (f"layer {layer}", _word_frame(looks, rolled, under))
            for layer, looks, rolled in zip(maps.layers, maps.word_maps[k], maps.word_rollout[k], strict=True)
        ]
        panels += f'<div class="panel {name}">{slider(frames, group="words")}</div>'
    return (
        f'<style>{rules}</style><div class="pick">{radios}<p class="choice">{labels}</p>'
        f'<div class="panels">{panels}</div></div>'
    )


def _word_frame(looks: np.ndarray, rolled: np.ndarray, under: str) -> str:
    return _beside(
        (f"attention, {looks.sum():.0%} of it on the image", looks, None),
        (f"rolled out, {rolled.sum():.0%} from the image", rolled, None),
        under=under,
    )


def _beside(*maps: tuple[str, np.ndarray, int | None], under: str) -> str:
    inside = "".join(
        f"<figure><figcaption>{escape(caption)}</figcaption>{heat_html(patches, under, patch)}</figure>"
        for caption, patches, patch in maps
    )
    return f'<div class="maps">{inside}</div>'


def _heads(of_heads: np.ndarray, under: str, patch: int | None, title: str = "") -> str:
    """Return the maps of all heads of a layer."""
    inside = "".join(
        f"<figure><figcaption>{head}: {patches.sum():.0%}</figcaption>{heat_html(patches, under, patch)}</figure>"
        for head, patches in enumerate(of_heads)
    )
    about = f'<p class="about">{escape(title)}</p>' if title else ""
    return f'{about}<div class="heads">{inside}</div>'


def _explorer(maps: AttentionMaps, under: str) -> str:
    """Return what a script turns into a picture whose patches can be clicked."""
    n, v, _ = maps.patch_maps.shape
    kept = sorted({round(i) for i in np.linspace(0, n - 1, max(1, min(n, _MOST // (v * v))))})
    weights = maps.patch_maps[kept]
    top = weights.max(axis=(1, 2), keepdims=True)
    shares = np.sqrt(weights / np.where(top > 0, top, 1))  # small weights need the finer steps
    about = {
        "rows": maps.grid[0],
        "columns": maps.grid[1],
        "layers": [maps.layers[i] for i in kept],
        "patch": maps.patch,
        "ramp": RAMP.tolist(),
        "under": under,
    }
    data = base64.b64encode((255 * shares).round().astype(np.uint8).tobytes()).decode()
    return f'<div data-about="{escape(json.dumps(about))}" data-weights="{data}"></div>{_SCRIPT}'
