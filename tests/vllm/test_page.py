"""docs/serving-vllm.md: its Python block runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.vllm.engines import ENVIRONMENT
from tests.vllm.parts import picture

PAGE = Path(__file__).parents[2] / "docs/serving-vllm.md"


def test_the_example_runs(folders, tmp_path):
    (block,) = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    block = block.replace('"runs/demo/instruct"', f'"{folders["llavit"]}", enforce_eager=True')
    (tmp_path / "page.py").write_text(block, encoding="utf-8")
    picture(0).save(tmp_path / "cat.jpg")
    variables = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip()
