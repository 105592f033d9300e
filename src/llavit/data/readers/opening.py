"""Opens data: finds out what it is, and gives the reader for it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from llavit.data.readers.arrow import ArrowReader, is_saved_dataset, parquet_files
from llavit.data.readers.json_file import JsonReader
from llavit.data.readers.protocol import Reader
from llavit.data.readers.tar import TarReader, find_shards

Format = Literal["json", "jsonl", "hf", "webdataset"]
"""How records are stored; what they look like is seen from their fields (see `from_record`).

- json: a JSON list; jsonl: a record per line;
- hf: a Hugging Face data set: a folder made by `save_to_disk`, parquet files, or a hub id;
- webdataset: tar files in which a sample's files follow each other and share a name.
"""


def open_reader(
    path: str | Path,
    image_folder: str | Path | None = None,
    limit: int | None = None,
    *,
    format: Format | None = None,
    split: str | None = None,
) -> Reader:
    """Open data with the reader for its format.

    Args:
        path: a file (`.json`, `.jsonl`, `.parquet`, `.tar`), a folder of a Hugging Face data set, of parquet
            files or of tar files, tar files as `shard-{000000..000099}.tar`, or, with `format="hf"`, a hub id.
        image_folder: what relative image paths are relative to; by default the file's own folder.
        limit: read the first so many records only.
        format: see `Format`; found out from the path and the content if not given.
        split: of a Hugging Face data set, in its notation (`train[:10%]`); `train` if not given.

    Raises:
        FileNotFoundError: no such data, or no such image folder.
        ValueError: a format that is not known, a file that does not parse, or data without records.
        ImportError: the data set needs a package that is not installed; names the extra.

    Example:
        >>> import json, tempfile
        >>> turns = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "A cat."}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "data.json")
        ...     _ = file.write_text(json.dumps([{"id": "17", "image": "cat.jpg", "conversations": turns}]))
        ...     reader = open_reader(file, image_folder=folder)
        ...     len(reader), reader.name(0), Path(reader.sample(0).images[0]).name
        (1, '17 (#0)', 'cat.jpg')
    """
    if image_folder is not None and not Path(image_folder).is_dir():
        raise FileNotFoundError(f"no such image folder: {image_folder}")
    if limit is not None and limit <= 0:
        raise ValueError(f"limit: expected more than 0, got {limit}")
    if format is None:
        format = detect_format(path)
    if split is not None and format != "hf":
        raise ValueError(
            f"{path}: only Hugging Face data sets have splits, got split {split!r} and format {format}"
        )
    if format == "hf":
        return ArrowReader(path, image_folder, limit, split=split)
    if format == "webdataset":
        return TarReader(path, image_folder, limit)
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such data file: {path}")
    return JsonReader(path, image_folder, limit, lines=format == "jsonl")


def detect_format(path: str | Path) -> Format:
    """Find out how data is stored.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is nothing that llavit reads.

    Example:
        >>> detect_format("shard-{000000..000099}.tar")
        'webdataset'
    """
    place = Path(path)
    if place.suffix == ".tar":
        return "webdataset"
    if place.is_dir():
        if is_saved_dataset(place) or parquet_files(place):
            return "hf"
        if find_shards(place):
            return "webdataset"
        raise ValueError(
            f"{path}: expected a folder of a Hugging Face data set (save_to_disk), of .parquet or of .tar "
            f"files, got {', '.join(sorted(child.name for child in place.iterdir())[:5]) or 'an empty one'}"
        )
    if not place.is_file():
        raise FileNotFoundError(
            f"no such data file: {path}; if it is a data set of the hub, say so with format hf"
        )
    if place.suffix == ".parquet":
        return "hf"
    if place.suffix in (".json", ".jsonl"):
        return "jsonl" if JsonReader.has_lines(place) else "json"
    raise ValueError(
        f"{path}: no reader for {place.suffix!r}, expected .json, .jsonl, .parquet, .tar or a folder; "
        "if the ending misleads, say the format: json, jsonl, hf or webdataset"
    )
