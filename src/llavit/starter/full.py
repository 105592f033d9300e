"""The corpus at full size: captions, conversations and questions for validation, made by every maker there is.

    Part.record(number) --processes--> images/PART/*.jpg, chunks of records --> PART.json, manifest.json

A record depends on (seed, part, number) and on the packages alone. A chunk is written when its pictures are, so an
interrupted build goes on with the chunks that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from llavit.starter.full_plan import Part
from llavit.starter.gallery import open_gallery
from llavit.starter.kit import Edition, Gallery
from llavit.starter.manifest import finished_manifest, one_build
from llavit.starter.packages import packages
from llavit.starter.processes import lines_of_processes
from llavit.starter.sources import package_versions, starter_licences
from llavit.starter.workshop import QUALITY

FULL_GENERATOR = 1
"""Raised by every change that alters pictures or records for the same settings."""
PARTS = ("pretrain", "instruct", "val")
_CHUNK = 100
_BOOT = "from llavit.starter.full import work; work()"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FullCorpus:
    """A finished corpus on disk; the image paths in its json files are relative to `root`.

    Attributes:
        root: its folder.
        counts: records of each part.
        turns: questions with an answer in the conversations.
        fingerprint: SHA-256 over the fingerprints of the json files.
        drawn: pictures drawn by the call that returned this.
    """

    root: Path
    counts: dict[str, int]
    turns: int
    fingerprint: str
    drawn: int = 0

    @property
    def manifest(self) -> Path:
        """What was built, of which packages under which licences, and the hash of each json file."""
        return self.root / "manifest.json"


def build_full_corpus(
    out: Path | str,
    *,
    edition: Edition = "full",
    pretrain: int = 30_000,
    instruct: int = 13_200,
    val: int = 2_000,
    image_size: int = 112,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> FullCorpus:
    """Build the corpus in a folder, or finish or reuse what is there.

    The test is the benchmark, built by `llavit bench build --edition full`: nothing of it is in here.

    Args:
        out: folder of the corpus; made if missing.
        edition: "full" needs the npm and Debian packages (`llavit.starter.packages`); "starter" makes the same
            kinds of records out of PyPI packages.
        pretrain: number of captioned pictures.
        instruct: number of conversations of up to 5 turns, some 4 on average.
        val: number of questions for validation.
        image_size: side of the pictures in pixels, at least 56.
        seed: another seed gives another corpus with the same split.
        workers: processes; one per core, up to 8, if None.
        progress: called with (records done, records in all).

    Raises:
        FileNotFoundError: packages of the edition are missing.
        ValueError: bad settings, or a folder that holds a corpus with other settings.

    Examples:
        >>> from tempfile import mkdtemp
        >>> corpus = build_full_corpus(mkdtemp(), edition="starter", pretrain=3, instruct=2, val=2, workers=1)
        >>> corpus.counts, corpus.turns >= 2
        ({'pretrain': 3, 'instruct': 2, 'val': 2}, True)
    """
    counts = {"pretrain": pretrain, "instruct": instruct, "val": val}
    for name, number in counts.items():
        if number < 0:
            raise ValueError(f"{name}={number}: a number of records must not be negative")
    if image_size < 56:
        raise ValueError(f"image_size={image_size}: objects are not recognisable below 56 pixels")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: at least one process is needed")
    root = Path(out)
    parts = [Part.of(name, seed, image_size) for name in PARTS]
    settings: dict[str, Any] = {
        "generator": FULL_GENERATOR,
        "edition": edition,
        "seed": seed,
        "image_size": image_size,
        "shares": {part.name: dict(part.shares) for part in parts},
        "packages": edition_versions(edition),
    }
    if found := finished_manifest(root, settings, counts):
        return _corpus(root, found)
    gallery = open_gallery(edition)  # says at once if a package is missing
    with one_build(root):
        if found := finished_manifest(root, settings, counts):  # by the process that was waited for
            return _corpus(root, found)
        return _build(root, settings, counts, gallery, workers, progress)


def _build(
    root: Path,
    settings: dict[str, Any],
    counts: dict[str, int],
    gallery: Gallery,
    workers: int | None,
    progress: Progress | None,
) -> FullCorpus:
    _write(root / "manifest.json", _json({"complete": False, "settings": settings}))
    chunks = [
        (name, start, min(start + _CHUNK, counts[name]))
        for name in PARTS
        for start in range(0, counts[name], _CHUNK)
    ]
    total, started = sum(counts.values()), time.monotonic()
    missing = _not_made(root, chunks)
    done = total - sum(stop - start for _, start, stop in missing)
    drawn, memory = total - done, 0
    if progress:
        progress(done, total)
    workers = min(workers or min(os.cpu_count() or 1, 8), max(1, len(missing)))
    order = {"root": str(root), **{name: settings[name] for name in ("edition", "seed", "image_size")}}
    for number, peak in _made(gallery, order, missing, workers):
        done, memory = done + number, max(memory, peak)
        if progress:
            progress(done, total)
    manifest = {
        "complete": True,
        "settings": settings,
        "counts": counts,
        **_merged(root, chunks),
        "held_out": held_out_of(gallery),
        "licences": licences(settings["edition"]),
    }
    _write(root / "manifest.json", _json(manifest))
    build = {
        "seconds": round(time.monotonic() - started, 1),
        "workers": workers,
        "drawn": drawn,
        "megabytes_of_memory_per_worker": memory,
    }
    _write(root / "build.json", _json(build))  # of this call: no part of what is the same each time
    shutil.rmtree(root / ".chunks", ignore_errors=True)
    return _corpus(root, manifest, drawn)


def edition_versions(edition: Edition) -> dict[str, str]:
    """Version of each package that the pictures of an edition come from.

    Examples:
        >>> "@iconify-json/noto" in edition_versions("full"), "@iconify-json/noto" in edition_versions("starter")
        (True, False)
    """
    found = package_versions()
    if edition == "full":
        found.update({package.name: package.version for package in packages().values()})
    return found


def licences(edition: Edition) -> list[dict[str, str | None]]:
    """Package, licence and attribution of what an edition is made of."""
    found = starter_licences()
    if edition == "full":
        found += [
            {"package": p.name, "licence": p.licence, "attribution": p.attribution}
            for p in packages().values()
        ]
    return found


def held_out_of(gallery: Gallery) -> dict[str, list[str]]:
    """What only the test shows: concepts, art families, fonts, tables and words."""
    shown = {
        split: (*gallery.drawings(split), *gallery.pictures(split)) for split in ("train", "val", "test")
    }
    own = (*shown["train"], *shown["val"])

    def only(test: Iterator[str], others: Iterator[str]) -> list[str]:
        return sorted(set(test) - set(others))

    fonts = [family for split in ("train", "val") for family, _ in gallery.fonts(split)]
    return {
        "concepts": only((d.name for d in gallery.drawings("test")), (d.name for d in own)),
        "styles": only((d.source for d in shown["test"]), (d.source for d in own)),
        "fonts": only((family for family, _ in gallery.fonts("test")), iter(fonts)),
        "tables": only(
            iter(gallery.tables("test")), iter((*gallery.tables("train"), *gallery.tables("val")))
        ),
        "words": only(iter(gallery.words("test")), iter(gallery.words("train"))),
    }


Chunk = tuple[str, int, int]


def _not_made(root: Path, chunks: list[Chunk]) -> list[Chunk]:
    """Chunks whose records or pictures are not there."""
    there = {
        name: set(os.listdir(folder)) if (folder := root / "images" / name).exists() else set()
        for name in PARTS
    }
    return [
        (name, start, stop)
        for name, start, stop in chunks
        if not _chunk_file(root, name, start, stop).exists()
        or any(f"{number:06d}.jpg" not in there[name] for number in range(start, stop))
    ]


def _made(
    gallery: Gallery, order: dict[str, Any], chunks: list[Chunk], workers: int
) -> Iterator[tuple[int, int]]:
    """Make chunks here or in processes; gives the number of records and the peak memory in MB after each."""
    if workers == 1:
        for chunk in chunks:
            yield _make(gallery, order, chunk)
        return
    orders = [{**order, "chunks": chunks[worker::workers]} for worker in range(workers)]
    for line in lines_of_processes(_BOOT, orders, "the build of the corpus"):
        number, memory = json.loads(line)
        yield number, memory


def _make(gallery: Gallery, order: dict[str, Any], chunk: Chunk) -> tuple[int, int]:
    name, start, stop = chunk
    root = Path(order["root"])
    part = Part.of(name, order["seed"], order["image_size"])
    (root / "images" / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(start, stop):
        record, sample = part.record(gallery, number)
        _save(sample.image, root / record["image"])
        lines.append(json.dumps(record, ensure_ascii=False))
    path = _chunk_file(root, *chunk)
    path.parent.mkdir(exist_ok=True)
    _write(path, "\n".join(lines) + "\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return stop - start, peak // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def work() -> None:
    """Body of a worker: an order on stdin, (records, MB of memory) per line on stdout."""
    order = json.load(sys.stdin)
    gallery = open_gallery(order["edition"])
    for name, start, stop in order["chunks"]:
        print(json.dumps(_make(gallery, order, (name, start, stop))), flush=True)


def _chunk_file(root: Path, name: str, start: int, stop: int) -> Path:
    return root / ".chunks" / f"{name}-{start:06d}-{stop:06d}.jsonl"


def _merged(root: Path, chunks: list[Chunk]) -> dict[str, Any]:
    """Write the json files out of the chunks; gives their hashes and what is in them."""
    hashes: dict[str, str] = {}
    per_maker: dict[str, dict[str, int]] = {}
    turns = 0
    for name in PARTS:
        lines: list[str] = []
        for chunk in chunks:
            if chunk[0] == name:
                text = _chunk_file(root, *chunk).read_text(encoding="utf-8")
                lines += text.removesuffix("\n").split("\n")  # splitlines would break a title at U+2028
        text = "[\n" + ",\n".join(lines) + "\n]\n"
        _write(root / f"{name}.json", text)
        hashes[f"{name}.json"] = hashlib.sha256(text.encode()).hexdigest()
        per_maker[name] = {}
        if name == "instruct":
            turns = sum(len(json.loads(line)["conversations"]) // 2 for line in lines)
    settings = json.loads((root / "manifest.json").read_text(encoding="utf-8"))["settings"]
    for name in PARTS:
        part = Part.of(name, settings["seed"], settings["image_size"])
        count = sum(stop - start for chunk, start, stop in chunks if chunk == name)
        per_maker[name] = dict(sorted(Counter(part.plan.slot(i)[0] for i in range(count)).items()))
    return {"turns": turns, "per_maker": per_maker, "sha256": hashes}


def _corpus(root: Path, manifest: dict[str, Any], drawn: int = 0) -> FullCorpus:
    joined = "".join(manifest["sha256"][f"{name}.json"] for name in PARTS)
    fingerprint = hashlib.sha256(joined.encode()).hexdigest()
    return FullCorpus(root, dict(manifest["counts"]), manifest["turns"], fingerprint, drawn)


def _save(image: Image.Image, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    image.convert("RGB").save(temporary, format="JPEG", quality=QUALITY, subsampling=0)
    os.replace(temporary, path)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
