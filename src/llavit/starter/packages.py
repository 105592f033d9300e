"""npm and Debian packages of the full edition: had from the ordinary clients, checked, unpacked into the cache.

    packages.json --client--> archive (sha256 as stated) --unpack--> folder of the package

Only the manifest is part of llavit. What is unpacked stays on the user's machine, under its own licence.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from llavit.starter.weights import default_cache_dir

CLIENTS = {"npm": ("npm",), "apt": ("apt-get", "dpkg-deb")}
"""Programs that each client takes."""
_LICENCE_TEXTS = ("package/licen[cs]e*", "package/copying*", "usr/share/doc/*/copyright")
_PATIENCE = 1800
"""Seconds that a client may take for one package."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Package:
    """One package of the manifest.

    Attributes:
        name: at its registry.
        client: "npm" or "apt".
        version: pinned.
        file: name of the archive.
        sha256: of the archive.
        bytes: size of the archive.
        licence: of what is used of it.
        what: it holds, and for which split.
        attribution: to name with it, if any.
        keep: patterns of the paths that are unpacked.
    """

    name: str
    client: str
    version: str
    file: str
    sha256: str
    bytes: int
    licence: str
    what: str
    attribution: str | None
    keep: tuple[str, ...]

    @property
    def folder_name(self) -> str:
        """Name of its folder in the cache: another archive is another folder."""
        return f"{self.name.strip('@').replace('/', '-')}-{self.sha256[:12]}"


@cache
def packages() -> dict[str, Package]:
    """The packages that the full edition adds to the starter's, by name.

    Examples:
        >>> packages()["@iconify-json/noto"].licence, sum(p.bytes for p in packages().values()) > 300e6
        ('Apache-2.0', True)
    """
    rows = json.loads(files("llavit.starter").joinpath("packages.json").read_text(encoding="utf-8"))
    return {row["name"]: Package(**{**row, "keep": tuple(row["keep"])}) for row in rows}


def packages_dir(cache_dir: Path | None = None) -> Path:
    """Where packages are kept: `packages/` in the cache of llavit."""
    return (default_cache_dir() if cache_dir is None else Path(cache_dir)) / "packages"


@cache
def unpacked(name: str) -> Path:
    """Folder of a package that was fetched.

    Raises:
        FileNotFoundError: it is not there; the message says how to get it.
        KeyError: the manifest has no such package.
    """
    folder = packages_dir() / packages()[name].folder_name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{name} is not in {packages_dir()}: `llavit starter build --full` gets the packages of the full edition"
        )
    return folder


def missing_packages(cache_dir: Path | None = None) -> list[Package]:
    """Packages of the manifest that are not unpacked yet."""
    root = packages_dir(cache_dir)
    return [package for package in packages().values() if not (root / package.folder_name).is_dir()]


def missing_clients(wanted: Iterable[Package], cache_dir: Path | None = None) -> dict[str, list[str]]:
    """What cannot be had because a program is missing: `{client: [package, ...]}`.

    A package whose archive was copied into the folder of archives takes no client (a Debian one takes dpkg-deb).
    """
    archives = packages_dir(cache_dir) / "archives"
    found: dict[str, list[str]] = {}
    for package in wanted:
        programs = CLIENTS[package.client]
        if _is_right(archives / package.file, package):
            programs = tuple(program for program in programs if program == "dpkg-deb")
        if not all(shutil.which(program) for program in programs):
            found.setdefault(package.client, []).append(package.name)
    return found


def fetch_packages(cache_dir: Path | None = None, progress: Progress | None = None) -> Path:
    """Get and unpack every package of the manifest that is not there yet; an interrupted call goes on.

    An archive that already lies in the folder of archives, say copied from another machine, is used if its
    hash is right: a machine without a client, or without a network, can be served that way.

    Args:
        cache_dir: of llavit; `default_cache_dir()` if None.
        progress: called with (bytes of finished packages, bytes in all).

    Returns:
        The folder that holds them.

    Raises:
        FileNotFoundError: some cannot be had; the message names each with its reason. The others are there.
    """
    from filelock import FileLock

    root = packages_dir(cache_dir)
    archives = root / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):  # one process gets packages, others wait and find them
        for left_over in (*root.glob(".*.tmp"), *archives.glob(".get-*")):  # of a run that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        failed = _fetch(missing_packages(cache_dir), root, archives, progress)
    if failed:
        raise FileNotFoundError(
            f"{len(failed)} of {len(packages())} packages of the full edition cannot be had:\n"
            + "\n".join(failed)
            + f"\nAn archive that you copy into {archives} by hand is used as well. "
            "Without them there is the edition made of PyPI packages: `llavit starter build`."
        )
    unpacked.cache_clear()
    return root


def _fetch(wanted: list[Package], root: Path, archives: Path, progress: Progress | None) -> list[str]:
    """Get and unpack packages; gives a line for each that cannot be had."""
    total, done = sum(package.bytes for package in wanted), 0
    failed: list[str] = []
    for package in wanted:
        copied = _is_right(archives / package.file, package)
        try:
            archive = _archive(package, archives)
            _unpack(package, archive, root / package.folder_name)
            if not copied:  # what was downloaded here is of no more use
                archive.unlink()
        except _Unavailable as error:
            failed.append(f"  {package.name} {package.version}: {error}")
        done += package.bytes
        if progress:
            progress(done, total)
    return failed


class _Unavailable(Exception):
    """A package cannot be had; the text is the reason."""


def _is_right(archive: Path, package: Package) -> bool:
    return archive.is_file() and _sha256(archive) == package.sha256


def _archive(package: Package, archives: Path) -> Path:
    path = archives / package.file
    if _is_right(path, package):
        return path
    with tempfile.TemporaryDirectory(dir=archives, prefix=".get-") as temporary:
        os.chmod(temporary, 0o755)  # apt-get downloads as a user of its own
        try:
            got = _download(package, Path(temporary))
        except _Unavailable as error:
            if not path.exists():
                raise
            damaged = (
                f"{path.name} in the folder of archives has sha256 {_sha256(path)}, expected {package.sha256}"
            )
            raise _Unavailable(f"{error}; {damaged}: copy it again") from error
        if (found := _sha256(got)) != package.sha256:
            raise _Unavailable(f"expected sha256 {package.sha256}, {package.client} gave {found}")
        os.replace(got, path)
    return path


def _download(package: Package, folder: Path) -> Path:
    lacks = [program for program in CLIENTS[package.client] if not shutil.which(program)]
    if lacks:
        raise _Unavailable(f"{' and '.join(lacks)} is not installed")
    if package.client == "npm":
        command = ["npm", "pack", "--loglevel=error", f"{package.name}@{package.version}"]
    else:
        command = ["apt-get", "download", "--quiet", f"{package.name}={package.version}"]
    shown = f"`{' '.join(command)}`"
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _Unavailable(f"{shown} did not end within {_PATIENCE / 60:g} minutes") from error
    got = [path for path in folder.iterdir() if path.suffix in (".tgz", ".deb")]
    if result.returncode or not got:
        hint = ""
        if package.client == "apt":
            hint = "; `apt-get update` may help; the version is that of Debian 12"
        reason = _reason(result.stderr) or _reason(result.stdout) or f"status {result.returncode}"
        raise _Unavailable(f"{shown} failed: {reason}{hint}")
    return got[0]


def _reason(said: str) -> str:
    """What a client gave as its reason: of npm the lines before its stack trace, of apt-get the last one.

    Examples:
        >>> _reason("npm error code E404\\nnpm error 404 No match\\nnpm error A complete log of this run: /x")
        'code E404; 404 No match'
        >>> _reason("W: a warning\\nE: Unable to locate package x")
        'E: Unable to locate package x'
    """
    lines = [line.strip() for line in said.strip().splitlines()]
    of_npm = [
        re.sub(r"^npm (error|ERR!)", "", line).strip()
        for line in lines
        if re.match(r"npm (error|ERR!)", line)
    ]
    if not of_npm:
        return lines[-1] if lines else ""
    stop = (i for i, line in enumerate(of_npm) if not line or line.startswith(("at ", "A complete log")))
    return "; ".join(of_npm[: next(stop, len(of_npm))][:5])


def _unpack(package: Package, archive: Path, folder: Path) -> None:
    """Unpack what is kept of an archive, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        if package.client == "npm":
            with tarfile.open(archive) as tar:
                _extract(tar, package.keep, temporary)
        else:
            if not shutil.which("dpkg-deb"):
                raise _Unavailable("dpkg-deb is not installed")
            command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                    _extract(tar, package.keep, temporary)
                assert process.stdout is not None
                while process.stdout.read(1 << 20):
                    pass
            if process.returncode:
                raise _Unavailable(f"`{' '.join(command)}` failed with status {process.returncode}")
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(tar: tarfile.TarFile, keep: Sequence[str], folder: Path) -> None:
    found = 0
    for member in tar:
        path = member.name.removeprefix("./")
        wanted = any(fnmatch.fnmatchcase(path, pattern) for pattern in keep)
        text = any(fnmatch.fnmatchcase(path.lower(), pattern) for pattern in _LICENCE_TEXTS)
        if (wanted and (member.issym() or member.islnk())) or ((wanted or text) and member.isfile()):
            tar.extract(member, folder, filter="data")
            found += wanted
    if not found:
        raise _Unavailable(f"nothing in it matches {list(keep)}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_table(cache_dir: Path | None = None) -> Any:
    """A table (of rich) with what the full edition takes: package, client, size, licence, what it is for."""
    from rich.table import Table

    missing = {package.name for package in missing_packages(cache_dir)}
    table = Table(title="Packages of the full edition, besides those of the extra `starter`")
    for column, justify in (("package", "left"), ("from", "left"), ("MB", "right"), ("licence", "left")):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("holds")
    table.add_column("there")
    for package in packages().values():
        there = "" if package.name in missing else "yes"
        size = f"{package.bytes / 1e6:.1f}"
        name = f"{package.name} {package.version}"
        table.add_row(name, package.client, size, package.licence, package.what, there)
    return table
