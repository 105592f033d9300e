"""What is written down of a cell while it runs."""

import json
import time

from llavit.compare import cell


def test_a_run_that_is_killed_has_its_time_on_record(tmp_path, monkeypatch):
    monkeypatch.setattr(cell, "_WRITE_EVERY", 0.01)
    path = tmp_path / cell.CLOCK
    path.write_text(json.dumps({"seconds": 100.0, "peak": 1, "codes": ["before"]}))
    with cell._clock(path):
        deadline, seen = time.monotonic() + 60, {"seconds": 100.0}
        while seen["seconds"] <= 100 and time.monotonic() < deadline:
            seen = json.loads(path.read_text())  # what the next run would find, were this one killed now
    assert 100 < seen["seconds"] < 160 and seen["codes"][0] == "before"
    assert json.loads(path.read_text())["seconds"] >= seen["seconds"]
