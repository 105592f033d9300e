"""What an earlier build left in a folder: whether it is of the same settings, and whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def require_same_settings(folder: Path, earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Let a build go on only where the one before it had the same settings.

    Raises:
        ValueError: it had others; names those that differ.

    Example:
        >>> require_same_settings(Path("data"), {"seed": 0}, {"seed": 1})
        Traceback (most recent call last):
        ...
        ValueError: data was built with other settings: {'seed': 0} there, {'seed': 1} wanted; delete the folder or \
build in another one
    """
    differs = [key for key in settings if earlier.get(key) != settings[key]]
    if differs:
        was = {key: earlier.get(key) for key in differs}
        now = {key: settings[key] for key in differs}
        raise ValueError(
            f"{folder} was built with other settings: {was} there, {now} wanted; "
            "delete the folder or build in another one"
        )


def earlier_manifest(root: Path, settings: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any] | None:
    """Read the manifest of an earlier build with the same settings; counts may differ. None if there was none.

    Args:
        root: folder of the corpus.
        settings: of the build that is asked for.
        names: of files and folders that a build makes.

    Raises:
        ValueError: other settings, or such files without a manifest.

    Example:
        >>> from tempfile import mkdtemp
        >>> earlier_manifest(Path(mkdtemp()), {"seed": 0}, ["images"]) is None
        True
    """
    path = root / MANIFEST
    if not path.exists():
        if any((root / name).exists() for name in names):
            raise ValueError(f"{root} holds files but no {MANIFEST}: build the corpus in a folder of its own")
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    require_same_settings(root, found.get("settings", {}), settings)
    return found


def is_intact(root: Path, manifest: Mapping[str, Any]) -> bool:
    """Say whether the json files (by `sha256`) and pictures (by `counts`) of a finished build are all there.

    Example:
        >>> is_intact(Path("nowhere"), {"sha256": {"val.json": "0"}, "counts": {}})
        False
    """
    for name, wanted in manifest["sha256"].items():
        path = root / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
            return False
    for split, number in manifest["counts"].items():
        folder = root / "images" / split
        there = set(os.listdir(folder)) if folder.exists() else set()
        if any(f"{i:06d}.jpg" not in there for i in range(number)):
            return False
    return True
