"""What an earlier build left in a folder: whether it is of the same settings, and whole."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LOCK = ".build.lock"
_HALF_WRITTEN = re.compile(r"\..+\.\d+\.tmp")  # .NAME.PROCESS.tmp, which gets its name when it is whole
_PLACES = (".*.tmp", "images/*/.*.tmp", ".chunks/.*.tmp")


@contextmanager
def one_build(root: Path) -> Iterator[None]:
    """Let one process at a time build in a folder; the others wait. What a killed build left half-written is removed.

    Args:
        root: the folder; made if missing.

    Example:
        >>> from tempfile import mkdtemp
        >>> root = Path(mkdtemp())
        >>> (root / ".val.json.4711.tmp").write_text("[")
        1
        >>> with one_build(root):
        ...     sorted(path.name for path in root.iterdir())
        ['.build.lock']
    """
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process builds in %s: waiting for it", root)
        lock.acquire()
    try:
        found = [path for place in _PLACES for path in root.glob(place)]
        for path in found:
            if not _HALF_WRITTEN.fullmatch(path.name):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


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
    was, now = _differing(earlier, settings)
    if was != now:
        raise ValueError(
            f"{folder} was built with other settings: {was} there, {now} wanted; "
            "delete the folder or build in another one"
        )


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts of two settings that differ, also within groups like the versions of packages."""
    one: dict[str, Any] = {}
    other: dict[str, Any] = {}
    for key in now:
        before, after = was.get(key), now[key]
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            keys = [k for k in {**before, **after} if before.get(k) != after.get(k)]
            before, after = {k: before.get(k) for k in keys}, {k: after.get(k) for k in keys}
        one[key], other[key] = before, after
    return one, other


def earlier_manifest(root: Path, settings: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any] | None:
    """Read the manifest of an earlier build with the same settings; counts may differ. None if there was none.

    Args:
        root: folder of the corpus.
        settings: of the build that is asked for.
        names: of files and folders that a build makes.

    Raises:
        ValueError: other settings, such files without a manifest, or a manifest that cannot be read.

    Example:
        >>> from tempfile import mkdtemp
        >>> earlier_manifest(Path(mkdtemp()), {"seed": 0}, ["images"]) is None
        True
    """
    path = root / MANIFEST
    if not path.exists():
        if any((root / name).exists() for name in names if not _of_building(name)):
            raise ValueError(f"{root} holds files but no {MANIFEST}: build the corpus in a folder of its own")
        return None
    found = read_manifest(root)
    require_same_settings(root, found.get("settings", {}), settings)
    return found


def _of_building(name: str) -> bool:
    return name == LOCK or bool(_HALF_WRITTEN.fullmatch(name))


def read_manifest(root: Path) -> dict[str, Any]:
    """Read the manifest in a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    path = root / MANIFEST
    if not path.exists():
        raise FileNotFoundError(f"expected the folder of a corpus, found no {path}: build one there")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete the folder and build again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (no object in it): delete the folder and build again")
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


def finished_manifest(
    root: Path, settings: Mapping[str, Any], counts: Mapping[str, int], names: Iterable[str] | None = None
) -> dict[str, Any] | None:
    """Read the manifest of a corpus that lies there with these settings and counts, whole; None if there is none.

    Args:
        root: folder of the corpus.
        settings: wanted ones.
        counts: wanted number of records by split.
        names: what a build writes into the folder, see `earlier_manifest`; anything if not given.

    Raises:
        ValueError: see `earlier_manifest`.

    Example:
        >>> finished_manifest(Path("nowhere"), {}, {})
    """
    if names is None:
        names = os.listdir(root) if root.exists() else ()
    found = earlier_manifest(root, settings, names)
    whole = found and found.get("complete") and found["counts"] == counts and is_intact(root, found)
    return found if whole else None
