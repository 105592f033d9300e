"""Builds the starter corpus: pictures and LLaVA-format json, made on the user's machine from installed packages."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavit.starter import concepts
from llavit.starter.charts import HELD_OUT_TABLES
from llavit.starter.items import SPLITS, Factory
from llavit.starter.manifest import finished_manifest, one_build, read_manifest
from llavit.starter.plan import checked_kinds
from llavit.starter.sources import package_versions, starter_licences
from llavit.starter.studio import UNIT
from llavit.starter.truth import TRUTH
from llavit.starter.words import HELD_OUT_FONTS, words
from llavit.starter.workshop import Job, draw_all

GENERATOR = 5
"""Raised by every change that alters pictures or records for the same settings."""

Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""


@dataclass(frozen=True)
class Corpus:
    """A finished corpus on disk; the image paths in its json files are relative to `root`."""

    root: Path
    counts: dict[str, int]
    seed: int
    image_size: int
    fingerprint: str
    """SHA-256 over the fingerprints of the four json files."""
    drawn: int = 0
    """Pictures drawn by the call that returned this; 0 if the corpus was there already."""

    @property
    def pretrain(self) -> Path:
        """Captions in LLaVA's format, for the pre-training stage."""
        return self.root / "pretrain.json"

    @property
    def instruct(self) -> Path:
        """Conversations in LLaVA's format, for the instruction stage."""
        return self.root / "instruct.json"

    @property
    def val(self) -> Path:
        """Questions drawn as in training, for choosing between models."""
        return self.root / "val.json"

    @property
    def test(self) -> Path:
        """Questions with held-out styles, concepts, fonts and tables."""
        return self.root / "test.json"

    @property
    def manifest(self) -> Path:
        """What was built, from what, and the hash of each json file."""
        return self.root / "manifest.json"


def build_corpus(
    out: Path | str,
    *,
    pretrain: int = 10_000,
    instruct: int = 10_000,
    val: int = 1_000,
    test: int = 2_000,
    kinds: Mapping[str, float] | None = None,
    image_size: int = UNIT,
    vocabulary: int | None = None,
    brief: bool = False,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Build the starter corpus in a folder, or finish or reuse what is there.

    An item depends only on (seed, split, number) and on the settings, so a smaller build is a prefix of a
    larger one, and building again gives the same bytes. Pictures that exist are kept: an interrupted build
    goes on where it stopped, and a finished one is returned at once.

    Args:
        out: folder of the corpus; made if missing.
        pretrain: number of captioned pictures.
        instruct: number of conversations of 3 to 6 turns.
        val: number of questions drawn as in training.
        test: number of questions of the test, with held-out concepts and styles among them.
        kinds: weight of each kind of picture in the training splits (see `llavit.starter.plan.KINDS`);
            val and test hold an equal share of each kind with a positive weight.
        image_size: side of the pictures in pixels, at least 56.
        vocabulary: how many concepts, and how many words, training shows, at least 24; None for all of some
            five hundred. A small world can be learned from few pictures. What is held out stays the same.
        brief: ask only what is answered in a word or two that the question does not hold: no yes or no, no
            options, no instruction; eight words to read; bars of charts are told apart by colour; and the test
            asks only for names and words that training shows. More to learn per token, and less to guess.
        seed: another seed gives another corpus with the same held-out concepts.
        workers: processes; None chooses by the size of the task and the number of cores.
        progress: called with (items done, items in all).

    Returns:
        The corpus, with paths and counts.

    Raises:
        ImportError: a package is missing; the message names the extra.
        ValueError: bad settings, or a folder that holds a corpus with other settings.

    Examples:
        >>> from tempfile import mkdtemp
        >>> corpus = build_corpus(mkdtemp(), pretrain=4, instruct=4, val=2, test=2, workers=1)
        >>> corpus.counts["pretrain"], corpus.drawn
        (4, 12)
    """
    counts = {"pretrain": pretrain, "instruct": instruct, "val": val, "test": test}
    for split, number in counts.items():
        if number < 0:
            raise ValueError(f"{split}={number}: a number of items must not be negative")
    if image_size < 56:
        raise ValueError(f"image_size={image_size}: objects are not recognisable below 56 pixels")
    if vocabulary is not None and vocabulary < 24:
        raise ValueError(f"vocabulary={vocabulary}: questions with four options need at least 24 concepts")
    shares = checked_kinds(kinds)
    settings: dict[str, Any] = {
        "generator": GENERATOR,
        "seed": seed,
        "image_size": image_size,
        "vocabulary": vocabulary,
        "brief": brief,
        "kinds": shares,
        "packages": package_versions(),
    }
    root = Path(out)
    names = ("images", *(f"{split}.json" for split in SPLITS))
    if found := finished_manifest(root, settings, counts, names):
        return _corpus(root, found)
    with one_build(root):
        if found := finished_manifest(root, settings, counts, names):  # by the process that was waited for
            return _corpus(root, found)
        return _build(root, settings, counts, workers, progress)


def _build(
    root: Path,
    settings: dict[str, Any],
    counts: dict[str, int],
    workers: int | None,
    progress: Progress | None,
) -> Corpus:
    _write(root / "manifest.json", json.dumps({"complete": False, "settings": settings}, indent=2) + "\n")
    shared = [settings[name] for name in ("image_size", "seed", "vocabulary", "brief")]
    factories = [Factory(split, tuple(settings["kinds"].items()), *shared) for split in SPLITS]
    jobs = [Job(factory, counts[factory.split]) for factory in factories]
    records, truth, drawn = draw_all(root, jobs, workers, progress)
    hashes = {}
    for split in SPLITS:
        text = _lines(records[split]) + "\n"
        _write(root / f"{split}.json", text)
        hashes[f"{split}.json"] = hashlib.sha256(text.encode()).hexdigest()
    training = [f'"{split}": {_lines(truth[split])}' for split in ("pretrain", "instruct")]
    _write(root / TRUTH, "{" + ", ".join(training) + "}\n")
    manifest = {
        "complete": True,
        "settings": settings,
        "counts": counts,
        "per_kind": {
            f.split: dict(Counter(f.plan.slot(i)[0] for i in range(counts[f.split]))) for f in factories
        },
        "sha256": hashes,
        "held_out": {
            "concepts": [c.name for c in concepts.pool(unseen=True)],
            "words": list(words(unseen=True)),
            "styles": ["openmoji"],
            "fonts": list(HELD_OUT_FONTS),
            "tables": list(HELD_OUT_TABLES),
        },
        "licences": starter_licences(),
    }
    _write(root / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return _corpus(root, manifest, drawn)


def open_corpus(out: Path | str) -> Corpus:
    """A finished corpus that lies in a folder.

    Raises:
        FileNotFoundError: no corpus there.
        ValueError: its build was interrupted, and `build_corpus` called again finishes it; or it is damaged.
    """
    root = Path(out)
    manifest = read_manifest(root)
    if not manifest.get("complete"):
        raise ValueError(f"the corpus in {root} is not finished: call build_corpus again with its settings")
    return _corpus(root, manifest)


def _corpus(root: Path, manifest: dict[str, Any], drawn: int = 0) -> Corpus:
    joined = "".join(manifest["sha256"][f"{split}.json"] for split in SPLITS)
    return Corpus(
        root=root,
        counts=dict(manifest["counts"]),
        seed=manifest["settings"]["seed"],
        image_size=manifest["settings"]["image_size"],
        fingerprint=hashlib.sha256(joined.encode()).hexdigest(),
        drawn=drawn,
    )


def _lines(rows: list[dict[str, Any]]) -> str:
    """A json list, one row a line."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]"


def _write(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
