"""The weights that a recipe starts from: where they are, and a digest of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

_FILES = ("model*.safetensors", "pytorch_model*.bin", "trained.safetensors", "adapter/*.safetensors")
_WHOLE = 2**26
"""Bytes of a file up to which all of it is read."""

_PIECE, _EVERY = 2**12, 2**20
"""Of a larger file: so many bytes, each time after so many."""


def starter_part(source: str) -> str | Path:
    """Resolve `starter:llm`, `starter:tower` and `starter:gemma`; anything else is a folder or a hub id."""
    if not source.startswith("starter:"):
        return source
    from llavit.starter import gemma, weights

    known = {
        "starter:llm": weights.starter_llm,
        "starter:tower": weights.starter_tower,
        "starter:gemma": gemma.starter_gemma,
    }
    if source not in known:
        raise ValueError(f"unknown starter part {source!r}, expected one of {', '.join(known)}")
    return known[source]()


def weights_digest(source: str) -> str | None:
    """Tell the weights in a folder from others that may lie there later.

    Files of up to 64 MiB are read whole, of larger ones 4 KiB in each MiB: a start must not wait for gigabytes, and
    training moves whole tensors, of which every one of a MiB or more is met.

    Args:
        source: a folder; anything else has a name that stands for it: a hub id, a part of the starter.

    Returns:
        16 hexadecimal digits, or None where no weights lie.

    Example:
        >>> weights_digest("starter:llm") is None
        True
    """
    files = sorted(file for pattern in _FILES for file in Path(source).glob(pattern))
    found = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        found.update(f"{path.relative_to(source).as_posix()} {size} ".encode())
        with path.open("rb", buffering=0) as file:
            for start in range(0, size, _PIECE if size <= _WHOLE else _EVERY):
                file.seek(start)
                found.update(file.read(_PIECE))
    return found.hexdigest()[:16] if files else None
