"""Work dealt to processes: a worker that fails says why, whenever it fails."""

import pytest

from llavit.starter.processes import lines_of_processes


def test_a_worker_that_ends_before_it_reads_its_order_says_why():
    order = {"numbers": list(range(100_000))}  # more than a pipe holds, so not written in advance
    with pytest.raises(RuntimeError, match=r"a worker of the test failed:(?s:.*)no such thing here"):
        list(lines_of_processes("raise SystemExit('no such thing here')", [order], "the test"))


def test_what_a_worker_says_may_be_no_text():
    code = "import sys; sys.stderr.buffer.write(b'caf\\xe9 is closed'); sys.exit(1)"
    with pytest.raises(RuntimeError, match=r"caf. is closed"):
        list(lines_of_processes(code, [{}], "the test"))


def test_lines_come_from_every_worker():
    code = "import json, sys; print(json.load(sys.stdin)['number'])"
    lines = list(lines_of_processes(code, [{"number": 1}, {"number": 2}], "the test"))
    assert sorted(lines) == ["1\n", "2\n"]
