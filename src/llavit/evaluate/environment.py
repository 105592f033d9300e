"""What a result depends on beside the code and the model."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def environment() -> dict[str, str]:
    """Return versions, git revision and machine.

    Example:
        >>> environment()["python"] == platform.python_version()
        True
    """
    found = {"python": platform.python_version(), "machine": platform.machine(), "cores": str(os.cpu_count())}
    for package in ("llavit", "torch", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["git revision"] = _revision(Path(__file__))
    return found


def _revision(file: Path) -> str:
    """Return the revision of the checkout that a file of ours is in, and not of one that merely surrounds it."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", *words], cwd=file.parent, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        if git("ls-files", "--error-unmatch", file.name) is None:
            return "not a git checkout"
        return git("describe", "--always", "--dirty") or "not a git checkout"
    except OSError:
        return "not known: git is not installed"
