"""Several data sets as one, each as often as its weight says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llavit.data.conversation import Sample
from llavit.data.readers import Format, Reader, open_reader


@dataclass(frozen=True)
class Source:
    """One data set of a mixture.

    Attributes:
        path: see `open_reader`.
        image_folder: what relative image paths are relative to.
        format: how the data is stored; found out if not given.
        split: of a Hugging Face data set.
        limit: use the first so many records only.
        weight: how often each record is used in one pass over the mixture: 1 is once, 2 is twice, 0.5 is a
            random half of the records, 1.5 is all of them once and a random half a second time.
    """

    path: str
    image_folder: str | None = None
    format: Format | None = None
    split: str | None = None
    limit: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit <= 0:
            raise ValueError(f"limit: expected more than 0, got {self.limit}")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight: expected a number above 0, got {self.weight}")


class Mixture:
    """A reader over several readers.

    One pass takes `round(weight * len(reader))` records of each; the fraction that does not make a whole pass
    is drawn by the seed, and is the same in every pass. So a mixture has a length and an order like any
    reader: record i is always the same one, and a run that resumes finds its place by counting.

    Args:
        readers: the data sets.
        weights: one for each, see `Source`.
        names: what to call each in a record's name.
        seed: another seed, other records where a weight is not whole.

    Raises:
        ValueError: counts differ, a weight is not above 0, or nothing is left of a data set.

    Example:
        >>> import json
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "chats.jsonl")
        ...     _ = file.write_text("\\n".join(json.dumps({"id": i, "messages": []}) for i in range(4)))
        ...     chats = open_reader(file)
        ...     mixture = Mixture([chats, chats], weights=[0.5, 2], names=["half", "twice"], seed=0)
        ...     len(mixture), mixture.name(2)
        (10, 'twice: 0 (#0)')
    """

    def __init__(
        self, readers: Sequence[Reader], weights: Sequence[float], names: Sequence[str], *, seed: int
    ):
        if not readers or not len(readers) == len(weights) == len(names):
            raise ValueError(
                f"expected a weight and a name for each reader, got {len(readers)} reader(s), {len(weights)} "
                f"weight(s) and {len(names)} name(s)"
            )
        self.readers, self.names = list(readers), list(names)
        self._extra: list[np.ndarray] = []  # of each reader, the records used once more than the rest
        counts = []
        for number, (reader, weight, name) in enumerate(zip(readers, weights, names, strict=True)):
            count = round(weight * len(reader))
            if count < 1:
                raise ValueError(f"{name}: nothing is left of {len(reader)} records with weight {weight}")
            generator = np.random.default_rng([seed, number])
            chosen = generator.choice(len(reader), count % len(reader), replace=False, shuffle=False)
            self._extra.append(np.sort(chosen))
            counts.append(count)
        self._ends = np.cumsum(counts)
        content = hashlib.sha256()
        for reader, count, extra in zip(readers, counts, self._extra, strict=True):
            content.update(f"{reader.fingerprint} {count} ".encode() + extra.tobytes())
        self.fingerprint = f"{content.hexdigest()[:16]}-{len(self)}"

    def __len__(self) -> int:
        return int(self._ends[-1])

    def place(self, index: int) -> tuple[int, int]:
        """Say which record this is: the number of its reader, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of a mixture of {len(self)}")
        source = int(np.searchsorted(self._ends, index, side="right"))
        within = index - (int(self._ends[source - 1]) if source else 0)
        size = len(self.readers[source])
        passes = int(self._ends[source] - (self._ends[source - 1] if source else 0)) // size
        return source, within % size if within < passes * size else int(
            self._extra[source][within - passes * size]
        )

    def name(self, index: int) -> str:
        """Name record `index`: its data set, and its name there; a record that is used twice has one name."""
        source, record = self.place(index)
        return f"{self.names[source]}: {self.readers[source].name(record)}"

    def sample(self, index: int) -> Sample:
        """Read record `index`."""
        source, record = self.place(index)
        try:
            sample = self.readers[source].sample(record)
        except ValueError as error:
            raise ValueError(f"{self.names[source]}: {error}") from error
        return Sample(self.name(index), sample.messages, sample.record_id)


def open_mixture(sources: Sequence[Source], *, seed: int) -> Mixture:
    """Open several data sets as one.

    Args:
        sources: the data sets with their weights.
        seed: another seed, other records where a weight is not whole.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: one of them cannot be read, or nothing is left of it.

    Example:
        >>> open_mixture([Source("absent.json"), Source("chats.jsonl", weight=2)], seed=0)
        Traceback (most recent call last):
        ...
        FileNotFoundError: no such data file: absent.json; if it is a data set of the hub, say so with format hf
    """
    readers = [open_reader(s.path, s.image_folder, s.limit, format=s.format, split=s.split) for s in sources]
    return Mixture(readers, [source.weight for source in sources], _names(sources), seed=seed)


def _names(sources: Sequence[Source]) -> list[str]:
    """Give each source a name of its own: its file's, its path where files share a name, then with a number."""
    for names in ([Path(source.path).name for source in sources], [source.path for source in sources]):
        if len(set(names)) == len(names):
            return names
    return [f"{source.path} [{number}]" for number, source in enumerate(sources)]
