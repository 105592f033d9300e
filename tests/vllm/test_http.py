"""vLLM's OpenAI-style server, through the official client."""

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import openai
import pytest

from tests.vllm.engines import ENVIRONMENT, OPTIONS
from tests.vllm.parts import Answer, Case, difference, picture
from tests.vllm.test_answers import SAME

STARTS_WITHIN = 400  # seconds, on two busy cores

CHATS = {
    "one image": [0, "What is it?"],
    "images inside the text": ["Compare ", 1, " with ", 2, " please."],
    "text only": ["Who are you?"],
}
"""A user's message: texts, and seeds of pictures."""


@pytest.fixture(scope="module")
def client(folders, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in OPTIONS.items()
        if not isinstance(value, bool | dict)
    ]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folders["llavit"])]
    command += [*options, "--enforce-eager", "--port", str(port), "--served-model-name", "tiny"]
    command += ["--limit-mm-per-prompt", '{"image": 2}', "--host", "127.0.0.1"]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT}
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, log)
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            yield client
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def _wait(url, server, log):
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"no server within {STARTS_WITHIN} s:\n{log.read_text()[-4000:]}")


def _data_url(seed):
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.mark.parametrize("chat", CHATS)
def test_a_chat_is_answered_as_by_transformers(client, references, chat):
    """The prompt too is the one that our processor renders: images stay where they are in the text."""
    parts, plain = [], []
    for part in CHATS[chat]:
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
            plain.append(parts[-1])
        else:
            parts.append({"type": "image_url", "image_url": {"url": _data_url(part)}})
            plain.append({"type": "image"})
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": parts}],
        temperature=0,
        max_tokens=8,
        logprobs=True,
        extra_body={"return_tokens_as_token_ids": True, "ignore_eos": True},
    )
    tokens = answer.choices[0].logprobs.content
    generated = [int(token.token.removeprefix("token_id:")) for token in tokens]
    reference = references["llavit"]
    text = reference.processor.render([{"role": "user", "content": plain}], add_generation_prompt=True)
    pictures = [part for part in CHATS[chat] if isinstance(part, int)]
    theirs = reference.answer(Case(text, pictures), generated)
    assert answer.usage.prompt_tokens == len(theirs.prompt) and len(generated) == 8
    mine = Answer(theirs.prompt, [], generated, [token.logprob for token in tokens])
    assert difference(mine, theirs) < SAME
    assert generated == theirs.generated


def test_too_many_images_are_the_clients_error(client):
    content = [{"type": "image_url", "image_url": {"url": _data_url(seed)}} for seed in range(3)]
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}])
