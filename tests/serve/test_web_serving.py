"""`llavit web` as a process, and what the page's server gives to requests that no page makes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from llavit.cli import app
from llavit.serve.web.examples import Example
from tests.serve.parts import picture
from tests.serve.web_parts import engine_with_room

pytest.importorskip("gradio", reason="the web page needs the extra `web`")

from llavit.serve.web.page import Page


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("web") / "model"
    model, processor = tiny.build()
    letters = {processor.tokenizer.convert_tokens_to_ids(letter) for letter in "abcdefghijklmnopqrstuvwxyz"}
    others = [token for token in range(len(processor.tokenizer)) if token not in letters]
    model.generation_config.suppress_tokens = others  # a random model that writes a word
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder


def test_the_command_serves_on_this_machine_only_until_it_is_stopped(folder):
    command = [
        sys.executable,
        "-m",
        "llavit.cli",
        "web",
        str(folder),
        str(folder),
        "--port",
        "0",
        "--compile",
        "never",
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"}
    )
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                break
        else:
            raise AssertionError("".join(lines))
        page = httpx.get(found[0])
        assert page.status_code == 200 and page.text.count("/".join(folder.parts[-2:])) >= 2
        own = _own_address()
        if own is not None:  # a machine without a network has no other address to try
            with pytest.raises(OSError):
                socket.create_connection((own, int(found[1])), timeout=2)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "stopped" in process.stderr.read()
    finally:
        process.kill()


def _own_address() -> str | None:
    """An address of this machine other than 127.0.0.1; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith("127.") else address


def test_mistakes_are_named_before_anything_is_loaded(folder):
    def said(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["web", *arguments])
        assert result.exit_code == 2
        return result.output

    assert "no such model folder" in said("./not-there")
    assert "--name: expected it 2 times, once for each model, got 1" in said("a", "b", "--name", "x")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen at 127.0.0.1, port {port}" in said(str(folder), "--port", str(port))


def test_a_page_is_for_one_or_two_engines_with_a_name_each():
    with engine_with_room() as engine:
        with pytest.raises(ValueError, match="expected one or two, got 3"):
            Page([engine] * 3)
        with pytest.raises(ValueError, match="names: expected 1, one for each model, got 2"):
            Page([engine], names=["a", "b"])


def completed(page: Page, files: list) -> dict:
    """Ask as the page does, with files of a client's making; give the server's last word."""
    data = [{"text": "w5", "files": files}, 0, 1, 3, ""]
    call = {"data": data, "fn_index": 0, "session_hash": "somebody", "event_data": None, "trigger_id": None}
    httpx.post(f"{page.url}gradio_api/queue/join", json=call).raise_for_status()
    words = {"session_hash": "somebody"}
    with httpx.stream("GET", f"{page.url}gradio_api/queue/data", params=words, timeout=20) as events:
        for line in events.iter_lines():
            if line.startswith("data:") and '"process_completed"' in line:
                return json.loads(line[5:])
    raise AssertionError("no end")


def test_a_client_gets_neither_the_servers_files_nor_its_neighbours():
    asked = []

    class Neighbour(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_HEAD = do_GET

    neighbour = ThreadingHTTPServer(("127.0.0.1", 0), Neighbour)
    threading.Thread(target=neighbour.serve_forever, daemon=True).start()
    with engine_with_room() as engine, Page([engine]) as page:
        page.open(port=0)
        assert completed(page, [])["success"]
        url = f"http://127.0.0.1:{neighbour.server_port}/secret.png"
        for path in (__file__, "/etc/hostname", url):
            file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
            assert not completed(page, [file])["success"]
            assert httpx.get(f"{page.url}gradio_api/file={path}").status_code in (403, 404)
        assert engine.stats().requests == 1 and asked == []
    neighbour.shutdown()
    neighbour.server_close()


def test_a_rebound_name_does_not_get_the_page():
    with engine_with_room() as engine, Page([engine]) as page:
        port = page.open(port=0, allowed_hosts=["box.example.com"]).rstrip("/").rpartition(":")[2]

        def status(name: str, path: str = "") -> int:
            return httpx.get(f"{page.url}{path}", headers={"host": f"{name}:{port}"}).status_code

        assert [status(name) for name in ("127.0.0.1", "localhost", "box.example.com")] == [200] * 3
        assert [status("evil.example", path) for path in ("", "config", "gradio_api/queue/data")] == [403] * 3
        refused = httpx.get(page.url, headers={"host": "evil.example"})
        assert "'evil.example' is not served here" in refused.text and "--allowed-host" in refused.text
        with pytest.raises(ValueError, match="expected a name without port"):
            page.open(port=0, allowed_hosts=["http://a"])


def test_closing_the_page_deletes_uploads_and_the_pictures_that_were_shown():
    with engine_with_room() as engine, Page([engine], examples=[Example(picture(1), "w5?")]) as page:
        page.open(port=0)
        shown = list(Path(page._folder.name).iterdir())
        assert len(shown) == 1
        address = f"{page.url}gradio_api/file={shown[0]}"
        assert httpx.get(address).status_code == 200
        file = {"files": ("picture.png", shown[0].read_bytes())}
        (uploaded,) = map(Path, httpx.post(f"{page.url}gradio_api/upload", files=file).json())
        assert uploaded.read_bytes() == shown[0].read_bytes()
    assert not shown[0].exists() and not uploaded.exists()


DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "web.md").read_text(encoding="utf-8")


def test_the_python_of_the_docs_runs(folder, tiny, monkeypatch, capsys):
    look, script = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    names = {}
    look = look.replace("runs/demo/instruct", str(folder)).replace("range(10, 20)", "range(0, 2)")
    exec(look.replace("cat.jpg", str(tiny.data.parent / "0.png")), names)
    assert names["patches_hw"].shape == (2, 2) and "% of the attention" in capsys.readouterr().out
    names["engine"].close()

    def enter(question: str) -> str:
        url = capsys.readouterr().out.strip()
        assert httpx.get(url).status_code == 200
        return ""

    monkeypatch.setattr("builtins.input", enter)
    exec(script.replace("runs/demo/instruct", str(folder)).replace("port=7860", "port=0"), {})


def test_the_options_and_pictures_of_the_docs_exist():
    help_ = CliRunner().invoke(app, ["web", "--help"], env={"COLUMNS": "200"}).output
    options = set(re.findall(r"--[a-z][a-z-]+", TEXT))
    assert len(options) > 5 and all(option in help_ for option in options)
    pictures = {path.name for path in (DOCS / "web").glob("*.png")}
    assert pictures and pictures == set(re.findall(r"web/([a-z-]+\.png)", TEXT))


UPLOADS = """
import os, sys
from gradio.utils import get_upload_folder
from llavit.serve.web import page
class Engine: name, model = "a", None
for own in ("", "", sys.argv[1]):  # each server a process of its own
    if (child := os.fork()) == 0:
        if own:
            os.environ["GRADIO_TEMP_DIR"] = own
        try:
            page.Page([Engine()])  # fails later: it is no engine
        except AttributeError:
            pass
        print(get_upload_folder())
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
"""


def test_each_server_keeps_uploads_in_a_folder_of_its_own(tmp_path):
    """gradio's own is shared, and a server deletes what it is done with, another's pictures of the same name too."""
    plain = {key: value for key, value in os.environ.items() if key != "GRADIO_TEMP_DIR"}
    command = [sys.executable, "-c", UPLOADS, tmp_path]
    done = subprocess.run(command, env=plain, capture_output=True, text=True, check=True)
    one, two, given = done.stdout.split()
    assert one != two and "llavit-uploads-" in one and not Path(one).exists()  # gone with its process
    assert given == str(tmp_path)
