"""The command: `python -m benchmarks.speed [ROW ...]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.speed import groups, report
from benchmarks.speed.groups import Bench, Settings
from benchmarks.speed.material import ROOT, Parts, starter_parts
from benchmarks.speed.rows import ROWS, Row, chosen
from benchmarks.speed.serving import serving

GROUPS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "instruct": partial(groups.training, stage="instruct", size_index=0),
    "pretrain": partial(groups.training, stage="pretrain", size_index=0),
    "answer": partial(groups.answering, size_index=0),
    "scaling": groups.scaling,
    "two_processes": groups.two_processes,
    "serving": serving,
    "instruct_256": partial(groups.training, stage="instruct", size_index=1),
    "pretrain_256": partial(groups.training, stage="pretrain", size_index=1),
    "answer_256": partial(groups.answering, size_index=1),
}
"""What is measured together, in the order in which it is."""

PICTURES = 224
SESSION = "session.json"


def main(arguments: list[str] | None = None) -> None:
    """Measure the rows that are asked for."""
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__)
    parser.add_argument("rows", nargs="*", help="names of rows; all of them without any")
    parser.add_argument("--list", action="store_true", help="list the rows and end")
    parser.add_argument("--pairs", type=int, default=5, help="timings of each side (default 5)")
    parser.add_argument("--batch", type=int, default=16, help="samples of a training step (default 16)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of a process that computes alone"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change llavit's recipe"
    )
    parser.add_argument(
        "--again", action="store_true", help="measure again what an interrupted run has finished"
    )
    parser.add_argument(
        "--peer-compile", type=float, default=300, metavar="SECONDS", help="for a step of the compiled peer"
    )
    parser.add_argument("--tokens", type=int, default=64, help="of an answer of the servers (default 64)")
    parser.add_argument("--eager", action="store_true", help="the servers compile nothing: they start sooner")
    parser.add_argument(
        "--vllm-option", action="append", default=[], metavar="OPTION", help="one more of vLLM's server"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=report.RESULTS,
        help="folder of the results: another one for another machine, which leaves docs/speed.md as it is",
    )
    parser.add_argument("--doc", type=Path, help="document between whose marks the table goes")
    parser.add_argument("--report", action="store_true", help="only write table and picture anew")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        rows = chosen(options.rows)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for row in rows:
            console.print(f"{row.name:28} {row.what}", highlight=False)
        return
    if not options.report:
        settings = Settings(
            folder=ROOT / "runs" / "speed",
            pairs=options.pairs,
            batch=options.batch,
            threads=options.threads,
            overrides=tuple(options.set),
            compile_peer=options.peer_compile,
            nano=os.environ.get("NANOVLM") or None,
            vllm=os.environ.get("VLLM") or None,
            vllm_options=tuple(options.vllm_option),
            tokens=options.tokens,
            eager=options.eager,
        )
        console.print("weights and pictures", highlight=False)
        parts = starter_parts(settings.folder / "data", PICTURES)
        run(rows, settings, parts, console, options.results, again=options.again)
    here = options.results == report.RESULTS
    doc = options.doc or (report.DOC if here else None)
    report.document(options.results, doc)
    if here:
        report.picture()
    written = "latest.json, latest-details.json, latest.md" + (", latest.png" if here else "")
    console.print(f"{options.results}: {written}" + (f"; {doc}" if doc else ""), highlight=False)


def run(
    rows: list[Row],
    settings: Settings,
    parts: Parts,
    console: Console,
    results: Path = report.RESULTS,
    again: bool = False,
) -> None:
    """Measure the groups of some rows, one after the other, and write each down as it ends.

    A run that was interrupted goes on with the groups that it lacked, if code and settings are the same.
    """
    made = made_with(settings)
    session = settings.folder / SESSION
    key = json.dumps([made["revision"], made["settings"], [row.name for row in rows]])
    found = json.loads(session.read_text()) if session.exists() and not again else {}
    done: list[str] = found["done"] if found.get("key") == key else []
    for group, measure in GROUPS.items():
        named = {row.name: row for row in rows if row.group == group}
        if not named:
            continue
        # What is measured together is written down together.
        mine = [named.get(row.name, row) for row in ROWS if row.group == group]
        if group in done:
            console.print(f"{group}: finished before the run was interrupted", highlight=False)
            continue
        began = time.monotonic()
        with console.status(group) as status:

            def tell(text: str, group: str = group, status: Any = status) -> None:
                status.update(f"{group}: {text}")
                if not console.is_terminal:
                    console.print(f"{group}: {text}", highlight=False)

            raw = measure(Bench(settings, parts, tell, _earlier(results, made)))
        entries = report.record(mine, raw, {**made, "seconds": time.monotonic() - began}, results)
        for entry in entries:
            held = {True: "[green]holds", False: "[red]does not hold", None: ""}[entry["holds"]]
            console.print(f"  {entry['name']:28} {entry['value']:8.3g}   bar {entry['bar']}   {held}")
        done = [*done, group]
        settings.folder.mkdir(parents=True, exist_ok=True)
        session.write_text(json.dumps({"key": key, "done": done}))
    session.unlink(missing_ok=True)


def _earlier(results: Path, made: dict[str, Any]) -> dict[str, Any]:
    """Give the raw timings of groups that were measured with the same versions on the same processor."""
    keys = ("torch", "transformers")

    def same(other: dict[str, Any]) -> bool:
        versions = [other["environment"][key] == made["environment"][key] for key in keys]
        return all(versions) and other["processor"] == made["processor"]

    groups = report.read(results)[1]["groups"]
    return {name: group["raw"] for name, group in groups.items() if same(group["made"])}


def made_with(settings: Settings) -> dict[str, Any]:
    """Say what figures depend on: versions, machine, settings, and how busy the machine was."""
    from llavit.evaluate.environment import environment

    facts = environment()
    names = (
        line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")
    )
    return {
        "environment": facts,
        "revision": facts["git revision"],
        "processor": next(names, platform.processor()),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": os.getloadavg(),
        "settings": {
            **asdict(settings),
            "folder": None,
            "nano": bool(settings.nano),
            "vllm": bool(settings.vllm),
        },
        "command": "make bench",
        "order": "one timing of each side in turn, A B C A B C; a pair is one round; values are medians of pairs",
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    main()
