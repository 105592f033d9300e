import os
import pty
import re
import subprocess
import sys
import threading

import pytest
import torch

ANSI = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]|\r")


def on_a_terminal(*arguments, stdin=None):
    """Run Python with stderr on a pseudo-terminal and stdout on a pipe; give (stdout, what the terminal got)."""
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read():
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the other side is closed
                return
            if not piece:
                return
            shown.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        input=stdin,
        text=True,
        timeout=120,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "150"},
    )
    os.close(theirs)
    reader.join()
    os.close(ours)
    assert done.returncode == 0, shown.decode()
    return done.stdout, ANSI.sub(b"", bytes(shown)).decode()


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


def test_ask_shows_on_a_terminal_that_it_loads_what_and_how_much(folder, picture):
    answer, shown = on_a_terminal("-m", "llavit.cli", "ask", folder, picture, "What?", "--max-new-tokens", 3)
    assert "starting" in shown
    assert re.search(r"small \(\d+ MB\): loading weights +0:00:0\d", shown)
    assert "loading" not in answer and answer.endswith("\n")


def test_chat_shows_it_too(folder):
    _, shown = on_a_terminal("-m", "llavit.cli", "chat", folder, stdin="/quit\n")
    assert "small (" in shown and "loading weights" in shown


ENGINE = """
import sys
from llavit import Engine
with Engine.load(sys.argv[1], progress=sys.argv[2] == "shown", compile="never") as engine:
    print(len(engine.answer("What?", max_new_tokens=2).token_ids))
"""


@pytest.mark.parametrize("wanted", ["shown", "hidden"])
def test_the_engine_shows_it_if_it_is_asked_to(folder, wanted):
    _, shown = on_a_terminal("-c", ENGINE, folder, wanted)
    assert ("loading weights" in shown) == (wanted == "shown")
    assert wanted == "shown" or shown == ""


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
