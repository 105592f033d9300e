"""Feature cache: what a frozen vision tower sees in each image, computed once and read from disk ever after.

The tower is frozen in both of LLaVA's stages, so all epochs, variants and seeds can share its features. They are
stored in bfloat16 and memory-mapped. What they depend on is in the name of their folder (`cache_key`): tower weights
and config, preprocessing, layers. What each belongs to is the hash of the image's bytes. So a change of either is not
a stale entry but a missing one.

    FOLDER/KEY/key.json            what the key was made of
    FOLDER/KEY/part-*.bin          features, (rows, v, f) bfloat16
    FOLDER/KEY/part-*.idx          one line per row: hash of the image, checksum of the row
    FOLDER/KEY/part-*.checked      sizes and times of both when all rows were last read, and which were damaged

Every process that computes writes a part of its own. A row without its line, a line without its row and a row that
does not match its checksum count as missing, and are computed again. Whole parts are read when they are new or have
changed, not at each start: there may be terabytes. Each row is checked when it is used as well.

Legend: v visual tokens of an image, f width of its features (layers * tower width).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

Encode = Callable[[list[Any]], torch.Tensor]
"""Images to features: n images to (n, v, f)."""


_CHECKED = ".checked"

_HOW_IT_IS_HELD = (
    "_name_or_path",
    "_attn_implementation",
    "attn_implementation",
    "dtype",
    "transformers_version",
)
"""Of a tower's config, what says nothing about its features."""


def image_digest(image: Any) -> str:
    """Hash an image: a file's bytes, or all of a picture that `to_rgb` looks at: mode, size, pixels, palette, ...

    Example:
        >>> image_digest(Image.new("L", (1, 1)))[:8]
        'e4a1bf79'
    """
    if isinstance(image, Image.Image):
        head = f"{image.mode} {image.size} "
        more = {
            "palette": image.getpalette("RGBA") if image.palette is not None else None,
            "transparency": image.info.get("transparency"),
            "orientation": image.getexif().get(0x0112),
        }
        head += "".join(f"{key} {value} " for key, value in more.items() if value is not None)
        return hashlib.sha256(head.encode() + image.tobytes()).hexdigest()
    raw = image if isinstance(image, bytes) else Path(image).read_bytes()
    return hashlib.sha256(raw).hexdigest()


def cache_key(
    tower: torch.nn.Module, settings: Mapping[str, Any], *, computed_in: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Say all that features depend on beside the image.

    Args:
        tower: its weights are hashed, as the computation takes them: a run under autocast rounds the matrices of
            linear layers and convolutions to its dtype, so a tower that was saved with these rounded has the key of
            the one it came from, and the same features to the bit. What its config says counts as well: an
            activation that was put right leaves the weights alone and changes every feature.
        settings: preprocessing, layers and so on; plain values.
        computed_in: dtype of the run.

    Example:
        >>> sorted(cache_key(torch.nn.Linear(1, 1), {"layers": [4, 8]}))
        ['computed in', 'layers', 'tower']
    """
    rounded = {
        f"{name}.weight".removeprefix(".")
        for name, module in tower.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }
    weights = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        taken = tensor.detach().to(computed_in) if name in rounded else tensor.detach()
        weights.update(name.encode())
        weights.update(taken.float().cpu().contiguous().numpy().tobytes())
    key = {**settings, "computed in": str(computed_in), "tower": weights.hexdigest()}
    config: Any = getattr(tower, "config", None)
    if config is not None:
        key["tower config"] = {
            name: value
            for name, value in sorted(config.to_dict().items())
            if isinstance(value, bool | int | float | str) and name not in _HOW_IT_IS_HELD
        }
    return key


class FeatureCache:
    """The features of one tower with one preprocessing.

    Call it with an image to get its features, (v, f) bfloat16. It can be sent to worker processes; each maps the
    files for itself.

    Args:
        folder: where caches are; each key has a folder in it.
        key: of `cache_key`.

    Example:
        >>> from tempfile import mkdtemp
        >>> cache = FeatureCache(mkdtemp(), {"tower": "a"})
        >>> picture = Image.new("RGB", (2, 2))
        >>> cache.add([picture], lambda images: torch.ones(len(images), 4, 8))
        1
        >>> cache(picture).shape
        torch.Size([4, 8])
    """

    def __init__(self, folder: str | Path, key: Mapping[str, Any]):
        text = json.dumps(key, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "key.json").write_text(text + "\n", encoding="utf-8")
        self.rows: dict[str, tuple[str, int, int]] = {}  # part, row in it, checksum
        self.shape: tuple[int, int] | None = None
        self.damaged = 0
        self.written: dict[str, int] = {}  # files that this process wrote, and their bytes
        self._maps: dict[str, np.memmap] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, image: Any) -> bool:
        return image_digest(image) in self.rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def __call__(self, image: Any) -> torch.Tensor:
        """Read the features of an image.

        Raises:
            KeyError: they are not there: `add` was not called, or the image or the cache's file has changed since.
        """
        part, row, checksum = self.rows[image_digest(image)]
        values = np.array(self._map(part)[row])
        if zlib.crc32(values.data) != checksum:
            (self.folder / part).with_suffix(_CHECKED).unlink(missing_ok=True)  # so that the next start looks
            raise KeyError(f"row {row} of {self.folder / part} is damaged")
        return torch.from_numpy(values).view(torch.bfloat16)

    def refresh(self) -> None:
        """Read the index of every part again, as other processes may have written some; check parts that changed."""
        self.rows, self._maps = {}, {}
        damaged = set()
        for index in sorted(self.folder.glob("part-*.idx")):
            head, *lines = index.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
            data = index.with_suffix(".bin")
            if not head.startswith("{") or not data.exists():
                continue
            self.shape = tuple(json.loads(head)["shape"])
            bad = _damaged_rows(index, data, [line.partition(" ")[2] for line in lines], self.shape)
            for row, line in enumerate(lines):
                digest, _, checksum = line.partition(" ")
                if row in bad:
                    damaged.add(digest)
                else:
                    self.rows[digest] = (data.name, row, int(checksum, 16))
        self.damaged = len(damaged - self.rows.keys())

    def add(
        self,
        images: Iterable[Any],
        encode: Encode,
        *,
        batch_size: int = 32,
    ) -> int:
        """Compute and store the features of those images that have none.

        Args:
            images: paths or PIL images; taken one batch at a time.
            encode: images to features; may raise for an unreadable one, see below.
            batch_size: images per call of `encode`.

        Returns:
            how many images were computed. An unreadable image is left out here; who asks for its features later
            gets the error then, with the name of the record.

        Raises:
            ValueError: the disk has no room.
        """
        part = self.folder / f"part-{uuid.uuid4().hex}"
        written = 0
        index = data = None
        try:
            for batch in self._missing(images, batch_size):
                if batch:
                    features, digests = _encode_readable(encode, batch)
                    if index is None and digests:
                        self.shape = (features.shape[1], features.shape[2])
                        data = part.with_suffix(".bin").open("wb")
                        index = part.with_suffix(".idx").open("w", encoding="utf-8")
                        index.write(json.dumps({"shape": self.shape}) + "\n")
                    for digest, feature in zip(digests, features, strict=True):
                        assert data is not None and index is not None
                        raw = (
                            feature.to(torch.bfloat16).contiguous().cpu().view(torch.int16).numpy().tobytes()
                        )
                        self._require_room(len(raw))
                        checksum = zlib.crc32(raw)
                        data.write(raw)
                        index.write(f"{digest} {checksum:08x}\n")
                        self.rows[digest] = (Path(data.name).name, written, checksum)
                        written += 1
                    if data is not None and index is not None:
                        data.flush()
                        index.flush()
        finally:
            for file in (data, index):
                if file is not None:
                    file.close()
        if written:
            files = part.with_suffix(".idx"), part.with_suffix(".bin")
            _say_checked(files[0], _state(*files), [])
            self.written |= {file.name: file.stat().st_size for file in files}
        return written

    def _missing(self, images: Iterable[Any], batch_size: int) -> Iterator[list[tuple[str, Any]]]:
        """Give batches of (hash, image) without features; each hash once."""
        batch: dict[str, Any] = {}
        for image in images:
            try:
                digest = image_digest(image)
            except (OSError, ValueError):  # a ValueError: no file can have such a name
                continue
            if digest not in self.rows:
                batch[digest] = image
            if len(batch) == batch_size:
                yield list(batch.items())
                batch = {}
        yield list(batch.items())

    def _map(self, part: str) -> np.memmap:
        if part not in self._maps:
            assert self.shape is not None
            path = self.folder / part
            rows = path.stat().st_size // (2 * self.shape[0] * self.shape[1])
            self._maps[part] = np.memmap(path, np.int16, "r", shape=(rows, *self.shape))
        return self._maps[part]

    def _require_room(self, more: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < 64 * more:
            raise ValueError(
                f"feature cache {self.folder}: {free / 2**30:.1f} GiB of disk are left, and an image takes "
                f"{more / 2**20:.2f} MiB. Choose a feature_cache folder on a larger disk, or leave it out of the recipe"
            )


def _damaged_rows(index: Path, data: Path, checksums: Sequence[str], shape: tuple[int, int]) -> set[int]:
    """Find the rows of a part that do not match their checksums; the part is read if it changed since the last time."""
    stated = _state(index, data)
    try:
        before = json.loads(index.with_suffix(_CHECKED).read_text(encoding="utf-8"))
        if before["files"] == stated:
            return set(before["damaged"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not whole
    with data.open("rb") as file:
        rows = (file.read(2 * shape[0] * shape[1]) for _ in checksums)
        bad = {row for row, raw in enumerate(rows) if f"{zlib.crc32(raw):08x}" != checksums[row]}
    _say_checked(index, stated, sorted(bad))
    return bad


def _say_checked(index: Path, stated: list[list[int]], damaged: list[int]) -> None:
    text = json.dumps({"files": stated, "damaged": damaged})
    index.with_suffix(_CHECKED).write_text(text, encoding="utf-8")


def _state(index: Path, data: Path) -> list[list[int]]:
    """Give sizes and times of a part's files."""
    return [[found.st_size, found.st_mtime_ns] for found in (index.stat(), data.stat())]


def _encode_readable(encode: Encode, batch: list[tuple[str, Any]]) -> tuple[torch.Tensor, list[str]]:
    """Encode a batch; where that fails, one by one, without those that fail."""
    try:
        return encode([image for _, image in batch]), [digest for digest, _ in batch]
    except ValueError:
        found = []
        for digest, image in batch:
            try:
                found.append((digest, encode([image])))
            except ValueError:
                continue
        return torch.cat([features for _, features in found] or [torch.empty(0, 0, 0)]), [d for d, _ in found]
