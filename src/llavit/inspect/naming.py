"""Do visual tokens name what is there? The vocabulary lens over many pictures whose objects and boxes are known.

The paper observes that LLaVA's visual tokens have little to do with the right words at the input, and more behind later
layers. Here that is a curve: the share of patches of which one of the k nearest words names the object, by layer,
beside the same words held against the truth of other pictures.

Shapes: n views (the input, or behind a layer), p pictures, k words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llavit.evaluate.intervals import Estimate, estimate
from llavit.inspect.inputs import one_image
from llavit.inspect.lens import INPUT, read_words
from llavit.inspect.report import COLOURS, Analysis, escape, figure_html, new_figure
from llavit.inspect.truth import BACKGROUND, patch_objects
from llavit.inspect.vocabulary import Vocabulary
from llavit.inspect.weights import chosen_layers
from llavit.model.images import load_image
from llavit.starter.concepts import plural
from llavit.starter.gallery.names import accepted_names
from llavit.starter.truth import Shown

OTHERS = 10
"""Other pictures that each picture's words are held against, for the level of chance."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Naming(Analysis):
    """How often a word of a patch names an object that is there.

    Attributes:
        views: "input" or "layer 0", ...: where it was looked.
        patch_npk: (n, p, k) share of a picture's object patches of which one of the nearest 1, 2, ... k words names the
            object at the patch.
        patch_chance_npk: (n, p, k) the same words, for the objects of other pictures.
        picture_npk: (n, p, k) share of all patches of which a word names any object of the picture.
        picture_chance_npk: (n, p, k) the same words, for the objects of other pictures.
        unseen_style_p: (p,) bool: drawn in a style that training never shows.
        pictures: files, in order.
        names: words that count as naming each thing.
    """

    NAME = "naming"
    TITLE = "Do visual tokens name what is there?"
    ABOUT = (
        "The share of patches of which one of the nearest words names the object, at the input and behind each "
        "layer, as a mean over pictures with 95 % intervals. Dashed: the same words held against the objects of other "
        "pictures: what chance gives."
    )

    views: tuple[str, ...]
    patch_npk: np.ndarray
    patch_chance_npk: np.ndarray
    picture_npk: np.ndarray
    picture_chance_npk: np.ndarray
    unseen_style_p: np.ndarray
    pictures: tuple[str, ...]
    names: dict[str, list[str]]

    def curve(self, of: str = "patch", k: int | None = None, chance: bool = False) -> list[Estimate]:
        """Return the mean over pictures in each view, with its 95 % interval.

        Args:
            of: "patch", the object at the patch; or "picture", any object of the picture.
            k: count the nearest so many words; all if not given.
            chance: against the objects of other pictures instead.

        Raises:
            ValueError: another kind of curve, or a k that was not looked at.

        Example:
            ```python
            [round(point.score, 2) for point in naming.curve(k=1)]
            ```
        """
        values = {
            "patch": (self.patch_npk, self.patch_chance_npk),
            "picture": (self.picture_npk, self.picture_chance_npk),
        }.get(of)
        most = self.patch_npk.shape[-1]
        if values is None or not 1 <= (k or most) <= most:
            raise ValueError(f"of={of!r}, k={k}: expected patch or picture, and a k from 1 to {most}")
        chosen = values[int(chance)][..., (k or most) - 1]
        return [estimate(points, "pictures") for points in chosen]

    def rows(self, k: int | None = None) -> list[dict[str, Any]]:
        """Return a row for each view: shares with intervals, chance, and how far above chance, as plain values.

        Example:
            ```python
            max(naming.rows(), key=lambda row: row["patch"]["score"])["view"]
            ```
        """
        last = (k or self.patch_npk.shape[-1]) - 1
        above = (self.patch_npk - self.patch_chance_npk)[..., last]
        curves = zip(
            self.views,
            self.curve("patch", k),
            self.curve("patch", k, chance=True),
            (estimate(points, "pictures") for points in above),
            self.curve("picture", k),
            self.curve("picture", k, chance=True),
            strict=True,
        )
        keys = ("patch", "patch_chance", "patch_above_chance", "picture", "picture_chance")
        return [
            {"view": view, **{key: point.as_dict() for key, point in zip(keys, points, strict=True)}}
            for view, *points in curves
        ]

    def facts(self) -> dict[str, Any]:
        """Return settings and the curves, for one word and for all k."""
        return {**super().facts(), "by_view": {f"k={k}": self.rows(k) for k in {1, self.patch_npk.shape[-1]}}}

    def figure(self) -> Any:
        """Draw both curves with their chance levels."""
        return naming_figure([self])

    def body(self) -> str:
        """Return the figure and a table of all views."""
        most = self.patch_npk.shape[-1]
        heads = "".join(
            f'<th class="number">{head}</th>'
            for head in (
                f"object at the patch, {most} words",
                "chance",
                "above chance",
                "any object of the picture",
                "chance",
            )
        )
        keys = ("patch", "patch_chance", "patch_above_chance", "picture", "picture_chance")
        rows = "".join(
            f"<tr><td>{escape(row['view'])}</td>"
            + "".join(f'<td class="number">{escape(percent(row[key]))}</td>' for key in keys)
            + "</tr>"
            for row in self.rows()
        )
        about = f"{len(self.pictures)} pictures. Percent, with 95 % intervals over pictures."
        table = f'<div class="wide"><table><tr><th>view</th>{heads}</tr>{rows}</table></div>'
        return f'{figure_html(self.figure(), self.TITLE)}<p class="about">{about}</p>{table}'


def percent(point: dict[str, float]) -> str:
    """Return an estimate as percent with its interval.

    Example:
        >>> percent({"score": 0.5, "low": 0.4, "high": 0.625})
        '50.0 [40.0, 62.5]'
    """
    return f"{100 * point['score']:.1f} [{100 * point['low']:.1f}, {100 * point['high']:.1f}]"


def naming_figure(results: Sequence[Naming]) -> Any:
    """Draw the curves of one or more models into one figure; each point stands at its own layer.

    Example:
        ```python
        naming_figure([of_llava, of_llavit]).savefig("naming.png")
        ```
    """
    figure = new_figure(10.5, 3.9)
    panels = figure.subplots(1, 2, sharey=True)
    k = results[0].patch_npk.shape[-1]
    views = sorted({view for result in results for view in result.views}, key=_place)
    for panel, of, title in zip(
        panels,
        ("patch", "picture"),
        ("names the object at the patch", "names any object of the picture"),
        strict=True,
    ):
        for number, result in enumerate(results):
            x = [views.index(view) for view in result.views]
            colour = COLOURS[number % len(COLOURS)]
            for chance in (False, True):
                points = result.curve(of, chance=chance)
                panel.plot(
                    x,
                    [100 * point.score for point in points],
                    color=colour,
                    linestyle="--" if chance else "-",
                    linewidth=1 if chance else 1.8,
                    marker=None if chance or len(x) > 12 else "o",
                    label=f"{result.model}{': chance' if chance else ''}",
                )
                low, high = ([100 * getattr(point, end) for point in points] for end in ("low", "high"))
                panel.fill_between(x, low, high, color=colour, alpha=0.08 if chance else 0.18, linewidth=0)
        ticks = sorted({round(i) for i in np.linspace(0, len(views) - 1, min(9, len(views)))})
        panel.set_xticks(ticks, [views[i].replace("layer ", "") for i in ticks])
        panel.set_xlabel("behind layer")
        panel.set_title(f"one of the {k} nearest words\n{title}", fontsize=10)
        panel.grid(color="#e6e6e6", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("patches, %")
    panels[0].set_ylim(bottom=0)
    panels[1].legend(fontsize=8, frameon=False)
    return figure


def _place(view: str) -> int:
    """Where a view stands among others: the input, then layers by number."""
    return -1 if view == INPUT else int(view.removeprefix("layer "))


def naming_shares(
    model: Any,
    processor: Any,
    shown: Sequence[Shown],
    *,
    layers: Sequence[int] | None = None,
    at_input: bool = True,
    k: int = 5,
    whole_words: bool = True,
    batch_size: int = 8,
    seed: int = 0,
    name: str = "model",
    progress: Callable[[int, int], None] | None = None,
) -> Naming:
    """Measure how often the nearest words of patches name an object that is there.

    A patch is an object's if the object's box covers half of it or more. Pictures without an object, or without a patch
    that is one's, are left out. Which words name a thing: `Vocabulary.naming`, over the names that the starter accepts
    in answers, and their plurals. For chance, the words of each picture are held against the objects of ten others that
    were drawn at random.

    Args:
        model: a LLaVA or LLaViT of this package.
        processor: that of the model.
        shown: pictures with their truth, of `llavit.starter.truth.read_truth`.
        layers: of the LLM, from 0, negative ones from the end; all if not given.
        at_input: look at the input as well.
        k: how many words of each patch may name the object.
        whole_words: admit only tokens of letters.
        batch_size: pictures that run together.
        seed: of the draw of other pictures.
        name: what to call the model.
        progress: called with (pictures done, pictures in all).

    Raises:
        ValueError: fewer than two pictures with an object on a patch, no such layer, or a k that is not 1 or more.

    Example:
        ```python
        result = naming_shares(model, processor, read_truth("runs/starter-data"), k=5)
        result.save("runs/inspect")
        ```
    """
    chosen = [] if layers is not None and not len(layers) else chosen_layers(model, layers)
    kept, on_patches = [], []
    for each in shown:
        if each.objects:
            picture = load_image(str(each.image), each.image.name)
            numbers = patch_objects(each.objects, processor, *picture.size).flatten()
            if (numbers != BACKGROUND).any():
                kept.append(each)
                on_patches.append(numbers)
    if len(kept) < 2:
        raise ValueError(
            f"expected at least two pictures with an object on a patch, got {len(kept)} of {len(shown)} pictures"
        )
    words = Vocabulary(model, processor, whole_words)
    things = sorted({thing["name"] for each in kept for thing in each.objects})
    tokens = words.naming({thing: _names(thing) for thing in things})
    names_cw = np.zeros((len(things), len(words.hidden_w)), bool)
    for row, thing in enumerate(things):
        names_cw[row, tokens[thing]] = True
    number = {thing: row for row, thing in enumerate(things)}
    objects = [[number[thing["name"]] for thing in each.objects] for each in kept]
    rng = np.random.default_rng(seed)
    parts: list[tuple[np.ndarray, ...]] = []
    views: tuple[str, ...] = ()
    for start in range(0, len(kept), batch_size):
        batch = range(start, min(start + batch_size, len(kept)))
        encoded = [processor.encode(one_image(str(kept[p].image)), name=kept[p].image.name) for p in batch]
        views, ids_bnvk, _ = read_words(model, words, encoded, chosen, at_input, k)
        for p, ids_nvk in zip(batch, ids_bnvk, strict=True):
            others = rng.choice(np.delete(np.arange(len(kept)), p), min(OTHERS, len(kept) - 1), replace=False)
            ids_nvk = ids_nvk[:, -len(on_patches[p]) :]  # without a CLS token
            parts.append(_shares(ids_nvk, names_cw, on_patches[p], objects[p], [objects[q] for q in others]))
        if progress:
            progress(batch.stop, len(kept))
    at_patch, at_patch_chance, inside, inside_chance = (
        np.stack(column, 1) for column in zip(*parts, strict=True)
    )
    return Naming(
        model=name,
        settings={
            "k": k,
            "whole words": whole_words,
            "dtype": str(model.dtype),
            "pictures given": len(shown),
            "others for chance": min(OTHERS, len(kept) - 1),
            "seed": seed,
        },
        views=views,
        patch_npk=at_patch,
        patch_chance_npk=at_patch_chance,
        picture_npk=inside,
        picture_chance_npk=inside_chance,
        unseen_style_p=np.array([each.unseen_style for each in kept]),
        pictures=tuple(f"{each.split}/{each.image.name}" for each in kept),
        names={thing: sorted({words.text[i] for i in ids}) for thing, ids in tokens.items()},
    )


def _names(thing: str) -> list[str]:
    """All names that are right for a thing, with their plurals."""
    names = (thing, *accepted_names(thing))
    return [form for name in names for form in (name, plural(name))]


def _shares(
    ids_nvk: np.ndarray,
    names_cw: np.ndarray,
    on_patch_v: np.ndarray,
    own: Sequence[int],
    others: Sequence[Sequence[int]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the shares of one picture, (n, k) each: at the patch and by chance, in the picture and by chance."""

    def named(things: Sequence[int]) -> np.ndarray:
        """Whether one of the nearest 1 to k words names each thing: (things, n, v, k)."""
        return np.logical_or.accumulate(names_cw[list(things)][:, ids_nvk], axis=-1)

    def means(things: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Share of object patches that name a thing, mean over things; share of all patches that name any."""
        found = named(things)
        return found[:, :, occupied].mean((0, 2)), found.any(0).mean(1)

    occupied = np.flatnonzero(on_patch_v != BACKGROUND)
    mine = named(own)
    patch = np.stack([mine[on_patch_v[v], :, v] for v in occupied]).mean(0)
    by_chance = [means(things) for things in others]
    return (
        patch.astype(np.float32),
        np.mean([at for at, _ in by_chance], 0).astype(np.float32),
        mine.any(0).mean(1).astype(np.float32),
        np.mean([somewhere for _, somewhere in by_chance], 0).astype(np.float32),
    )
