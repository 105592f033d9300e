"""`llavit starter build --full`: says what it takes before it starts, and does nothing unasked."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from llavit.cli import app
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
