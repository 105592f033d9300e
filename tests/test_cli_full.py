"""`llavit starter build --full`: says what it takes before it starts, and does nothing unasked."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llavit.cli import app
from llavit.cli import full as module
from llavit.starter import full as corpus
from llavit.starter import packages as fetching
from llavit.starter.packages import packages


@pytest.fixture
def nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_it_shows_packages_sizes_and_licences_and_asks_first(nothing_there: Path):
    result = CliRunner().invoke(app, ["starter", "build", "--full", "--output", str(nothing_there / "out")])
    assert result.exit_code == 2 and "add --yes" in result.output
    for package in packages().values():
        assert package.name in result.output.replace("\n", ""), package.name
    size = sum(package.bytes for package in packages().values()) / 1e6
    assert f"{len(packages())} packages, {size:,.0f} MB" in result.output
    assert "GPL-2+" in result.output and "CC-BY-SA-4.0" in result.output
    assert not (nothing_there / "out").exists() and not (nothing_there / "cache").exists()


def test_without_clients_it_names_what_cannot_be_had(nothing_there: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(nothing_there))
    command = ["starter", "build", "--full", "--yes", "--output", str(nothing_there / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "There is no npm here" in result.output and "There is no apt here" in result.output
    assert f"{len(packages())} of {len(packages())} packages" in result.output
    assert "llavit starter build" in result.output and not (nothing_there / "out").exists()


def test_a_size_is_refused_where_it_would_change_nothing(nothing_there: Path):
    command = ["starter", "build", "--full", "--yes", "--size", "20", "--output", str(nothing_there / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "--size 20 beside --full" in result.output


def disk_with(gigabytes: float):
    whole = int(100e9)
    return lambda path: shutil._ntuple_diskusage(whole, whole - int(gigabytes * 1e9), int(gigabytes * 1e9))


def test_a_full_disk_is_noticed_before_anything_is_fetched(
    nothing_there: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module.shutil, "disk_usage", disk_with(0.6))  # enough for either, not for both
    monkeypatch.setattr(fetching, "fetch_packages", lambda **_: pytest.fail("packages were fetched"))
    command = ["starter", "build", "--full", "--yes", "--output", str(nothing_there / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "about 0.8 GB are needed, and 0.6 GB are free" in result.output


def test_a_finished_corpus_takes_no_more_room(nothing_there: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module.shutil, "disk_usage", disk_with(0.1))
    monkeypatch.setattr(fetching, "missing_packages", lambda *_: [])
    built = corpus.FullCorpus(nothing_there / "out", {"val": 1}, 4, "")
    monkeypatch.setattr(corpus, "build_full_corpus", lambda *_, **__: built)
    built.root.mkdir()
    command = ["starter", "build", "--full", "--yes", "--output", str(built.root)]
    assert "about 0.3 GB are needed" in CliRunner().invoke(app, command).output
    built.manifest.write_text('{"complete": true}')
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "val 1; 4 turns" in result.output
