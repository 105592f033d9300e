"""A short soak of a real server, by the command that makes docs/serving/soak.json."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONS = ("--requests", "400", "--image-cache", "0.002")


@pytest.mark.slow
def test_a_short_soak_loses_nothing(tiny, tmp_path):
    built = tiny.build()
    built.model.save_pretrained(tmp_path / "model")
    built.processor.save_pretrained(tmp_path / "model")
    out = tmp_path / "soak.json"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/soak.py", tmp_path / "model", out, *OPTIONS],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["lost"] == 0 and result["ended_as_they_should"] == 400, result["what_went_wrong"]
    assert result["exit_status_after_sigterm"] == 0 and not result["lines_at_level_error"]
    assert result["engine"]["failed"] == 0 and result["engine"]["image_cache_evictions"] > 0
    assert abs(result["growth"]["growth_percent"]) < 10
    assert out.with_suffix(".png").stat().st_size > 10_000
