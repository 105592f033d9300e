"""Files inside a Qt resource collection (.rcc, binary format 1 to 3)."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

_FOLDER, _ZLIB, _ZSTD = 2, 1, 4


def read_rcc(path: Path) -> dict[str, bytes]:
    """All files of a collection by their path in it.

    Raises:
        ValueError: it is no collection, or a file in it is compressed with zstd.
    """
    data = path.read_bytes()
    if data[:4] != b"qres":
        raise ValueError(f"{path} is no Qt resource collection: expected it to begin with 'qres'")
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    row = 14 if version < 2 else 22
    found: dict[str, bytes] = {}

    def walk(number: int, above: str) -> None:
        at = tree + number * row
        name_at, flags, first, second = struct.unpack(">IHII", data[at : at + 14])
        length = struct.unpack(">H", data[names + name_at : names + name_at + 2])[0]
        start = names + name_at + 6
        name = data[start : start + 2 * length].decode("utf-16-be")
        own = f"{above}/{name}" if name else above
        if flags & _FOLDER:
            for child in range(first):
                walk(second + child, own)
            return
        if flags & _ZSTD:
            raise ValueError(f"{path}: {own} is compressed with zstd, which is not read here")
        begin = contents + second
        size = struct.unpack(">I", data[begin : begin + 4])[0]
        raw = data[begin + 4 : begin + 4 + size]
        found[own.lstrip("/")] = zlib.decompress(raw[4:]) if flags & _ZLIB else raw

    walk(0, "")
    return found
