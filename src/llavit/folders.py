"""Folders that appear when they are whole, and files that another machine wrote."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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


def wait_until_seen(files: Mapping[Path, int], *, seconds: float = 120.0, every: float = 1.0) -> None:
    """Wait until what another process has written can be seen here, as shared storage may show it late.

    A machine keeps what it knows of a folder on NFS, and so that a file is not there, for up to a minute.

    Args:
        files: each with its bytes, 0 for a folder.
        seconds: how long at most.
        every: seconds between two looks.

    Raises:
        FileNotFoundError: one of them cannot be seen, or not the whole of it; says where and what to do.

    Example:
        >>> wait_until_seen({Path(): 0})
    """
    until = time.monotonic() + seconds
    while unseen := [path for path, size in files.items() if _size(path) < size]:
        if time.monotonic() >= until:
            raise FileNotFoundError(
                f"{unseen[0]}: another process has written it, and after {seconds:g} seconds it is not to be seen, or "
                f"not the whole of it, on machine {socket.gethostname()}. Put it on storage that all machines share"
            )
        time.sleep(every)


def _size(path: Path) -> int:
    """Give the bytes of a file, -1 where it is not to be seen."""
    try:
        return path.stat().st_size
    except OSError:
        with suppress(OSError):
            os.listdir(path.parent)  # makes NFS ask again
        return -1


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
