"""`llavit serve` in a process of its own: its options, its log, its end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest
from typer.testing import CliRunner

from llavit.cli import app
from tests.serve.http_parts import NEVER_ENDS, chat, data_url, encoded, image_part, picture, wait_until

LONG = {"max_tokens": 440, **NEVER_ENDS}


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("served")
    built = tiny.build()
    built.model.save_pretrained(path)
    built.processor.save_pretrained(path)
    return path


class Command:
    """`llavit serve` in a process of its own."""

    def __init__(self, folder, *options, **environment):
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from llavit.cli import app; app()",
                "serve",
                folder,
                "--port",
                "0",
                *options,
            ],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        try:
            wait_until(lambda: self.said("is served at") or self.process.poll() is not None, 180, "start")
            line = self.said("is served at")
            assert line, self.lines
        except BaseException:
            self.process.kill()  # nobody else would
            raise
        self.url = line.partition("is served at ")[2].split("/v1")[0]

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)

    def said(self, words):
        return next((line for line in list(self.lines) if words in line), None)


def test_sigterm_finishes_what_runs_then_exits_with_0(folder):
    command = Command(folder, "--compile", "never")
    try:
        lines = []
        first = threading.Event()

        def ask():
            with httpx.stream(
                "POST",
                f"{command.url}/v1/chat/completions",
                json={**chat("Talk", stream=True, **LONG), "model": folder.name},
                timeout=60,
            ) as answer:
                for line in answer.iter_lines():
                    lines.append(line)
                    first.set()

        thread = threading.Thread(target=ask)
        thread.start()
        assert first.wait(30)
        command.process.send_signal(signal.SIGTERM)
        with httpx.Client(base_url=command.url, timeout=10) as http:
            wait_until(lambda: http.get("/health").status_code == 503, what="503 of /health")
            assert http.get("/health").json()["error"]["code"] == "shutting_down"
            refused = http.post("/v1/chat/completions", json={**chat("a"), "model": folder.name})
            assert refused.status_code == 503 and refused.headers["retry-after"]
        thread.join(60)
        assert lines[-2] == "data: [DONE]"
        counts = [
            json.loads(line[6:])["choices"][0]["finish_reason"]
            for line in lines
            if line.startswith("data: {")
        ]
        assert counts[-1] == "length"
        assert command.process.wait(30) == 0
        command.reader.join(10)
        assert (
            command.said("SIGTERM: finishing 1 running and 0 waiting requests")
            and "stopped\n" in command.lines
        )
    finally:
        command.process.kill()


OPTIONS = """
    --log-level debug --compile never --model-name mine --max-batch 2 --max-queue 3 --max-length 300 --max-new-tokens 9
    --max-images 1 --max-pixels 400 --max-image-bytes 1500 --max-request-bytes 50000 --image-cache 0.5 --read-timeout 5
    --image-host example.com --image-host *.example.org --allowed-host box.example.com
"""


@pytest.fixture(scope="module")
def command(folder):
    command = Command(folder, *OPTIONS.split(), LLAVIT_API_KEY="sesame-opens")
    try:
        yield command
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(60) == 0
    finally:
        command.process.kill()


def post(command, body, key="sesame-opens"):
    return httpx.post(
        f"{command.url}/v1/chat/completions?api_key={key}",
        json={**body, "model": "mine"},
        headers={"authorization": f"Bearer {key}"},
        timeout=30,
    )


def test_every_option_reaches_the_server(command):
    def says(*words, status=400, **body):
        answer = post(command, body)
        assert answer.status_code == status and all(each in answer.text for each in words), answer.text

    def of(image):
        return {
            "type": "image_url",
            "image_url": {"url": image if isinstance(image, str) else data_url(image)},
        }

    assert post(command, chat("a", image_part())).json()["model"] == "mine"
    says("more images than 1", **chat(image_part(1), image_part(2)))
    says("expected at most 9", **chat("a", max_tokens=10))
    says("50,000 bytes", status=413, **chat("a" * 50_000))
    says("400 together", **chat(of(encoded(picture(0, 21, 20)))))
    says("more than 1,500 bytes", **chat(of(encoded(picture(0, 40, 10)) + b" " * 500)))
    says("max_length=300", **chat("a" * 400))
    says("these hosts are allowed: example.com, *.example.org", **chat(of("https://example.net/a.png")))
    metrics = httpx.get(f"{command.url}/metrics").text
    assert "llavit_engine_image_cache_limit 5e+08" in metrics


def test_the_command_answers_to_loopback_names_and_those_it_is_told_of(command):
    port = command.url.rpartition(":")[2]

    def status(name):
        return httpx.get(f"{command.url}/health", headers={"host": f"{name}:{port}"}).status_code

    assert [status(name) for name in ("127.0.0.1", "LOCALHOST", "[::1]", "box.example.com")] == [200] * 4
    assert [
        status(name) for name in ("rebound.example.net", "a.box.example.com", "127.0.0.1.nip.example")
    ] == [403] * 3


def test_neither_keys_nor_images_are_ever_printed(command):
    part = image_part()
    for key in ("sesame-opens", "sesame-wrong"):
        post(command, chat("Private words", part), key)
    httpx.get(f"{command.url}/evil%0a%1b[31mline")
    wait_until(lambda: command.said("/evil%0A%1B%5B31mline  404"), what="the log's line")
    text = "".join(command.lines)
    assert "POST  /v1/chat/completions  200" in text and "POST  /v1/chat/completions  401" in text
    assert "sesame" not in text and "Private" not in text and "base64" not in text
    assert part["image_url"]["url"][30:60] not in text and "\x1b[31m" not in text


def test_an_address_that_is_taken_is_said_before_the_model_loads(folder):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = CliRunner().invoke(app, ["serve", str(folder), "--port", port])
    assert done.exit_code == 2 and f"cannot listen at 127.0.0.1:{port}" in done.output
