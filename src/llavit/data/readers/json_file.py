"""JSON and JSONL files of any size: where each record lies is kept, the records stay on disk.

A scan at the start finds the first and the last byte of each record (16 bytes of memory each); a record is
read, parsed and forgotten when it is asked for, from a file that each process opens once. The scan of a list parses
every record on its way, as only a JSON parser knows where a record ends, and takes about 5 seconds per GB; that of
lines does not.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import weakref
from array import array
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llavit.data.conversation import Sample, from_record

_CHUNK = 1 << 22  # bytes read at once
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")

Span = tuple[int, int, bytes]
"""First byte of a record in the file, the byte after its last one, and the bytes themselves."""


class JsonReader:
    """Records of a JSON list, or of a file with one record per line (JSONL): LLaVA, ShareGPT, OpenAI messages.

    A record that is not valid, or is no record at all, is an error when it is read, not before; a list that
    breaks off is one at once, as nobody knows what is missing.

    Args:
        path: the file.
        image_folder: what relative image paths are relative to; the file's own folder by default.
        limit: read the first so many records only.
        lines: one record per line; found out from the file if not given.

    Raises:
        ValueError: no list and no lines of records, or no record at all.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "chats.jsonl")
        ...     _ = file.write_text(json.dumps({"id": "a", "messages": turns}) + "\\n" + "oops\\n")
        ...     reader = JsonReader(file)
        ...     len(reader), reader.sample(0).messages[1]["content"][0]["text"], reader.name(1)
        (2, 'Hello.', '#1')
    """

    def __init__(
        self,
        path: str | Path,
        image_folder: str | Path | None = None,
        limit: int | None = None,
        *,
        lines: bool | None = None,
    ):
        self.path = Path(path)
        self.image_folder = Path(image_folder) if image_folder is not None else self.path.parent
        lines = self.has_lines(self.path) if lines is None else lines
        starts, stops, content = array("q"), array("q"), hashlib.sha256()
        for start, stop, raw in islice(_lines(self.path) if lines else _items(self.path), limit):
            starts.append(start)
            stops.append(stop)
            content.update(raw)
            content.update(b"\n")
        if not starts:
            raise ValueError(f"{self.path}: no records")
        self._starts, self._stops = np.array(starts), np.array(stops)
        self._last: tuple[int, Any] = (-1, None)
        self._file: int | None = None  # descriptor, once a record was read
        self.fingerprint = f"{content.hexdigest()[:16]}-{len(starts)}"

    @staticmethod
    def has_lines(path: str | Path) -> bool:
        """Whether a file holds one JSON record per line, and not one list."""
        with Path(path).open("rb") as file:
            head = file.read(_CHUNK).removeprefix(_BOM).lstrip()
            if head.startswith(b"["):
                return False
            if Path(path).suffix == ".jsonl":
                return True
            line, complete, _ = head.partition(b"\n")
            try:
                record = json.loads(line if complete else line + file.readline())
            except ValueError:
                return False
        return isinstance(record, Mapping) and not {"conversations", "messages"}.isdisjoint(record)

    def __len__(self) -> int:
        return len(self._starts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": (-1, None), "_file": None}

    def name(self, index: int) -> str:
        """Name record `index`: its id, and its place in the file."""
        try:
            record = self._record(index)
        except (ValueError, OSError):
            return f"#{index}"
        given = record.get("id") if isinstance(record, Mapping) else None
        return f"#{index}" if given is None else f"{given} (#{index})"

    def sample(self, index: int) -> Sample:
        """Read record `index`."""
        record, name = self._record(index), self.name(index)
        if not isinstance(record, Mapping):
            raise ValueError(f"record {name}: expected an object, got {type(record).__name__}")
        return from_record(record, name=name, image_folder=self.image_folder)

    def _record(self, index: int) -> Any:
        last, record = self._last  # taken as one: other threads set it as well
        if last != index:
            start, stop = int(self._starts[index]), int(self._stops[index])
            try:
                record = json.loads(self._read(start, stop))
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"record #{index} at byte {start} of {self.path}: not valid JSON: {error}"
                ) from error
            self._last = index, record
        return record

    def _read(self, start: int, stop: int) -> bytes:
        """Read bytes of the file, which stays open; reading from a place shares nothing with threads and forks."""
        if not hasattr(os, "pread"):  # Windows
            with self.path.open("rb") as file:
                file.seek(start)
                return file.read(stop - start)
        if self._file is None:
            opened = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, opened)
            self._file = opened
        return os.pread(self._file, stop - start, start)


def _lines(path: Path) -> Iterator[Span]:
    at = 0
    with path.open("rb") as file:
        for line in file:
            raw = (line.removeprefix(_BOM) if at == 0 else line).strip()
            if raw:
                start = at + line.index(raw)
                yield start, start + len(raw), raw
            at += len(line)


def _items(path: Path) -> Iterator[Span]:
    with path.open("rb") as file:
        window = _Window(file)
        if window.next_character() != "[":
            raise ValueError(
                f"{path}: expected a JSON list of records, or one record per line (JSONL), "
                f"got a file that begins with {window.show()!r}"
            )
        window.at += 1
        index = 0
        while window.next_character() != "]":
            if index > 0:
                if window.next_character() != ",":
                    raise ValueError(
                        f"{path}: not valid JSON: after record #{index - 1}, at byte {window.place}, expected a comma "
                        f"or the end of the list, got {window.show() or 'the end of the file'!r}"
                    )
                window.at += 1
                window.next_character()
            try:
                length = window.value()
            except (json.JSONDecodeError, RecursionError) as error:
                what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise ValueError(
                    f"{path}: not valid JSON: record #{index}, at byte {window.place}: {what}; "
                    f"got {window.show() or 'the end of the file'!r}"
                ) from error
            raw = window.text[window.at : window.at + length].encode("latin-1")
            yield window.place, window.place + length, raw
            window.at += length
            index += 1
        window.at += 1
        if window.next_character():
            raise ValueError(
                f"{path}: not valid JSON: expected nothing after the list, got {window.show()!r} at byte {window.place}"
            )


class _Window:
    """The part of a file from `place` on, one character per byte.

    JSON is parsed as latin-1 here: its structure is ASCII, so nothing changes but what the strings say, and
    positions are bytes.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self.text = file.read(_CHUNK).decode("latin-1")
        self.before = 0  # bytes of the file before `text`
        self.at = len(_BOM) if self.text.startswith(_BOM.decode("latin-1")) else 0
        self.decoder = json.JSONDecoder()

    @property
    def place(self) -> int:
        return self.before + self.at

    def show(self) -> str:
        return self.text[self.at : self.at + 20].encode("latin-1").decode("utf-8", "replace")

    def grow(self) -> bool:
        """Drop what lies behind and read on; False at the end of the file."""
        more = self.file.read(max(_CHUNK, len(self.text) - self.at))
        self.text, self.before, self.at = self.text[self.at :] + more.decode("latin-1"), self.place, 0
        return bool(more)

    def next_character(self) -> str:
        """Skip white space; give the character after it, nothing at the end of the file."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def value(self) -> int:
        """Parse the value that starts here; give its length."""
        while True:
            try:
                stop = self.decoder.raw_decode(self.text, self.at)[1]
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - 16
                if not (cut and self.grow()):
                    raise
            else:
                length = stop - self.at
                if stop < len(self.text) or not self.grow():
                    return length
