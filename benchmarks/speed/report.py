"""Writes what was measured: latest.json, its details, a table and a picture.

`latest.json` is a list of {"name", "value", "bar", "holds", "ours", "peer", "unit"}; `unit` is that of `ours` and
`peer`, the value is a ratio (or a share, or an exponent: see the details). `latest-details.json` has for each row when
and how it was measured, every pair, the spread, and for each group the raw timings. Rows that are measured alone
replace their own entries only.
"""

from __future__ import annotations

import json
import os
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.speed.material import ROOT
from benchmarks.speed.rows import ROWS, Figure, Row

RESULTS = Path(__file__).parents[1] / "results"
DOC = Path(__file__).parents[2] / "docs" / "speed.md"
BEGIN, END = "<!-- benchmark table: made by make bench -->", "<!-- end of the benchmark table -->"


def record(
    rows: list[Row], raw: dict[str, Any], made: dict[str, Any], folder: Path = RESULTS
) -> list[dict[str, Any]]:
    """Compute rows from a group's raw timings and write them down, beside those of other groups.

    Args:
        rows: of one group.
        raw: what its `measure` returned.
        made: versions, machine and settings.
        folder: of the results.

    Returns:
        the entries of these rows, as in latest.json.
    """
    entries, details = read(folder)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    fresh = []
    for row in rows:
        figure = row.figure(raw)
        if figure is None:
            details["left_out"][row.name] = _why(row, raw)
            continue
        details["left_out"].pop(row.name, None)
        entries[row.name] = _entry(row, figure)
        details["rows"][row.name] = {
            "what": row.what,
            "value_is": {"x": "a ratio", "share": "a share"}.get(row.unit, f"an {row.unit}"),
            "bar_is": "the least that is good enough" if row.least else "the most that is good enough",
            "group": row.group,
            "measured": now,
            "pairs": figure.pairs,
            "spread": _spread(figure.pairs),
            **figure.facts,
        }
        fresh.append(entries[row.name])
    if rows:
        details["groups"][rows[0].group] = {"measured": now, "made": made, "raw": raw}
    known = [row.name for row in ROWS]
    ordered = sorted(entries.values(), key=lambda entry: known.index(entry["name"]))
    _write(folder / "latest.json", json.dumps(ordered, indent=1) + "\n")
    # What a side that failed had to say names files: by their places in the repository.
    told = json.dumps(details, indent=1).replace(f"{ROOT}/", "")
    _write(folder / "latest-details.json", told + "\n")
    return fresh


def read(folder: Path = RESULTS) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Read the results: rows by name, and details."""
    path, more = folder / "latest.json", folder / "latest-details.json"
    known = {row.name for row in ROWS}
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    details = json.loads(more.read_text(encoding="utf-8")) if more.exists() else {}
    for key in ("rows", "groups", "left_out"):
        details.setdefault(key, {})
    return {entry["name"]: entry for entry in entries if entry["name"] in known}, details


def table(folder: Path = RESULTS) -> str:
    """Write the results as a Markdown table.

    Example:
        ```python
        print(table())
        ```
    """
    entries, details = read(folder)
    lines = [
        "| row | what | value | bar | holds | ours | peer | unit |",
        "|---|---|---:|---:|---|---:|---:|---|",
    ]
    for row in ROWS:
        if row.name not in entries:
            continue
        entry = entries[row.name]
        holds = {True: "yes", False: "**no**", None: ""}[entry["holds"]]
        bar = "" if entry["bar"] is None else f"{'≥' if row.least else '≤'} {_value(row, entry['bar'])}"
        peer = "" if entry["peer"] is None else _number(entry["peer"])
        lines.append(
            f"| `{row.name}` | {row.what} | {_value(row, entry['value'])} | {bar} | {holds} "
            f"| {_number(entry['ours'])} | {peer} | {entry['unit']} |"
        )
    for name, why in details["left_out"].items():
        lines.append(f"| `{name}` | left out: {' '.join(why.split())[:160]} | | | | | | |")
    return "\n".join(lines) + "\n"


def document(folder: Path = RESULTS, doc: Path | None = DOC) -> None:
    """Put the table into results/latest.md, and between its marks in the document, if one is given."""
    made = table(folder)
    _write(folder / "latest.md", made)
    if doc is None:
        return
    text = doc.read_text(encoding="utf-8") if doc.exists() else f"# Speed\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n## Benchmark\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    _write(doc, f"{before}{BEGIN}\n\n{made}\n{END}{after}")


def between_marks(doc: Path = DOC) -> str:
    """Give the table that a document shows."""
    text = doc.read_text(encoding="utf-8")
    return text.partition(BEGIN)[2].partition(END)[0].strip() + "\n"


def picture(folder: Path = RESULTS) -> None:
    """Draw each value against its bar, and how step time grows, into results/latest.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries, details = read(folder)
    shown = [row for row in ROWS if row.name in entries and row.bar is not None]
    points = details["groups"].get("scaling", {}).get("raw", {}).get("points", [])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 0.34 * len(shown) + 2.2))
    good = [_goodness(row, entries[row.name]["value"]) for row in shown]
    colours = ["#2a7f62" if entries[row.name]["holds"] else "#b5483a" for row in shown]
    left.barh(range(len(shown)), good, color=colours)
    left.axvline(1, color="black", linewidth=1)
    left.set_yticks(range(len(shown)), [row.name for row in shown])
    left.invert_yaxis()
    for place, (row, share) in enumerate(zip(shown, good, strict=True)):
        value, bar = _value(row, entries[row.name]["value"]), _value(row, row.bar or 0)
        left.text(share, place, f" {value} ({'≥' if row.least else '≤'} {bar})", va="center", fontsize=8)
    left.set_xlabel("how far beyond its bar (1 = just met; right is better)")
    left.set_xlim(0, 1.35 * max([*good, 1]))
    for axis, mark in (("visual tokens", "o"), ("images per sample", "s"), ("samples per batch", "^")):
        some = sorted((p["tokens"], p["seconds"]) for p in points if p["axis"] == axis)
        if some:
            right.plot(*zip(*some, strict=True), marker=mark, label=axis)
    if points:
        last = max(points, key=lambda p: p["tokens"])
        ends = [min(p["tokens"] for p in points), last["tokens"]]
        right.plot(
            ends,
            [last["seconds"] * t / last["tokens"] for t in ends],
            "--",
            color="grey",
            label="in proportion",
        )
        right.legend()
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("tokens in a training step")
    right.set_ylabel("seconds per step")
    figure.tight_layout()
    figure.savefig(folder / "latest.png", dpi=110)
    pyplot.close(figure)


def _entry(row: Row, figure: Figure) -> dict[str, Any]:
    return {
        "name": row.name,
        "value": _rounded(figure.value),
        "bar": row.bar,
        "holds": row.holds(figure.value),
        "ours": _rounded(figure.ours),
        "peer": None if figure.peer is None else _rounded(figure.peer),
        "unit": figure.unit,
    }


def _why(row: Row, raw: dict[str, Any]) -> str:
    if "left out" in raw:
        return raw["left out"]
    if "nanovlm" in row.name:
        return raw["nano"].get("left out", "")
    failed = [each for each in raw.get("failed", []) if "int8" in each["side"]] if "int8" in row.name else []
    return failed[0]["failed"] if failed else "too little was measured"


def _spread(pairs: list[float]) -> dict[str, float] | None:
    if len(pairs) < 2:
        return None
    return {"least": min(pairs), "most": max(pairs), "standard_deviation": statistics.stdev(pairs)}


def _goodness(row: Row, value: float) -> float:
    assert row.bar is not None
    return value / row.bar if row.least else row.bar / max(value, 1e-9)


def _value(row: Row, value: float) -> str:
    if row.unit == "share":
        return f"{100 * value:.0f} %"
    return f"{value:.2f}" + (" x" if row.unit == "x" else "")


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
