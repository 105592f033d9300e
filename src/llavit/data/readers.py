"""Readers: a file on disk to samples.

A new format is one class with the four members of `Reader` and one line in `READERS`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from llavit.data.conversation import Sample, from_llava


class Reader(Protocol):
    """What the dataset needs of a format."""

    fingerprint: str
    """Changes when the records change, and only then; the place on disk does not matter."""

    def __len__(self) -> int:
        """Give the number of records."""

    def name(self, index: int) -> str:
        """Name record `index` as a user would look for it; never fails."""

    def sample(self, index: int) -> Sample:
        """Read record `index`; a ValueError names it."""


class LlavaReader:
    """LLaVA's own format: a JSON list of records, or the same records one per line (JSONL).

    Records are turned into samples when they are asked for, so that one bad record is one error, not the
    file's.

    Example:
        reader = LlavaReader("blip_laion_cc_sbu_558k.json", image_folder="images")
        reader.sample(0).messages
    """

    def __init__(self, path: str | Path, image_folder: str | Path | None = None, limit: int | None = None):
        self.path = Path(path)
        self.image_folder = Path(image_folder) if image_folder is not None else self.path.parent
        raw = self.path.read_bytes()
        lines = self.path.suffix == ".jsonl"
        self.records: list[Any] = _json_lines(raw, self.path) if lines else _json_list(raw, self.path)
        if limit is not None:
            self.records = self.records[:limit]
        if not self.records:
            raise ValueError(f"{self.path}: no records")
        self.fingerprint = f"{hashlib.sha256(raw).hexdigest()[:16]}-{len(self.records)}"

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        """Name record `index`: its id, and its place in the file."""
        record = self.records[index]
        given = record.get("id") if isinstance(record, Mapping) else None
        return f"#{index}" if given is None else f"{given} (#{index})"

    def sample(self, index: int) -> Sample:
        """Read record `index`."""
        record, name = self.records[index], self.name(index)
        if not isinstance(record, Mapping):
            raise ValueError(f"record {name}: expected an object, got {type(record).__name__}")
        return from_llava(record, name=name, image_folder=self.image_folder)


READERS: dict[str, Callable[..., Reader]] = {".json": LlavaReader, ".jsonl": LlavaReader}
"""File ending to reader."""


def open_reader(path: str | Path, image_folder: str | Path | None = None, limit: int | None = None) -> Reader:
    """Open a data file with the reader for its ending.

    Args:
        path: the file with the records.
        image_folder: what relative image paths are relative to; the file's own folder by default.
        limit: read the first so many records only.

    Raises:
        FileNotFoundError: no such file, or no such image folder.
        ValueError: no reader for this ending, a file that does not parse, or a file without records.

    Example:
        reader = open_reader("llava_v1_5_mix665k.json", image_folder="images", limit=1000)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such data file: {path}")
    if image_folder is not None and not Path(image_folder).is_dir():
        raise FileNotFoundError(f"no such image folder: {image_folder}")
    if path.suffix not in READERS:
        raise ValueError(f"{path}: no reader for {path.suffix!r}, expected one of {', '.join(READERS)}")
    return READERS[path.suffix](path, image_folder, limit)


def _json_list(raw: bytes, path: Path) -> list[Any]:
    try:
        records = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list of records, got {type(records).__name__}")
    return records


def _json_lines(raw: bytes, path: Path) -> list[Any]:
    records = []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not valid JSON: {error}") from error
    return records
