"""Cells that only pretend to train, for tests of what happens around them."""

import pytest

from llavit.compare import run as run_module


@pytest.fixture
def ran(monkeypatch):
    """Names of the cells that were trained: none is, they only pretend to; and no reports are written."""
    names: list[str] = []

    def quick(cell, *args, **kwargs):
        names.append(cell.name)
        return {
            "cell": {"variant": cell.variant, "llm": cell.llm, "size": cell.size, "seed": cell.seed},
            "identity": args[2],
            "code": run_module.code_fingerprint(),
            "failed": "the loss is nan",
            "test": None,
            "val": None,
            "seconds": {"training": 100.0, "wall": 180.0},
        }

    monkeypatch.setattr(run_module, "run_cell", quick)
    monkeypatch.setattr("llavit.compare.report.write_reports", lambda there: None)
    return names
