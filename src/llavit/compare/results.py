"""Results on disk: one JSON file for each cell, and whether it may stand beside the others.

A cell is done when its file is there and was made with the same settings. A file of other settings, or made by other
code, is never taken for a result without being told to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llavit.compare.cells import Cell
from llavit.train.store import differences, write_text

FORMAT = 1
"""Raised when a key of a cell's file means something else."""

State = Literal["done", "other settings", "other code", "not run"]


@dataclass(frozen=True)
class Found:
    """What lies in the results folder for a cell.

    Attributes:
        state: "done"; "other settings" or "other code": there is a file that must not be mixed in; "not run".
        record: the file's content, if there is one.
        why: what differs, a line each.
        checked: the settings were compared; not so where data or weights are not there to compare with.
    """

    state: State
    record: dict[str, Any] | None = None
    why: tuple[str, ...] = ()
    checked: bool = True


class Results:
    """The files of cells in a folder.

    Args:
        folder: of the results; the files are `cells/NAME.json` in it.

    Example:
        >>> Results("results").path(Cell("llava", "smollm2", "full", 0)).name
        'smollm2.full.llava.0.json'
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path(self, cell: Cell) -> Path:
        """Of a cell's file."""
        return self.folder / "cells" / f"{cell.name}.json"

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """Read a cell's file; None where there is none.

        Raises:
            ValueError: it is no such file, or one of another format.
        """
        path = self.path(cell)
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no result: {error}; delete it to run the cell again") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ValueError(f"{path} is no result of this version: expected format {FORMAT}")
        return record

    def find(self, cell: Cell, identity: Mapping[str, Any] | None, code: str, accept_code: bool) -> Found:
        """Say what there is for a cell.

        Args:
            cell: which one.
            identity: its settings now (`cell_identity`); None where they cannot be known yet.
            code: `code_fingerprint()`.
            accept_code: take results that other code made.
        """
        record = self.read(cell)
        if record is None or (cell.test and record.get("test") is None and record.get("failed") is None):
            return Found("not run")
        if identity is not None:
            changes = differences(record["identity"], json.loads(json.dumps(identity)))
            if changes:
                return Found("other settings", record, tuple(changes))
        if record["code"] != code and not accept_code:
            made = record["environment"].get("git revision", "unknown")
            return Found(
                "other code", record, (f"code {record['code']} (revision {made}) there, {code} here",)
            )
        return Found("done", record, checked=identity is not None)

    def write(self, cell: Cell, record: Mapping[str, Any]) -> None:
        """Write a cell's file, whole or not at all."""
        path = self.path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"format": FORMAT, **record}, indent=1, ensure_ascii=False) + "\n")
