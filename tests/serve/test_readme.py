"""What the room's README shows, runs."""

import re
from pathlib import Path

from tests.serve.parts import picture

README = Path(__file__).parents[2] / "src/llavit/serve/README.md"


def test_the_blocks_run_in_turn(tiny, tmp_path, monkeypatch, capsys):
    for part in tiny.build():
        part.save_pretrained(tmp_path / "model")
    picture(1).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert re.search(r"[1-9]\d* of \d+ tokens were there already", printed)
    assert len(names["answers"]) == 2 and len(names["likely"].logprobs[0].top) == 3
    assert not names["engine"]._loop.thread.is_alive()
