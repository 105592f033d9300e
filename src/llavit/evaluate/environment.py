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
    here = Path(__file__).parent
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    found["git revision"] = git.stdout.strip() if git.returncode == 0 else "not a git checkout"
    return found
