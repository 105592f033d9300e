"""Hugging Face data sets: rows come from memory-mapped Arrow files, one at a time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from llavit.data.conversation import Sample, from_record


class ArrowReader:
    """Rows of a Hugging Face data set with `messages` (or `conversations`) and, where it has them, `images`.

    Parquet files are converted into `datasets`' own cache once, as random access needs Arrow files; a folder
    made by `save_to_disk` is read where it is.

    Args:
        path: a folder made by `save_to_disk`, a parquet file, a folder of them, or a hub id.
        image_folder: what relative image paths are relative to, where images are paths; by default the folder
            of the data.
        limit: read the first so many rows only.
        split: in `datasets`' notation; "train" if not given. A folder with a single data set has none.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: an unknown split, or no rows.
        OSError: neither on disk nor on the hub.

    Example:
        reader = ArrowReader("HuggingFaceH4/llava-instruct-mix-vsft", split="train[:1000]")
        reader.sample(0).messages
    """

    def __init__(
        self,
        path: str | Path,
        image_folder: str | Path | None = None,
        limit: int | None = None,
        *,
        split: str | None = None,
    ):
        place = Path(path)
        default = place if place.is_dir() else place.parent if place.is_file() else None
        self.image_folder = Path(image_folder) if image_folder is not None else default
        rows = _open(path, split)
        kept = len(rows) if limit is None else min(limit, len(rows))
        if not kept:
            raise ValueError(f"{path}: no records")
        files = parquet_files(place)
        content = _footers(files) if files else rows._fingerprint
        self.fingerprint = (
            hashlib.sha256(f"{content} {split or 'train'} {kept}".encode()).hexdigest()[:16] + f"-{kept}"
        )
        # In Arrow's form images are not decoded: `load_image` is the only place that does that.
        self._rows = rows.select(range(kept)).with_format("arrow")
        self._last: tuple[int, dict[str, Any]] = (-1, {})

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": (-1, {})}

    def name(self, index: int) -> str:
        """Name row `index`: its id, if there is such a column, and its place."""
        try:
            given = self._row(index).get("id")
        except (OSError, ValueError):  # pyarrow's errors are both: `sample` says what is wrong
            given = None
        return f"#{index}" if given is None else f"{given} (#{index})"

    def sample(self, index: int) -> Sample:
        """Read row `index`."""
        return from_record(self._row(index), name=self.name(index), image_folder=self.image_folder)

    def _row(self, index: int) -> dict[str, Any]:
        if self._last[0] != index:
            self._last = index, self._rows[index].to_pylist()[0]
        return self._last[1]


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was made by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def parquet_files(place: Path) -> list[Path]:
    """List the parquet files that a path stands for."""
    return sorted(place.rglob("*.parquet")) if place.is_dir() else [place] * (place.suffix == ".parquet")


def _open(path: str | Path, split: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{path}: Hugging Face data sets need the package `datasets`: pip install 'llavit[data]'"
        ) from error
    place = Path(path)
    if not is_saved_dataset(place):
        files = {"path": "parquet", "data_files": [str(place)]} if place.is_file() else {"path": str(path)}
        try:
            return datasets.load_dataset(**files, split=split or "train")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    found = datasets.load_from_disk(str(place))
    if isinstance(found, datasets.DatasetDict):
        name = split or "train"
        if name not in found:
            raise ValueError(f"{path}: no split {name!r}, expected one of {', '.join(found)}; set split")
        return found[name]
    if split is not None and split != str(found.split):
        raise ValueError(f"{path}: holds a single data set without splits, got split {split!r}; leave it out")
    return found


def _footers(files: list[Path]) -> str:
    """Digest sizes and footers of parquet files: number, length and range of every column chunk."""
    content = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            file.seek(-8, 2)
            length = int.from_bytes(file.read(4), "little")
            file.seek(-8 - length, 2)
            content.update(f"{path.stat().st_size} ".encode() + file.read(length))
    return content.hexdigest()
