"""The part of a recipe that says which records a stage learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llavit.data.mixture import Source, open_mixture
from llavit.data.readers import Format, Reader, open_reader


@dataclass(frozen=True)
class DataSpec:
    """Which records a stage learns from: one data set, or several as a mixture.

    Attributes:
        path: a file, folder or hub id, see `llavit.data.open_reader`.
        image_folder: what image paths are relative to; the file's own folder if not given.
        format: "json", "jsonl", "hf" or "webdataset"; found out if not given.
        split: of a Hugging Face data set; "train" if not given.
        limit: use the first so many records only.
        mixture: instead of all of the above, a list of data sets, each with these keys and a `weight`: how often
            each of its records is used in one pass (0.5 is a random half, 2 is twice).
        on_error: "raise" stops at a bad record, "skip" leaves it out and writes it down.
        max_skipped: with "skip", the number of bad records at which the run stops all the same.
    """

    path: str | None = None
    image_folder: str | None = None
    format: Format | None = None
    split: str | None = None
    limit: int | None = None
    mixture: tuple[Source, ...] | None = None
    on_error: Literal["raise", "skip"] = "raise"
    max_skipped: int = 100

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit <= 0:
            raise ValueError(f"limit: expected more than 0, got {self.limit}")
        if self.mixture is None:
            if self.path is None:
                raise ValueError("path: missing, expected `path`, or `mixture` with several data sets")
            return
        names = ("path", "image_folder", "format", "split", "limit")
        given = [name for name in names if getattr(self, name) is not None]
        if given:
            raise ValueError(
                f"mixture: each data set brings its own {', '.join(given)}, leave them out beside it"
            )
        if not self.mixture:
            raise ValueError("mixture: expected at least one data set")

    def open(self, seed: int) -> Reader:
        """Open the data.

        Args:
            seed: of the records that a mixture takes where a weight is not whole.

        Raises:
            FileNotFoundError: something is not there.
            ValueError: something cannot be read; names it.

        Example:
            >>> DataSpec("absent.json").open(seed=0)
            Traceback (most recent call last):
            ...
            FileNotFoundError: no such data file: absent.json; if it is a data set of the hub, say so with format hf
        """
        if self.mixture is not None:
            return open_mixture(self.mixture, seed=seed)
        assert self.path is not None  # __post_init__ checked
        return open_reader(self.path, self.image_folder, self.limit, format=self.format, split=self.split)
