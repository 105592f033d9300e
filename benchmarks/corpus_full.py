"""What the corpora are made of and what they take: drawings per family and split, records, duplicates, seconds, MB.

    .venv/bin/python benchmarks/corpus_full.py runs/starter-full runs/starter-data docs/starter/corpus-full.json

Builds both corpora where they are not there yet, in one process each; reads what is there otherwise. The seconds and
the memory of the full one are those of the call that finished it (build.json); those of the starter's are measured
only if this call builds it whole.
"""

import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path

from llavit.evaluate.environment import environment
from llavit.starter.concepts import held_out
from llavit.starter.corpus import build_corpus
from llavit.starter.full import FullCorpus, build_full_corpus, held_out_of
from llavit.starter.gallery import open_gallery
from llavit.starter.kit import Edition, Gallery
from llavit.starter.packages import packages, packages_dir

SPLITS = ("train", "val", "test")


def megabytes(folder: Path) -> float:
    """Size of the files in a folder, links not followed."""
    return round(
        sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink()) / 1e6, 1
    )


def about_gallery(edition: Edition) -> dict:
    """Drawings, concepts, fonts, tables and words of each split."""
    gallery: Gallery = open_gallery(edition)
    found: dict = {}
    for split in SPLITS:
        objects, alone = gallery.drawings(split), gallery.pictures(split)
        found[split] = {
            "objects": dict(Counter(d.source for d in objects)),
            "pictures alone": dict(Counter(d.source for d in alone)),
            "names of objects": len({d.name for d in objects}),
            "of them held out": sum(held_out(name) for name in {d.name for d in objects}),
            "font families": len({family for family, _ in gallery.fonts(split)}),
            "tables": len(gallery.tables(split)),
            "words": len(gallery.words(split)),
        }
    found["only in the test"] = {what: len(names) for what, names in held_out_of(gallery).items()}
    return found


def about_full(corpus: FullCorpus) -> dict:
    """Records and turns, how they were built, and what lies on the disk."""
    manifest = json.loads(corpus.manifest.read_text(encoding="utf-8"))
    return {
        "counts": corpus.counts,
        "turns": corpus.turns,
        "per maker": manifest["per_maker"],
        "fingerprint": corpus.fingerprint,
        "megabytes": megabytes(corpus.root),
        "build": json.loads((corpus.root / "build.json").read_text(encoding="utf-8")),
    }


def about_starter(folder: Path) -> dict:
    """The starter's corpus at its default size."""
    started = time.monotonic()
    corpus = build_corpus(folder, workers=1)
    build = None
    if corpus.drawn == sum(corpus.counts.values()):
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        build = {"seconds": round(time.monotonic() - started, 1), "workers": 1, "megabytes_of_memory": memory}
    return {
        "counts": corpus.counts,
        "fingerprint": corpus.fingerprint,
        "megabytes": megabytes(folder),
        "build": build,
    }


def main(full: Path, starter: Path, output: Path) -> None:
    """Write the report."""
    starter_corpus = about_starter(starter)  # first: its memory is that of this process
    report = {
        "starter corpus": starter_corpus,
        "full corpus": about_full(build_full_corpus(full, workers=1)),
        "starter gallery": about_gallery("starter"),
        "full gallery": about_gallery("full"),
        "near-duplicates kept from training": len(open_gallery("full").left_out),  # type: ignore[attr-defined]
        "packages of the full edition": {
            "number": len(packages()),
            "megabytes to get": round(sum(p.bytes for p in packages().values()) / 1e6, 1),
            "megabytes unpacked": megabytes(packages_dir()),
        },
        "environment": environment(),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(output)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
