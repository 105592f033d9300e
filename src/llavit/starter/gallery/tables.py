"""Fonts and tables of the full edition, each family and each table in one split."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from functools import cache

from llavit.starter import words as starter_words
from llavit.starter.kit import Split
from llavit.starter.packages import unpacked
from llavit.starter.sources import font_path

DEBIAN_FONTS: dict[Split, dict[str, tuple[str, tuple[str, ...]]]] = {
    "train": {
        "Liberation Sans": ("fonts-liberation2", ("LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf")),
        "Liberation Serif": (
            "fonts-liberation2",
            ("LiberationSerif-Regular.ttf", "LiberationSerif-Bold.ttf"),
        ),
        "Liberation Mono": ("fonts-liberation2", ("LiberationMono-Regular.ttf", "LiberationMono-Bold.ttf")),
        "Lato": ("fonts-lato", ("Lato-Regular.ttf", "Lato-Bold.ttf")),
        "Open Sans": ("fonts-open-sans", ("OpenSans-Regular.ttf", "OpenSans-Bold.ttf")),
        "Roboto": ("fonts-roboto-unhinted", ("Roboto-Regular.ttf", "Roboto-Bold.ttf")),
        "Comic Neue": ("fonts-comic-neue", ("ComicNeue-Regular.otf", "ComicNeue-Bold.otf")),
        "Quicksand": ("fonts-quicksand", ("Quicksand-Medium.ttf", "Quicksand-Bold.ttf")),
        "Inconsolata": ("fonts-inconsolata", ("Inconsolata.otf",)),
        "Cabin": ("fonts-cabin", ("Cabin-Regular.otf", "Cabin-Bold.otf")),
        "DKG Handwriting": ("fonts-dkg-handwriting", ("dkg.ttf", "dkgBd.ttf")),
        "Kaushan Script": ("fonts-kaushanscript", ("KaushanScript-Regular.otf",)),
    },
    "val": {
        "Play": ("fonts-play", ("Play-Regular.ttf", "Play-Bold.ttf")),
        "Dancing Script": ("fonts-dancingscript", ("DancingScript-Bold.otf",)),
    },
    "test": {
        "EB Garamond": ("fonts-ebgaramond", ("EBGaramond12-Regular.otf", "EBGaramond12-Bold.otf")),
        "JetBrains Mono": ("fonts-jetbrains-mono", ("JetBrainsMono-Regular.ttf", "JetBrainsMono-Bold.ttf")),
        "Lobster": ("fonts-lobster", ("lobster.otf",)),
        "Roadgeek": ("fonts-roadgeek", ("RG2014D.ttf", "RG2014EM.ttf")),
        "OpenDyslexic": ("fonts-opendyslexic", ("OpenDyslexic-Regular.otf", "OpenDyslexic-Bold.otf")),
    },
}
"""Families of the Debian packages: package and files."""

TABLES: dict[Split, tuple[str, ...]] = {
    "train": (
        "anscombe.json", "birdstrikes.csv", "budgets.json", "burtin.json", "cars.json",
        "countries.json", "driving.json", "flights-2k.json",
        "gapminder.json", "github.csv", "income.json", "jobs.json", "la-riots.csv",
        "movies.json", "ohlc.json", "penguins.json", "seattle-weather.csv", "stocks.csv",
        "us-employment.csv", "weather.csv", "lookup_people.csv", "sp500.csv", "political-contributions.json",
    ),
    "val": ("unemployment-across-industries.json", "monarchs.json", "global-temp.csv"),
    "test": (
        "barley.json", "wheat.json", "disasters.csv", "iowa-electricity.csv", "obesity.json", "co2-concentration.csv",
        "population.json", "crimea.json",
    ),
}  # fmt: skip
"""Tables of the npm package vega-datasets."""

_SKIP = {
    "year",
    "date",
    "Year",
    "Date",
    "longitude",
    "latitude",
    "month",
    "id",
    "lat",
    "lng",
    "lon",
    "index",
    "code",
}


@cache
def fonts(split: Split) -> tuple[tuple[str, str], ...]:
    """Families with the path of each file.

    Raises:
        FileNotFoundError: a package has no such file.
    """
    found: list[tuple[str, str]] = []
    own = {"train": starter_words.FONTS, "val": {}, "test": starter_words.HELD_OUT_FONTS}[split]
    found += [(family, str(font_path(file))) for family, files in own.items() for file in files]
    for family, (package, files) in DEBIAN_FONTS[split].items():
        for file in files:
            path = next(iter(sorted(unpacked(package).rglob(file))), None)
            if path is None:
                raise FileNotFoundError(f"{package} holds no {file}")
            found.append((family, str(path)))
    return tuple(found)


@cache
def columns(table: str) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Numeric columns of a table, of its first 3,000 rows."""
    text = (unpacked("vega-datasets") / "package/data" / table).read_text(encoding="utf-8")
    rows = json.loads(text) if table.endswith("json") else list(csv.DictReader(text.splitlines()))
    found: dict[str, list[float]] = {}
    for row in rows[:3000] if isinstance(rows, list) else []:
        for column, value in row.items() if isinstance(row, dict) else ():
            if column in _SKIP or value is None or isinstance(value, bool):
                continue
            try:
                found.setdefault(column, []).append(float(value))
            except (TypeError, ValueError):
                continue
    return tuple((name, tuple(values)) for name, values in found.items() if len(set(values)) >= 6)


def tables(split: Split) -> Sequence[str]:
    """Tables of a split that hold numbers."""
    return [table for table in TABLES[split] if columns(table)]
