"""Probing the LLM as a vision encoder: what its features know of an image, layer by layer. LLaViT's title claims it.

A k-nearest-neighbour and a linear probe say what is in a picture from its pooled features, a dense probe says what lies
on a patch. They learn on pictures in the styles of training and are asked about other pictures, in those styles and in
one that neither the LLM nor a probe was trained on. The same probes on the vision tower say what the LLM adds.

Shapes: s places (tower and LLM layers), g groups of test pictures; scores are (score, low, high) with a 95 % interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from llavit.evaluate.intervals import estimate
from llavit.inspect.features import Kept, kept_features, places_of
from llavit.inspect.probe_charts import probe_figure
from llavit.inspect.probing import (
    balanced_accuracy,
    linear,
    mean_iou,
    nearest_neighbours,
    patch_interval,
    require_sklearn,
    tallies,
)
from llavit.inspect.report import Analysis
from llavit.inspect.truth import cover
from llavit.starter.truth import Shown, read_truth

GROUPS = ("seen style", "unseen style")
MEASURES = ("knn", "linear", "dense", "miou")


@dataclass(frozen=True)
class ProbePictures:
    """Labelled pictures for probes.

    Attributes:
        train: pictures that probes learn from, in the styles of training.
        test: pictures that they are asked about, of both groups.
        classes: names of the concepts.
        source: what the probes learn from and where it lies, for reports.

    Raises:
        ValueError: a picture is in both.
    """

    train: list[Shown]
    test: list[Shown]
    classes: list[str]
    source: str

    def __post_init__(self) -> None:
        both = sorted({str(s.image) for s in self.train} & {str(s.image) for s in self.test})
        if both:
            raise ValueError(
                f"probe pictures: {len(both)} of them are to be learned from and asked about, such as {both[0]}; a "
                "probe knows by heart what it learned from"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe(Analysis):
    """What features of one model know, by place.

    Attributes:
        knn: (s, g, 3) accuracy of the k-nearest-neighbour probe: which concept is in the picture.
        linear: (s, g, 3) accuracy of the linear probe.
        dense: (s, g, 3) balanced accuracy of the dense probe: which concept is on the patch, background included.
        miou: (s, g, 3) its mean intersection over union.
        places: (s) names, such as "tower 12", "projector reads", "LLM 30".
        groups: (g) names.
        counts: how many classes, pictures and patches.
    """

    NAME: ClassVar[str] = "probe"
    TITLE: ClassVar[str] = "The LLM as a vision encoder"
    ABOUT: ClassVar[str] = (
        "Probes read off features what a picture shows: of the vision tower, of what the projector reads, and after "
        "layers of the LLM (0 is the projector's output). They learn on pictures in styles of training, and are asked "
        "about others, in those styles and in an unseen one. Bands are 95 % intervals, the dotted line is guessing."
    )

    knn: np.ndarray
    linear: np.ndarray
    dense: np.ndarray
    miou: np.ndarray
    places: list[str]
    groups: list[str] = field(default_factory=lambda: list(GROUPS))
    counts: dict[str, Any] = field(default_factory=dict)

    def figure(self) -> Any:
        """Scores by place."""
        return probe_figure([self])

    def facts(self) -> dict[str, Any]:
        """Return settings, counts and every score with its interval; None where a group has no pictures."""
        scores = {
            place: {
                measure: {
                    group: [
                        None if np.isnan(value) else round(float(value), 4)
                        for value in getattr(self, measure)[row, column]
                    ]
                    for column, group in enumerate(self.groups)
                }
                for measure in MEASURES
            }
            for row, place in enumerate(self.places)
        }
        return {**super().facts(), "scores": scores}

    def best(self, measure: str = "linear", part: str = "LLM", group: str = GROUPS[1]) -> tuple[str, float]:
        """Return the place of a part ("tower" or "LLM") with the highest score, and that score."""
        column = self.groups.index(group)
        rows = [row for row, place in enumerate(self.places) if place.startswith(part)]
        if not rows:
            raise ValueError(f"part={part!r}: expected one of the places to begin with it, got {self.places}")
        row = max(rows, key=lambda r: getattr(self, measure)[r, column, 0])
        return self.places[row], float(getattr(self, measure)[row, column, 0])


def probe_pictures(
    data: str | Path, train: str | None = None, limit: int | None = None, least: int = 4
) -> ProbePictures:
    """Choose labelled pictures of a starter corpus for probes.

    Probes learn from pictures that are drawn like the model's training data. Those of `val` were never shown to it;
    those of `instruct` were, if it was trained on this corpus, so that they flatter its LLM. They are asked about
    pictures of `test` without concepts that training never shows. A concept has one drawing in each style, so that in a
    seen style probes are asked about drawings that they learned from; in the unseen style they are not: pictures that
    hold drawings of both kinds are left out.

    Args:
        data: folder of a corpus (`llavit.starter.corpus.build_corpus`).
        train: the split to learn from; val if it has pictures, else instruct.
        limit: at most so many pictures of each split.
        least: pictures of a concept alone that it takes to be a class.

    Raises:
        FileNotFoundError: no corpus there.
        ValueError: too few pictures, or `train` is "test".

    Example:
        >>> from tempfile import mkdtemp
        >>> from llavit.starter.corpus import build_corpus
        >>> sizes = dict(pretrain=0, instruct=0, val=120, test=12, kinds={"name": 1, "size": 1}, vocabulary=24)
        >>> found = probe_pictures(build_corpus(mkdtemp(), **sizes, workers=1).root, least=3)
        >>> found.source, 10 < len(found.classes) <= 24, {s.unseen_concept for s in found.test}
        ('val', True, {False})
    """
    if train is None:
        train = "val" if _with_objects(read_truth(data, ["val"])) else "instruct"
    learned = _with_objects(read_truth(data, [train]))[:limit]
    asked = [s for s in _with_objects(read_truth(data, ["test"])) if not s.unseen_concept][:limit]
    learned = [s for s in learned if not s.unseen_style]
    styles = {thing["source"] for s in learned for thing in s.objects}
    asked = [s for s in asked if not (s.unseen_style and styles & {thing["source"] for thing in s.objects})]
    alone = Counter(next(iter(s.concepts)) for s in learned if len(s.concepts) == 1)
    classes = sorted(name for name, count in alone.items() if count >= least)
    known = set(classes)
    kept = [[s for s in split if s.concepts <= known] for split in (learned, asked)]
    groups = Counter(GROUPS[s.unseen_style] for s in kept[1] if len(s.concepts) == 1)
    if len(classes) < 2 or not groups:
        raise ValueError(
            f"{data}: expected at least 2 concepts with {least} pictures each in {train} and pictures of them in test, "
            f"got {len(classes)} concepts and {sum(groups.values())} test pictures; build a larger corpus, or one of "
            "fewer concepts: build_corpus(..., val=600, test=600, vocabulary=24)"
        )
    return ProbePictures(kept[0], kept[1], classes, train)


def _with_objects(shown: list[Shown]) -> list[Shown]:
    return [s for s in shown if s.objects]


def probe_layers(
    model: Any,
    processor: Any,
    pictures: ProbePictures | str | Path,
    *,
    name: str = "model",
    layers: Sequence[int] | None = None,
    tower_layers: Sequence[int] | None = None,
    prefix: bool = True,
    neighbours: int = 5,
    strength: float = 0.1,
    patches: int = 4,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Probe:
    """Probe the features of a model, layer by layer.

    Args:
        model: a LLaVA or LLaViT of this package.
        processor: that of the model.
        pictures: of `probe_pictures`, or the folder of a corpus.
        name: of the model in reports.
        layers: of the LLM, 0 for the projector's output; about eleven if not given.
        tower_layers: of the tower alike; about five if not given.
        prefix: the image stands behind what comes before it in a prompt; False runs it alone.
        neighbours: of the k-nearest-neighbour probe.
        strength: inverse of the linear probes' penalty (C).
        patches: of each picture, for the dense probe; half of them on objects where there are as many.
        batch_size: pictures at a time.
        seed: of the choice of patches.
        progress: called with (pictures encoded, in all).

    Raises:
        ImportError: scikit-learn is not installed.
        FileNotFoundError: no corpus there.
        ValueError: too few pictures, or a layer that there is not.

    Example:
        ```python
        result = probe_layers(model, processor, "runs/probe-data")
        print(result.best("linear", part="tower"), result.best("linear", part="LLM"))
        ```
    """
    require_sklearn()
    if not isinstance(pictures, ProbePictures):
        pictures = probe_pictures(pictures)
    places = places_of(model, layers, tower_layers)
    shown = pictures.train + pictures.test
    picks_nk, truth_nk = _patches(shown, pictures.classes, processor, patches, seed)
    kept = kept_features(
        model,
        processor,
        [s.image for s in shown],
        places,
        picks_nk,
        prefix=prefix,
        batch_size=batch_size,
        progress=progress,
    )
    task = _Task.of(pictures, truth_nk)
    rows = [task.scores(kept[place], neighbours, strength, seed) for place in places]
    scores: dict[str, Any] = {measure: np.array([row[measure] for row in rows]) for measure in MEASURES}
    settings = {
        "learned from": pictures.source,
        "prefix": prefix,
        "neighbours": neighbours,
        "strength": strength,
        "patches": patches,
        "seed": seed,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    return Probe(
        model=name, settings=settings, **scores, places=[str(place) for place in places], counts=task.counts()
    )


def _patches(
    shown: Sequence[Shown], classes: Sequence[str], processor: Any, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose patches of each picture: their numbers (n, k), and what is on them (n, k), the last class for background.

    A patch of which an object covers a little is nobody's, and not asked about. Where a picture has too few patches,
    some are chosen twice, and the second time not asked about (-1).
    """
    rng = np.random.default_rng(seed)
    numbers = {name: number for number, name in enumerate(classes)}
    picks = np.zeros((len(shown), count), np.int64)
    truth = np.full((len(shown), count), -1, np.int64)
    for row, each in enumerate(shown):
        with Image.open(each.image) as picture:
            width, height = picture.size
        shares = cover(each.objects, processor, width, height).reshape(len(each.objects), -1)
        most = shares.max(0)
        names = np.array([numbers[thing["name"]] for thing in each.objects])
        what = np.where(most >= 0.5, names[shares.argmax(0)], len(classes))
        on, off = (rng.permutation(np.flatnonzero(mask)) for mask in (most >= 0.5, most <= 0.1))
        half = max(count - len(off), (count + 1) // 2)
        chosen = np.concatenate([on[:half], off])[:count]
        picks[row, : len(chosen)] = chosen
        truth[row, : len(chosen)] = what[chosen]
    return picks, truth


@dataclass(frozen=True)
class _Task:
    """Labels of pictures and patches, and who is trained on and who is asked."""

    classes: list[str]
    train_n: np.ndarray
    unseen_n: np.ndarray
    concept_n: np.ndarray
    truth_nk: np.ndarray

    @classmethod
    def of(cls, pictures: ProbePictures, truth_nk: np.ndarray) -> _Task:
        shown = pictures.train + pictures.test
        numbers = {name: number for number, name in enumerate(pictures.classes)}
        concepts = [numbers[next(iter(s.concepts))] if len(s.concepts) == 1 else -1 for s in shown]
        return cls(
            pictures.classes,
            np.arange(len(shown)) < len(pictures.train),
            np.array([s.unseen_style for s in shown]),
            np.array(concepts),
            truth_nk,
        )

    def _group(self, number: int) -> np.ndarray:
        return ~self.train_n & (self.unseen_n == bool(number))

    def scores(
        self, kept: Kept, neighbours: int, strength: float, seed: int
    ) -> dict[str, list[tuple[float, ...]]]:
        """Train the probes on one place's features and ask them: (score, low, high) of each group by measure."""
        alone, background = self.concept_n >= 0, len(self.classes)
        learn, ask = alone & self.train_n, alone & ~self.train_n
        right = np.zeros((2, len(alone)))
        args = kept.pooled_nd[learn], self.concept_n[learn], kept.pooled_nd[ask]
        right[0, ask] = nearest_neighbours(*args, neighbours) == self.concept_n[ask]
        right[1, ask] = linear(*args, strength=strength) == self.concept_n[ask]
        known = self.truth_nk >= 0
        owner = np.broadcast_to(np.arange(len(alone))[:, None], known.shape)
        learn_nk, ask_nk = known & self.train_n[:, None], known & ~self.train_n[:, None]
        guess_nk = np.full(known.shape, -1)
        guess_nk[ask_nk] = linear(
            kept.picked_nkd[learn_nk],
            self.truth_nk[learn_nk],
            kept.picked_nkd[ask_nk],
            strength=strength,
            balanced=True,
        )
        found: dict[str, list[tuple[float, ...]]] = {measure: [] for measure in MEASURES}
        for number, group in enumerate(GROUPS):
            mine = self._group(number)
            for row, measure in enumerate(("knn", "linear")):
                points = right[row, ask & mine]
                score = estimate(points.tolist(), group) if len(points) else None
                found[measure].append((score.score, score.low, score.high) if score else (np.nan,) * 3)
            here = ask_nk & mine[:, None]
            if not here.any():
                for measure in ("dense", "miou"):
                    found[measure].append((np.nan,) * 3)
                continue
            counts = tallies(self.truth_nk[here], guess_nk[here], owner[here], background + 1)
            found["dense"].append(patch_interval(counts, balanced_accuracy, seed))
            found["miou"].append(patch_interval(counts, mean_iou, seed))
        return found

    def counts(self) -> dict[str, Any]:
        """How many of what, and what guessing scores."""
        alone, known = self.concept_n >= 0, self.truth_nk >= 0
        groups = {group: self._group(number) for number, group in enumerate(GROUPS)}
        return {
            "classes": len(self.classes),
            "pictures to learn from": int((alone & self.train_n).sum()),
            "patches to learn from": int(known[self.train_n].sum()),
            "pictures asked": {group: int((alone & mine).sum()) for group, mine in groups.items()},
            "patches asked": {group: int(known[mine].sum()) for group, mine in groups.items()},
            "accuracy of guessing": 1 / len(self.classes),
            "balanced accuracy of guessing": 1 / (len(self.classes) + 1),
        }
