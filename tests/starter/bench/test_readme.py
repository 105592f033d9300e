"""README of the benchmark: its Python runs, and its table says what the tasks say."""

import os
import re
from pathlib import Path

import pytest

pytest.importorskip("resvg_py", reason="of the extra `starter`, which a core install lacks")

import llavit.starter.bench
from llavit.starter.bench.registry import TASKS

README = (Path(llavit.starter.bench.__file__).parent / "README.md").read_text(encoding="utf-8")
ROWS = {row[0].strip("` "): row for row in (r.split("|")[1:-1] for r in re.findall(r"^\| `.*", README, re.M))}


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```", README, re.M | re.S))
def test_each_python_block_runs_and_prints(block: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()
    assert set(os.listdir(tmp_path)) <= {"bench"}


def test_the_table_has_every_task_with_its_chance():
    assert set(ROWS) == set(TASKS)
    for name, row in ROWS.items():
        stated = float(row[3].strip(" %"))
        # the table gives whole percent, and tenths where there would be none
        assert stated == pytest.approx(100 * TASKS[name].chance, abs=0.5 if stated >= 1 else 0.05), name


def test_the_table_states_groups():
    for name, row in ROWS.items():
        word = {"pair": "pairs", "circular": "circular", None: ""}[TASKS[name].group]
        assert word in row[2] and (word or not re.search("pairs|circular", row[2])), name
