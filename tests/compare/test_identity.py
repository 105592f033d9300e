"""What a result depends on: every module that makes a score is in the fingerprint of the code."""

import ast
from collections.abc import Iterator
from pathlib import Path

from llavit.compare import identity

HARMLESS = {
    "__init__.py": "names only",
    "compiling.py": "whether to compile is part of the settings",
    "folders.py": "when a folder or file is there, not what is in it",
    "progress.py": "what is shown",
    "threads.py": "which threads a program has, and when they are called",
    "compare/cells.py": "names of cells",
    "compare/grid.py": "what comes out is part of the settings",
    "compare/variants.py": "what comes out is part of the settings",
    "compare/identity.py": "the settings themselves",
}


def module(name: str) -> Path | None:
    place = identity.PACKAGE.parent / name.replace(".", "/")
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


def imported(path: Path) -> Iterator[Path]:
    """Give the modules of llavit that a module imports, within its functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llavit"):
            for alias in node.names:
                found = module(f"{node.module}.{alias.name}") or module(str(node.module))
                if found is not None:
                    yield found


def test_all_code_that_a_cell_runs_is_in_the_fingerprint():
    counted = {path for pattern in identity._CODE for path in identity.PACKAGE.glob(pattern)}
    reached: set[Path] = set()
    waiting = [identity.PACKAGE / "compare/cell.py"]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            if path != identity.PACKAGE / "__init__.py":  # re-exports everything
                waiting.extend(imported(path))
    assert identity.PACKAGE / "train/run.py" in reached
    missing = {str(path.relative_to(identity.PACKAGE)) for path in reached - counted} - HARMLESS.keys()
    assert not missing, (
        "a change of these would mix results: name them in _CODE, or in HARMLESS with a reason"
    )
