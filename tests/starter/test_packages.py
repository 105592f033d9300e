"""Packages of the full edition: the manifest is complete, archives are checked, missing clients are named."""

import hashlib
import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from llavit.starter import packages as module
from llavit.starter.packages import (
    fetch_packages,
    missing_clients,
    missing_packages,
    package_table,
    packages,
    unpacked,
)


def archive(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A manifest of one npm package, whose archive lies among the archives already."""
    data = archive(
        {
            "package/icons.json": b"{}",
            "package/LICENSE.txt": b"MIT",
            "package/README.md": b"no",
            "../outside": b"no",
        }
    )
    real = packages()["@iconify-json/noto"]
    package = replace(
        real, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), keep=("package/icons.json",)
    )
    monkeypatch.setattr(module, "packages", lambda: {package.name: package})
    unpacked.cache_clear()
    monkeypatch.setenv("LLAVIT_CACHE", str(tmp_path))
    path = tmp_path / "packages" / "archives" / package.file
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    yield package, path
    unpacked.cache_clear()


def has_client(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Put a program `npm` of one's own in front of the others."""
    client = folder / "bin" / "npm"
    client.parent.mkdir()
    client.write_text(f"#!/bin/sh\n{script}\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}:/usr/bin:/bin")


def test_the_manifest_pins_and_licenses_every_package():
    for package in packages().values():
        assert package.client in module.CLIENTS and package.version and package.licence and package.keep
        assert len(package.sha256) == 64 and package.bytes > 10_000, package.name
        assert package.version.split(":")[-1].split("+")[0][:4] in package.file.replace("%3a", ":"), (
            package.name
        )


def test_an_archive_that_lies_there_is_unpacked_without_a_client(one, monkeypatch: pytest.MonkeyPatch):
    package, _ = one
    monkeypatch.setattr(module.shutil, "which", lambda program: None)
    assert [p.name for p in missing_packages()] == [package.name]
    with pytest.raises(FileNotFoundError, match="llavit starter build --full"):
        unpacked(package.name)
    root = fetch_packages()
    assert missing_packages() == []
    files = {
        p.relative_to(root / package.folder_name).as_posix()
        for p in unpacked(package.name).rglob("*")
        if p.is_file()
    }
    assert files == {"package/icons.json", "package/LICENSE.txt"}  # what is kept, and under which terms


def test_a_damaged_archive_is_not_used_and_a_missing_client_is_named(one, monkeypatch: pytest.MonkeyPatch):
    package, path = one
    path.write_bytes(path.read_bytes()[:-5])
    monkeypatch.setattr(module.shutil, "which", lambda program: None)
    assert missing_clients([package]) == {"npm": [package.name]}
    with pytest.raises(FileNotFoundError, match=r"@iconify-json/noto .*: npm is not installed") as error:
        fetch_packages()
    assert "llavit starter build" in str(error.value)
    damaged = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"has sha256 {damaged}, expected {package.sha256}: copy it again" in str(error.value)
    assert not list((path.parent.parent).glob(f"*{package.folder_name}*"))


def test_a_client_that_fails_is_reported_with_what_it_said(
    one, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    _, path = one
    path.unlink()
    has_client(monkeypatch, tmp_path, "echo 'E404 no such version' >&2; exit 1")
    with pytest.raises(FileNotFoundError, match="E404 no such version"):
        fetch_packages()


def test_what_a_client_gives_is_unpacked_and_not_kept_twice(
    one, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    package, path = one
    kept = path.rename(tmp_path / "kept.tgz")
    script = f"test $3 = {package.name}@{package.version} && cp {kept} got.tgz"
    has_client(monkeypatch, tmp_path, script)
    seen: list[tuple[int, int]] = []
    fetch_packages(progress=lambda done, total: seen.append((done, total)))
    assert (unpacked(package.name) / "package/icons.json").read_text() == "{}"
    assert seen == [(package.bytes, package.bytes)] and list(path.parent.iterdir()) == []


def test_what_a_client_gives_is_checked(one, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    package, path = one
    path.unlink()
    has_client(monkeypatch, tmp_path, "echo other > other.tgz")
    with pytest.raises(FileNotFoundError, match=f"expected sha256 {package.sha256}"):
        fetch_packages()


def test_no_client_is_missing_where_the_archive_lies_there(one, monkeypatch: pytest.MonkeyPatch):
    package, path = one
    monkeypatch.setattr(module.shutil, "which", lambda program: None)
    assert missing_clients([package]) == {}
    path.unlink()
    assert missing_clients([package]) == {"npm": [package.name]}


def test_npm_is_not_told_to_be_silent_and_its_stack_trace_is_left_out(
    one, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    _, path = one
    path.unlink()
    said = [
        "code ECONNREFUSED",
        "FetchError: request failed",
        "    at request (index.js:130)",
        "A complete log",
    ]
    script = "".join(f"echo 'npm error {line}' >&2; " for line in said)
    has_client(monkeypatch, tmp_path, f'case "$*" in *--silent*) ;; *) {script};; esac; exit 1')
    with pytest.raises(FileNotFoundError, match=r"failed: code ECONNREFUSED; FetchError: request failed\n"):
        fetch_packages()


def test_a_client_that_does_not_end_is_left_behind(one, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    _, path = one
    path.unlink()
    has_client(monkeypatch, tmp_path, "exec sleep 60")
    monkeypatch.setattr(module, "_PATIENCE", 0.3)
    with pytest.raises(FileNotFoundError, match="did not end within"):
        fetch_packages()


def test_calls_at_the_same_time_get_a_package_once(one, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    package, path = one
    kept, log = path.rename(tmp_path / "kept.tgz"), tmp_path / "calls"
    has_client(monkeypatch, tmp_path, f"echo called >> {log}; sleep 0.3; cp {kept} got.tgz")
    with ThreadPoolExecutor(3) as pool:
        roots = list(pool.map(lambda _: fetch_packages(), range(3)))
    assert len(set(roots)) == 1 and unpacked(package.name).is_dir()
    assert log.read_text().splitlines() == ["called"]


def test_what_a_killed_run_left_is_removed(one):
    package, path = one
    left = [path.parent.parent / f".{package.folder_name}.0123abcd.tmp", path.parent / ".get-x"]
    for folder in left:
        (folder / "package").mkdir(parents=True)
    fetch_packages()
    assert not any(folder.exists() for folder in left) and path.exists()


def test_the_table_shows_every_package_with_its_licence():
    from rich.console import Console

    console = Console(width=200, file=io.StringIO(), force_terminal=False)
    console.print(package_table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for package in packages().values():
        assert package.name in text and package.licence.split(",")[0] in text
