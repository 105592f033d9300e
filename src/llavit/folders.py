"""Folders that appear when they are whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_free(output: str | Path) -> Path:
    """Refuse a place where something is: a file, or a folder that is not empty.

    Raises:
        ValueError: it is taken.

    Example:
        >>> require_free("/a/folder/that/is/not/there").name
        'there'
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is there already; choose another folder")
    return output


@contextmanager
def whole_folder(output: str | Path) -> Iterator[Path]:
    """Give a folder to write into, which gets its name when all is written; after an error it is gone.

    Args:
        output: the name. What is there may be an empty folder at most.

    Raises:
        ValueError: the name is taken.

    Example:
        with whole_folder("exported") as folder:
            model.save_pretrained(folder)
    """
    output = require_free(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.absolute().with_name(f".{output.absolute().name}.{os.getpid()}")
    try:
        unfinished.mkdir()
        yield unfinished
        _rename(unfinished, require_free(output))
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _rename(folder: Path, output: Path) -> None:
    """Give a folder its name, or its content where the name is an empty folder that must stay: a mount, a link, `.`."""
    try:
        os.replace(folder, output)
    except OSError:
        if not output.is_dir() or any(output.iterdir()):
            raise
        for path in sorted(folder.iterdir()):
            shutil.move(path, output / path.name)
