import os
import pty
import re
import subprocess
import sys
import threading

import pytest
import torch

from llavit.compiling import why_not
from llavit.progress import now_and_then
from tests.evaluate.small_bench import save_bench

ANSI = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\r")


def on_a_terminal(*arguments, stdin=None, until=None):
    """Run Python with stderr on a pseudo-terminal and stdout on a pipe; give (stdout, what the terminal got).

    With `until`, it is told to stop as soon as the terminal shows that text.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "150"},
    )
    shown = bytearray()
    waiting = [until] if until else []

    def read():
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the other side is closed
                return
            if not piece:
                return
            shown.extend(piece)
            if waiting and waiting[0].encode() in shown:
                waiting.clear()
                process.terminate()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        out, _ = process.communicate(stdin, timeout=400)
    finally:
        process.kill()
        os.close(theirs)
        reader.join()
        os.close(ours)
    assert process.returncode == 0, shown.decode()
    return out, ANSI.sub(b"", bytes(shown)).decode()


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown") / "small"
    model, processor = tiny.build(dtype=torch.float32)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def picture(tiny):
    return tiny.data.parent / "0.png"


def test_a_count_is_said_every_some_seconds_and_not_at_once():
    lines, now = [], [0]
    count = now_and_then(lines.append, "reading", every=1000, clock=lambda: now[0])
    for done in range(1, 2501):
        now[0] += 1
        count(done, 2500)
    assert lines == ["reading: 1,000 of 2,500", "reading: 2,000 of 2,500"]


def test_ask_shows_on_a_terminal_that_it_loads_what_and_how_much(folder, picture):
    answer, shown = on_a_terminal("-m", "llavit.cli", "ask", folder, picture, "What?", "--max-new-tokens", 3)
    assert "starting" in shown
    assert re.search(r"small \(\d+ MB\): loading weights +0:\d\d:\d\d", shown)
    assert "loading" not in answer and answer.endswith("\n")


@pytest.mark.slow  # it loads as `ask` does
def test_chat_shows_it_too(folder):
    _, shown = on_a_terminal("-m", "llavit.cli", "chat", folder, stdin="/quit\n")
    assert "small (" in shown and "loading weights" in shown


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "web"])
def test_the_servers_show_it_until_they_are_ready(folder, command):
    pytest.importorskip("fastapi" if command == "serve" else "gradio", reason=f"of the extra `{command}`")
    _, shown = on_a_terminal("-m", "llavit.cli", command, folder, "--port", 0, until="Ctrl-C")
    assert shown.index("starting") < shown.index("loading weights") < shown.index("Ctrl-C")
    if why_not() is None:
        assert shown.index("loading weights") < shown.index("compiling") < shown.index("Ctrl-C")


@pytest.mark.slow
def test_eval_shows_it_before_the_tasks(folder, tmp_path):
    bench = save_bench(tmp_path / "bench")
    _, shown = on_a_terminal(
        "-m",
        "llavit.cli",
        "eval",
        folder,
        "--bench",
        bench,
        "--baselines",
        "none",
        "-o",
        tmp_path / "out.json",
    )
    assert shown.index("starting") < shown.index("loading weights") < shown.index("short@small-1")


ENGINE = """
import sys
from llavit import Engine
for progress in (True, False):
    with Engine.load(sys.argv[1], progress=progress, compile="never") as engine:
        print(len(engine.answer("What?", max_new_tokens=2).token_ids))
    print("loaded", file=sys.stderr)
"""


def test_the_engine_shows_it_if_it_is_asked_to(folder):
    _, shown = on_a_terminal("-c", ENGINE, folder)
    first, then, _ = shown.split("loaded\n")
    assert "loading weights" in first and then == ""


NESTED = """
import threading, time
from llavit.progress import status
with status("outer one") as say:
    time.sleep(0.3)
    say("outer two")
    time.sleep(0.3)
    def other():
        with status("compiling [not markup]"):
            print("an answer", flush=True)
            time.sleep(0.3)
    thread = threading.Thread(target=other); thread.start(); thread.join()
    time.sleep(0.3)
"""


def test_a_status_within_another_takes_its_line_and_gives_it_back():
    printed, shown = on_a_terminal("-c", NESTED)
    words = re.findall(r"outer one|outer two|compiling \[not markup\]", shown)
    changes = [word for word, before in zip(words, [None, *words], strict=False) if word != before]
    assert changes == ["outer one", "outer two", "compiling [not markup]", "outer two"]
    assert printed == "an answer\n"


def test_nothing_is_shown_where_there_is_no_terminal():
    done = subprocess.run([sys.executable, "-c", NESTED], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("an answer\n", "")
