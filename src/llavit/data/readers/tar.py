"""WebDataset: tar files in which the files of a sample follow each other and share a name up to the first dot.

    000017.jpg  000017.json      a record, whose images are the sample's
    000018.jpg  000018.txt       a caption: the image is the question, the text is the answer

The headers are read once, at the start; after that any sample is one seek away, so that order, length and
resumption are exact, as they are for a file of records.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from array import array
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from llavit.data.conversation import Sample, from_record

IMAGE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "avif"})
_TEXT_ENDINGS = frozenset({"json", "txt", "caption"})
_ENDS = 512  # bytes at either end of an image that count for the fingerprint
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class TarReader:
    """Samples of WebDataset tar files: image files beside a `.json` record or a `.txt` caption.

    A record that lists its images by the names they have in the tar gets those; else its images are the
    sample's image files, in the order of the tar.

    Args:
        path: a tar file, a folder of them, or several as `shard-{000000..000099}.tar`.
        image_folder: where images are that a record names and the tar does not hold; by default none are.
        limit: read the first so many samples only.

    Raises:
        FileNotFoundError: no such tar file.
        ValueError: a tar file is compressed or cut off, or there is no sample.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     for name, content in [("17.jpg", b"..."), ("17.txt", b"A cat.")]:
        ...         _ = Path(folder, name).write_bytes(content)
        ...     with tarfile.open(Path(folder, "0.tar"), "w") as tar:
        ...         for name in ("17.jpg", "17.txt"):
        ...             tar.add(Path(folder, name), arcname=name)
        ...     reader = TarReader(folder)
        ...     reader.name(0), reader.sample(0).messages[1]["content"][0]["text"]
        ('0.tar/17 (#0)', 'A cat.')
    """

    def __init__(self, path: str | Path, image_folder: str | Path | None = None, limit: int | None = None):
        self.shards = find_shards(path)
        self.image_folder = image_folder
        shards, starts, stops, content = array("i"), array("q"), array("q"), hashlib.sha256()
        every = ((number, sample) for number, shard in enumerate(self.shards) for sample in _samples(shard))
        for number, (start, stop, about) in islice(every, limit):
            shards.append(number)
            starts.append(start)
            stops.append(stop)
            content.update(about)
        if not starts:
            raise ValueError(f"{path}: no samples in {len(self.shards)} tar file(s)")
        self._shards, self._starts, self._stops = np.array(shards), np.array(starts), np.array(stops)
        self._last: tuple[int, dict[str, bytes]] = (-1, {})
        self.fingerprint = f"{content.hexdigest()[:16]}-{len(starts)}"

    def __len__(self) -> int:
        return len(self._starts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": (-1, {})}

    def name(self, index: int) -> str:
        """Name sample `index`: tar file, name in it, place among all."""
        shard = self.shards[self._shards[index]].name
        try:
            key = _key(next(iter(self._files(index))))[0]
        except (OSError, ValueError, tarfile.TarError):
            return f"{shard} (#{index})"
        return f"{shard}/{key} (#{index})"

    def sample(self, index: int) -> Sample:
        """Read sample `index`."""
        name = self.name(index)
        try:
            files = {_key(path): content for path, content in self._files(index).items()}
        except tarfile.TarError as error:
            raise ValueError(f"record {name}: cannot read its part of the tar file: {error}") from error
        images = {
            f"{key}.{ending}": content
            for (key, ending), content in files.items()
            if ending.rpartition(".")[2].lower() in IMAGE_ENDINGS
        }
        by_ending = {ending: content for (_, ending), content in files.items()}
        key = next(iter(files))[0]
        if "json" in by_ending:
            record = _parse(by_ending["json"], name)
            if "conversations" in record or "messages" in record:
                made = from_record(
                    _with_images(record, images, name), name=name, image_folder=self.image_folder
                )
                return Sample(made.id, made.messages, made.record_id or key)
        caption = by_ending.get("txt", by_ending.get("caption"))
        if caption is None or not images:
            raise ValueError(
                f"record {name}: expected a .json with `conversations` or `messages`, or an image with a .txt, "
                f"got {', '.join(by_ending)}"
            )
        try:
            text = caption.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"record {name}: the caption is not UTF-8: {error}") from error
        question = [{"type": "image", "image": image} for image in images.values()]
        answer = [{"type": "text", "text": text}]
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        return Sample(name, messages, key)

    def _files(self, index: int) -> dict[str, bytes]:
        """Read a sample's stretch of the tar file, which is a tar file itself."""
        if self._last[0] != index:
            start, stop = int(self._starts[index]), int(self._stops[index])
            with self.shards[self._shards[index]].open("rb") as file:
                file.seek(start)
                stretch = io.BytesIO(file.read(stop - start))
            with tarfile.open(fileobj=stretch, mode="r:") as tar:
                found = {m.name: tar.extractfile(m).read() for m in tar if _belongs(m)}  # type: ignore[union-attr]
            if not found:
                raise ValueError(
                    f"record #{index} at byte {start} of {self.shards[self._shards[index]]}: its part of the tar file "
                    "holds no file any more; the tar file changed after it was opened"
                )
            self._last = index, found
        return self._last[1]


def find_shards(path: str | Path) -> list[Path]:
    """List the tar files that a path stands for, in order; a folder without any gives none.

    Raises:
        FileNotFoundError: a named one is not there.

    Example:
        find_shards("cc3m/{00000..00331}.tar")
    """
    place = Path(path)
    if place.is_dir():
        return sorted(place.glob("*.tar"))
    shards = [Path(name) for name in _expand(str(path))]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise FileNotFoundError(
            f"no such tar file: {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )
    return shards


def _expand(pattern: str) -> list[str]:
    """Expand `{000..002}` as a shell does."""
    found = _BRACES.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [name for n in numbers for name in _expand(pattern[: found.start()] + n + pattern[found.end() :])]


def _key(path: str) -> tuple[str, str]:
    """Split at the first dot of the file's name, as WebDataset does: `a/17.left.jpg` is `a/17` and `left.jpg`."""
    folder, slash, name = path.rpartition("/")
    key, _, ending = name.partition(".")
    return folder + slash + key, ending


def _belongs(member: tarfile.TarInfo) -> bool:
    """Whether a member is part of a sample; `__name__` is what WebDataset calls its own notes."""
    key, ending = _key(member.name)
    named = bool(ending) and not key.endswith("/") and key != ""
    return member.isfile() and named and not member.name.startswith("__")


def _samples(shard: Path) -> Iterator[tuple[int, int, bytes]]:
    """Give for each sample its first byte, the byte after its last, and what its fingerprint is made of."""
    current: tuple[str, int, int, list[bytes]] | None = None
    try:
        with shard.open("rb") as content, tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps all headers in memory
                if not _belongs(member):
                    continue
                key, ending = _key(member.name)
                content.seek(member.offset_data)
                about = content.read(member.size if ending in _TEXT_ENDINGS else min(member.size, _ENDS))
                if ending not in _TEXT_ENDINGS:
                    content.seek(member.offset_data + max(0, member.size - _ENDS))
                    about += content.read(min(member.size, _ENDS))
                about = f"{member.name} {member.size} ".encode("utf-8", "surrogateescape") + about
                if current is not None and current[0] == key:
                    current = key, current[1], tar.offset, [*current[3], about]
                    continue
                if current is not None:
                    yield current[1], current[2], b"".join(current[3])
                current = key, member.offset, tar.offset, [about]
            content.seek(tar.offset)
            if any(content.read(tarfile.BLOCKSIZE)):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError(f"damaged at byte {tar.offset}")
    except tarfile.TarError as error:
        raise ValueError(
            f"{shard}: not a readable tar file: {error}; if it is compressed, unpack it to a plain .tar (any sample "
            "must be in reach), if it is cut off, fetch it again"
        ) from error
    if current is not None:
        yield current[1], current[2], b"".join(current[3])


def _parse(raw: bytes, name: str) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"record {name}: not valid JSON: {error}") from error
    if not isinstance(record, Mapping):
        raise ValueError(f"record {name}: expected a JSON object, got {type(record).__name__}")
    return dict(record)


def _with_images(record: dict[str, Any], images: dict[str, bytes], name: str) -> dict[str, Any]:
    """Put the sample's image files in the place of the record's image names."""
    listed = record.pop("image", None) or record.pop("images", None) or []
    record.pop("images", None)
    names = listed if isinstance(listed, list) else [listed]
    by_name = {PurePosixPath(path).name: content for path, content in images.items()}
    wanted = [PurePosixPath(path).name if isinstance(path, str) else None for path in names]
    if names and all(path in by_name for path in wanted):
        return {**record, "images": [by_name[path] for path in wanted if path is not None]}
    return {**record, "images": list(images.values()) or names}
