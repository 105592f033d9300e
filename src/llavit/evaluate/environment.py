"""What a result depends on beside the code and the model."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def environment() -> dict[str, str]:
    """Return versions, git revision and machine: `cpu` where the system names its model, `gpu` where CUDA has one.

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
    found |= {name: model for name, model in (("cpu", _cpu()), ("gpu", _gpus())) if model}
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _gpus() -> str:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


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
