"""Samples to model inputs, one at a time and only when asked for, with one rule for bad records.

A bad record (unreadable image, counts that differ, nothing to learn from, ...) is either an error that names
it, or it is left out and written down. No other record ever takes its place: the batch is smaller by one.

A record that is longer than `max_length` is cut and not bad. Where nothing to learn from is left of it, as the first
question alone is longer (some of ShareGPT's, and so of LLaVA's own data), it is left out, written down and not counted
as bad: LLaVA trains on such a record with no token that counts.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch.utils.data import Dataset

from llavit.data.conversation import Message
from llavit.data.readers import Reader
from llavit.model.processor import NothingLeft

OnError = Literal["raise", "skip"]
Style = Literal["chat", "plain"]


class Encoder(Protocol):
    """The part of the processor that a dataset uses."""

    image_seq_length: int

    def encode(
        self,
        messages: list[Message],
        *,
        return_labels: bool,
        max_length: int | None,
        style: Style,
        image_features: Callable[[Any], torch.Tensor] | None,
        name: str,
    ) -> dict[str, torch.Tensor]:
        """Turn messages into tensors; a ValueError names the sample."""

    def pixel_values(self, images: list[Any], name: str) -> torch.Tensor:
        """Load images; a ValueError names the sample."""


@dataclass(frozen=True)
class Skipped:
    """A record that was left out, and why; not bad if it is only longer than training reads."""

    id: str
    reason: str
    bad: bool = True


class ConversationDataset(Dataset[dict[str, Any] | Skipped]):
    """A torch dataset of encoded conversations.

    Item i is the processor's encoding of record i plus `sample_id`, or, where that record is bad and
    `on_error` is "skip", or `max_length` leaves nothing of it to learn from, a `Skipped`; `Collator` takes both.

    Args:
        reader: where the records come from, see `open_reader`.
        processor: a `LlavitProcessor`.
        max_length: cut longer conversations, in tokens; images are never cut.
        on_error: "raise" or "skip".
        style: "chat", or "plain" for images and captions only.
        features: gives an image's features, which then stand in for its pixels; see `FeatureCache`.

    Example:
        dataset = ConversationDataset(open_reader("data.json"), processor, max_length=2048, on_error="skip")
        dataset[0]["input_ids"]
    """

    def __init__(
        self,
        reader: Reader,
        processor: Encoder,
        *,
        max_length: int | None = None,
        on_error: OnError = "raise",
        style: Style = "chat",
        features: Callable[[Any], torch.Tensor] | None = None,
    ):
        self.reader = reader
        self.processor = processor
        self.max_length = max_length
        self.on_error = on_error
        self.style = style
        self.features = features

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> dict[str, Any] | Skipped:
        name = self.reader.name(index)
        try:
            messages = self.reader.sample(index).messages
            encoded = self.processor.encode(
                messages,
                return_labels=True,
                max_length=self.max_length,
                style=self.style,
                image_features=functools.partial(self._read_features, name)
                if self.features is not None
                else None,
                name=name,
            )
        except NothingLeft as error:
            return Skipped(name, str(error), bad=False)
        except (ValueError, OSError) as error:
            if self.on_error == "raise":
                raise
            return Skipped(name, str(error))
        return {**encoded, "sample_id": name}

    def lengths(self, progress: Callable[[int, int], None] | None = None) -> list[int]:
        """Give the tokens of every record, roughly: a token for four characters, and those of its images.

        Records are read for it, images are not. A bad record has length 0.

        Args:
            progress: called with (done, in all) after each record.
        """
        found = []
        for index in range(len(self)):
            found.append(self._length(index))
            if progress is not None:
                progress(len(found), len(self))
        return found

    def _length(self, index: int) -> int:
        try:
            sample = self.reader.sample(index)
        except (ValueError, OSError):
            return 0
        parts = [m["content"] for m in sample.messages]
        texts = [p if isinstance(p, str) else "".join(x.get("text", "") for x in p) for p in parts]
        return sum(map(len, texts)) // 4 + len(sample.images) * self.processor.image_seq_length

    def _read_features(self, name: str, image: Any) -> torch.Tensor:
        assert self.features is not None
        try:
            return self.features(image)
        except (KeyError, OSError, ValueError) as error:
            self.processor.pixel_values([image], name)  # says what is wrong with an image that cannot be read
            raise ValueError(
                f"{name}: image {image} has no features in the cache: it or the cache changed after training began. "
                "Start training again: it computes what is missing"
            ) from error


class SkipLog:
    """Counts records that were left out and keeps a file of them; too many bad ones is an error.

    Records are counted once however often an epoch meets them again.

    Args:
        path: where each skip is written, one JSON object per line; None keeps them in memory only.
        max_skipped: how many different bad records may be left out.

    Example:
        >>> log = SkipLog(max_skipped=1)
        >>> log.add([Skipped("17", "cannot read cat.jpg")])
        >>> len(log)
        1
    """

    def __init__(self, path: str | Path | None = None, *, max_skipped: int):
        self.path = Path(path) if path is not None else None
        self.max_skipped = max_skipped
        self.skipped: dict[str, Skipped] = {}
        self._bad = 0
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def __len__(self) -> int:
        return len(self.skipped)

    def _read(self, path: Path) -> None:
        """Go on where an earlier run stopped; it may have been killed in the middle of a line."""
        whole, _, torn = path.read_text(encoding="utf-8").rpartition("\n")
        for line in whole.split("\n"):
            if line:
                self._keep(Skipped(**json.loads(line)))
        if torn:
            path.write_text(whole + "\n" * bool(whole), encoding="utf-8")

    def _keep(self, record: Skipped) -> None:
        self._bad += record.bad
        self.skipped[record.id] = record

    def add(self, records: Iterable[Skipped]) -> None:
        """Write down records that were left out.

        Raises:
            ValueError: more than `max_skipped` different bad records were left out.
        """
        for record in records:
            if record.id not in self.skipped:
                self._keep(record)
                if self.path is not None:
                    # JSON's own escape for what UTF-8 cannot say: an id with half of a surrogate pair.
                    with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                        file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
            if self._bad > self.max_skipped:
                where = f"; all of them are in {self.path}" if self.path is not None else ""
                raise ValueError(
                    f"{self._bad} bad records, more than max_skipped = {self.max_skipped}. "
                    f"The last is {record.id}: {record.reason}{where}"
                )
