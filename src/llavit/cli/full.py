"""`llavit starter build --full`: what it takes, then packages and corpus."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import typer

PACKAGES_GB, CORPUS_GB = 0.5, 0.3
"""Disk that the unpacked packages, with an archive beside them, and the corpus take: docs/starter/corpus-full.json."""


def build_full(output: Path, image_size: int | None, seed: int, yes: bool) -> None:
    """Show the packages with sizes and licences, ask, fetch what is missing, build the corpus.

    Raises:
        typer.Abort: the user said no.
        FileNotFoundError: packages cannot be had.
        ValueError: there is nobody to ask.
        OSError: the disk is too full.
    """
    from rich.console import Console

    from llavit.progress import progress_bar
    from llavit.starter.full import build_full_corpus
    from llavit.starter.packages import (
        fetch_packages,
        missing_clients,
        missing_packages,
        package_table,
        packages_dir,
    )

    Console(highlight=False).print(package_table())
    missing = missing_packages()
    size = sum(package.bytes for package in missing) / 1e6
    typer.echo(f"Still to get: {len(missing)} packages, {size:,.0f} MB, into {packages_dir()}")
    typer.echo(f"On disk in the end, with the corpus in {output}: about {PACKAGES_GB + CORPUS_GB:g} GB.")
    typer.echo("They keep their licences; whoever passes on a corpus passes on pictures under them.")
    for client, names in missing_clients(missing).items():
        typer.echo(f"There is no {client} here: {', '.join(names)} cannot be had.", err=True)
    if not yes:
        if not sys.stdin.isatty():
            raise ValueError("nobody to ask: add --yes to go on without asking")
        typer.confirm("Go on?", abort=True)
    needs = {packages_dir(): PACKAGES_GB} if missing else {}
    if not _is_finished(output):
        needs[output] = CORPUS_GB
    _require_room(needs)
    if missing:
        with progress_bar("packages") as progress:
            fetch_packages(progress=progress)
    side = 112 if image_size is None else image_size
    with progress_bar("drawing") as progress:
        corpus = build_full_corpus(output, image_size=side, seed=seed, progress=progress)
    parts = ", ".join(f"{name} {count:,}" for name, count in corpus.counts.items())
    typer.echo(f"data   {corpus.root}  {parts}; {corpus.turns:,} turns")
    typer.echo("test   llavit bench build --edition full")


def _is_finished(corpus: Path) -> bool:
    from llavit.starter.manifest import read_manifest

    try:
        return bool(read_manifest(corpus).get("complete"))
    except FileNotFoundError:
        return False


def _require_room(needs: dict[Path, float]) -> None:
    """Raise OSError unless each folder's disk has so many GB free; folders on one disk share it."""
    disks: dict[int, dict[Path, float]] = {}
    for folder, gigabytes in needs.items():
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        disks.setdefault(there.stat().st_dev, {})[folder] = gigabytes
        free = shutil.disk_usage(there).free
        wanted = sum(disks[there.stat().st_dev].values())
        if free < wanted * 1e9:
            names = " and ".join(str(name) for name in disks[there.stat().st_dev])
            raise OSError(f"{names}: about {wanted:g} GB are needed, and {free / 1e9:.1f} GB are free")
