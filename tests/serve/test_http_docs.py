"""docs/serving.md: its blocks run, its tables are complete and say the defaults."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from llavit.cli import app
from llavit.serve.http import Settings
from tests.serve.http_parts import encoded, picture, running

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/serving.md").read_text(encoding="utf-8")


OTHERS = {"not_found", "method_not_allowed"}
"""Codes that stand in a table of the source."""


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def section(title):
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title):
    lines = [
        line for line in section(title).splitlines() if line.startswith("| `") or re.match(r"\| \d", line)
    ]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(scope="module")
def server(http_engine):
    with running(http_engine, model_name="instruct") as server:
        yield server


@pytest.fixture
def cat(tmp_path, monkeypatch):
    (tmp_path / "cat.jpg").write_bytes(encoded(picture(), "JPEG"))
    monkeypatch.chdir(tmp_path)


def test_the_clients_blocks_run(server, cat, capsys):
    asks, streams, _ = blocks("python")
    names: dict = {}
    for block in (asks, streams):
        exec(compile(block.replace("http://127.0.0.1:8000", server.url), "serving.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "cached_tokens" in printed and names["chunk"].usage.completion_tokens > 0


def test_the_curl_block_runs(server, cat):
    if shutil.which("curl") is None:
        pytest.skip("the page asks with curl, which is not on the PATH")
    start, ask = blocks("bash")
    assert "llavit serve " in start and "serve" in get_command(app).commands
    script = "set -euo pipefail\n" + ask.replace("http://127.0.0.1:8000", server.url).replace(
        "curl ", "curl -sSf "
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert '"id":"instruct"' in done.stdout and '"finish_reason"' in done.stdout


def test_the_block_of_the_app_runs(tiny, tmp_path):
    built = tiny.build()
    built.model.save_pretrained(tmp_path)
    built.processor.save_pretrained(tmp_path)
    names: dict = {}
    exec(
        compile(blocks("python")[2].replace("runs/demo/instruct", str(tmp_path)), "serving.md", "exec"), names
    )
    assert names["app"].state.settings.max_images == 2


def test_every_option_is_in_the_table_with_its_default():
    told = {name.strip("`"): default for name, default, _ in rows("Options")}
    command = get_command(app).commands["serve"]
    options = {option.opts[0]: option for option in command.params if option.opts[0].startswith("--")}
    assert set(told) == set(options) - {"--help"}
    for name, option in options.items():
        default = getattr(option.default, "value", option.default)
        if default not in (None, "", ()) and not callable(default):
            assert told[name] == str(default), name


def test_without_the_extra_the_command_names_it(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("llavit.serve.http")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    done = CliRunner().invoke(app, ["serve", "model"])
    assert done.exit_code == 2 and "pip install 'llavit[serve]'" in done.output


def test_every_code_of_an_error_is_in_the_table():
    told = {code for _, codes, _ in rows("Errors") for code in re.findall(r"`(\w+)`", codes)}
    source = "\n".join(path.read_text() for path in (ROOT / "src/llavit/serve/http").glob("*.py"))
    assert all(f'"{code}"' in source for code in told)
    used = set(re.findall(r'code="(\w+)"', source)) | set(re.findall(r'"((?:image|invalid)_\w+)"', source))
    fields = {"image_url", "image_tokens", "invalid_request_error", *Settings.__dataclass_fields__}
    found = {code for code in used - fields if not code.startswith("image_cache_")} | {"timeout"}
    assert found == told - OTHERS


def test_every_metric_is_in_the_table(server):
    told = {name for names, _ in rows("Health and metrics") for name in re.findall(r"`(llavit_\w+)`", names)}
    text = httpx.get(f"{server.url}/metrics").text
    kinds = re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
    assert told == {name for name, _ in kinds if not name.endswith("_created")}


def test_the_soak_lost_nothing_and_its_memory_stayed_flat():
    result = json.loads((ROOT / "docs/serving/soak.json").read_text())
    assert result["requests"] >= 1000 and result["clients"] == 16
    assert result["lost"] == 0 and result["exit_status_after_sigterm"] == 0
    assert abs(result["growth"]["growth_percent"]) < 5
    assert result["engine"]["cancelled"] > 0 and result["engine"]["failed"] == 0
    assert len(result["kinds"]) == 6 and (ROOT / "docs/serving/soak.png").is_file()
