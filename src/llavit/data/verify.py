"""Looks at every record once, before training does: decodes each image, checks each record, counts tokens."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llavit.data.conversation import Message
from llavit.data.dataset import Style
from llavit.data.readers import Reader
from llavit.model.images import open_image, to_rgb
from llavit.model.processor import NothingLeft
from llavit.progress import quiet_transformers

_FEW = 256  # records that are not worth starting processes for
_CHUNKS_PER_WORKER = 200


@dataclass(frozen=True)
class Problem:
    """What is wrong with a record: one line of the file of bad records.

    Attributes:
        id: the record's name.
        path: of the image it is about; None if it is about the record, or the image has no path.
        reason: what was expected and what was found.
    """

    id: str
    path: str | None
    reason: str


@dataclass
class Findings:
    """What was seen in some records; those of two parts can be added.

    Attributes:
        records: how many there were.
        bad: how many of them training would stop at or skip.
        problems: what is wrong with them, in order.
        images_per_record: of those that could be read.
        sizes: (width, height) of each image, in pixels, as stored.
        modes: Pillow's modes (RGB, L, P, ...) of the images, with their numbers.
        id_hashes: 64 bits of each record's own id, with the record's number; to find ids given twice.
        tokens: length of each record; empty without a processor.
        supervised: how many of its tokens are learned.
        over: how many records are longer than the greatest length.
        nothing_left: of how many it leaves nothing to learn from. Training leaves them out; they are not bad.
    """

    records: int = 0
    bad: int = 0
    problems: list[Problem] = field(default_factory=list)
    images_per_record: Counter[int] = field(default_factory=Counter)
    sizes: list[np.ndarray] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    id_hashes: list[np.ndarray] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    supervised: list[np.ndarray] = field(default_factory=list)
    over: int = 0
    nothing_left: int = 0

    def add(self, other: Findings) -> None:
        """Take in those of another part."""
        self.records += other.records
        self.bad += other.bad
        self.over += other.over
        self.nothing_left += other.nothing_left
        self.images_per_record += other.images_per_record
        self.modes += other.modes
        for name in ("problems", "sizes", "id_hashes", "tokens", "supervised"):
            getattr(self, name).extend(getattr(other, name))


class Checker:
    """Checks records one by one.

    Args:
        reader: where they come from.
        processor: of the model that is to learn from them; without one, tokens are not looked at.
        max_length: greatest length in tokens.
        style: how training renders them.

    """

    def __init__(
        self, reader: Reader, processor: Any = None, *, max_length: int | None = None, style: Style = "chat"
    ):
        self.reader, self.processor, self.max_length, self.style = reader, processor, max_length, style

    def check(self, indices: Iterable[int]) -> Findings:
        """Look at some records."""
        found = Findings()
        sizes: list[tuple[int, int]] = []
        hashes: list[tuple[int, int]] = []
        tokens: list[tuple[int, int]] = []
        for index in indices:
            problems = self._check(index, found, sizes, hashes, tokens)
            found.records += 1
            found.bad += bool(problems)
            found.problems += problems
        found.sizes = [np.array(sizes, np.int32).reshape(-1, 2)]
        found.id_hashes = [np.array(hashes, np.int64).reshape(-1, 2)]
        if self.processor is not None:
            both = np.array(tokens, np.int32).reshape(-1, 2)
            found.tokens, found.supervised = [both[:, 0]], [both[:, 1]]
        return found

    def _check(
        self,
        index: int,
        found: Findings,
        sizes: list[tuple[int, int]],
        hashes: list[tuple[int, int]],
        tokens: list[tuple[int, int]],
    ) -> list[Problem]:
        name = self.reader.name(index)
        # Whatever a record does to the code, all others are still to be looked at: any error is a finding.
        try:
            sample = self.reader.sample(index)
        except Exception as error:
            return [Problem(name, None, _reason(error))]
        if sample.record_id is not None:
            digest = hashlib.blake2b(sample.record_id.encode("utf-8", "replace"), digest_size=8).digest()
            hashes.append((int.from_bytes(digest, "little", signed=True), index))
        found.images_per_record[len(sample.images)] += 1

        problems = []
        pictures = []
        for image in sample.images:
            try:
                stored = open_image(image, name)
                pictures.append(to_rgb(stored, name))
            except Exception as error:
                problems.append(Problem(name, image if isinstance(image, str) else None, _reason(error)))
            else:
                sizes.append(stored.size)
                found.modes[stored.mode] += 1
        if not any(message["role"] == "assistant" for message in sample.messages):
            problems.append(Problem(name, None, f"{name}: nothing to learn from: no turn of the assistant"))
        if self.processor is None or problems:
            return problems
        messages = _with_pictures(sample.messages, pictures)
        try:
            length, supervised = self._measure(messages, name, None)
            tokens.append((length, supervised))
            if self.max_length is not None and length > self.max_length:
                found.over += 1
                self._measure(messages, name, self.max_length)  # an error if too little can be cut
        except NothingLeft:
            found.nothing_left += 1
        except Exception as error:
            return [Problem(name, None, _reason(error))]
        return []

    def _measure(self, messages: list[Message], name: str, max_length: int | None) -> tuple[int, int]:
        encoded = self.processor.encode(
            messages, return_labels=True, max_length=max_length, style=self.style, name=name
        )
        return len(encoded["labels"]), int((encoded["labels"] >= 0).sum())


def verify_data(
    reader: Reader,
    *,
    model: str | Path | None = None,
    max_length: int | None = None,
    style: Style = "chat",
    workers: int | None = None,
    bad_file: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Findings:
    """Check all records of a reader.

    Args:
        reader: of `open_reader`.
        model: folder or hub id of a model whose processor counts tokens and labels; without it they are not
            looked at.
        max_length: greatest length in tokens; longer records are counted, and are bad where images end beyond it.
        style: how training renders records.
        workers: processes; as many as there are cores if not given, one for few records.
        bad_file: gets a JSON line with id, path and reason for each problem, as it is found. It is removed if
            there is none.
        progress: called with (done, in all).

    Returns:
        What was seen. `bad` is 0 if training can use every record.

    Raises:
        ValueError: no worker.
        OSError: no such model, or a worker died.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from llavit.data.readers import open_reader
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "chats.jsonl")
        ...     _ = file.write_text('{"id": 17, "messages": [{"role": "user", "content": "Hi"}]}')
        ...     found = verify_data(open_reader(file))
        >>> found.bad, found.problems[0].reason
        (1, '17 (#0): nothing to learn from: no turn of the assistant')
    """
    total = len(reader)
    if workers is None:
        workers = 1 if total <= _FEW else os.cpu_count() or 1
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    processor = None if model is None else load_processor(model)
    checker = Checker(reader, processor, max_length=max_length, style=style)
    found = Findings()
    file = None
    if bad_file is not None:
        # An id may hold half of a surrogate pair, which UTF-8 cannot say; JSON's own escape can.
        file = open(bad_file, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    try:
        for part in _parts(checker, workers):
            found.add(part)
            if file is not None:
                file.writelines(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in part.problems)
                file.flush()
            if progress is not None:
                progress(found.records, total)
    finally:
        if file is not None:
            file.close()
            if not found.problems:
                Path(file.name).unlink()
    return found


def load_processor(source: str | Path) -> Any:
    """Load a model's processor, and nothing else of it.

    Args:
        source: the model's folder, or its hub id.

    Raises:
        FileNotFoundError: neither a folder nor a hub id.

    Example:
        processor = load_processor("runs/mine/instruct")
    """
    if not Path(source).is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(source)):
        raise FileNotFoundError(f"no such model folder: {source}")
    from llavit import LlavitProcessor

    with quiet_transformers():
        return LlavitProcessor.from_pretrained(source)


def _parts(checker: Checker, workers: int) -> Iterator[Findings]:
    """Check records in order, in one process or several."""
    total = len(checker.reader)
    size = max(8, math.ceil(total / (workers * _CHUNKS_PER_WORKER)))
    chunks = [range(start, min(start + size, total)) for start in range(0, total, size)]
    if workers == 1:
        yield from map(checker.check, chunks)
        return
    # Not fork: torch and the progress bar have threads by now.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), context, _start, (checker,)) as pool:
        try:
            yield from pool.map(_check_here, chunks)
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process died, most often for want of memory; try fewer with --workers"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_here: Checker | None = None
"""The checker of a worker process."""


def _start(checker: Checker) -> None:
    import torch

    global _here
    torch.set_num_threads(1)
    _here = checker


def _check_here(indices: range) -> Findings:
    assert _here is not None
    return _here.check(indices)


def _with_pictures(messages: list[Message], pictures: list[Any]) -> list[Message]:
    """Put decoded pictures in the place of what was to be decoded."""
    queue = iter(pictures)
    return [
        {
            **message,
            "content": [
                {**part, "image": next(queue)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError | OSError) else repr(error)
