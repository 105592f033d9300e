"""When the model fails, when nobody reads, when the queue takes too long: the server says so and goes on."""

import asyncio
import json
import socket
import threading

import httpx
import openai
import pytest

from llavit import Engine
from llavit.serve.http import Settings, completions
from llavit.serve.http.metrics import Metrics
from tests.serve.http_parts import NEVER_ENDS, chat, running, wait_until


@pytest.fixture(scope="module")
def alone(tiny):
    """An engine that answers one request at a time."""
    built = tiny.build()
    with Engine(built.model.eval(), built.processor, max_batch=1, max_queue=8) as engine:
        yield engine


class Fault:
    """A model that fails from its n-th forward pass on, as it would for lack of memory."""

    def __init__(self, model, passes):
        self.left = passes
        self.hook = model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, module, inputs):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of memory, say")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.hook.remove()


def test_a_model_that_fails_is_told_and_the_server_goes_on(alone):
    with (
        running(alone) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client,
    ):
        body = chat("Hi", **NEVER_ENDS)
        with (
            Fault(alone.model, 0),
            pytest.raises(openai.InternalServerError, match="RuntimeError; its log says more"),
        ):
            client.chat.completions.create(**body)
        with Fault(alone.model, 0), pytest.raises(openai.InternalServerError):
            client.chat.completions.create(**body, stream=True)
        with Fault(alone.model, 4):
            pieces = []
            with pytest.raises(openai.APIError, match="RuntimeError; its log says more"):
                for chunk in client.chat.completions.create(**body, stream=True):
                    pieces.append(chunk)
            assert pieces
        assert client.chat.completions.create(**body).choices[0].message.content
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_request_whose_time_is_over_before_its_turn_is_told_to_come_again(alone):
    with running(alone, timeout=60) as patient, running(alone, timeout=0.05) as hasty:
        long = chat("Talk", max_tokens=440, **NEVER_ENDS)
        thread = threading.Thread(
            target=httpx.post, args=(f"{patient.url}/v1/chat/completions",), kwargs={"json": long}
        )
        thread.start()
        wait_until(lambda: alone.stats().running == 1)
        late = httpx.post(f"{hasty.url}/v1/chat/completions", json=chat("Hi"))
        assert alone.stats().running == 1  # it was over before the first one was
        thread.join()
    assert late.status_code == 408 and late.json()["error"]["code"] == "timeout"
    assert late.headers["retry-after"] and "no token came within 0.05 s" in late.json()["error"]["message"]


def test_a_client_that_does_not_read_holds_up_nobody(alone):
    with running(alone) as server, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.port))
        request = httpx.Request(
            "POST",
            f"{server.url}/v1/chat/completions",
            json=chat("Talk", stream=True, logprobs=True, top_logprobs=20, max_tokens=440, **NEVER_ENDS),
        )
        head = "\r\n".join(
            ["POST /v1/chat/completions HTTP/1.1", *(f"{k}: {v}" for k, v in request.headers.items())]
        )
        deaf.sendall(f"{head}\r\n\r\n".encode() + request.read())
        wait_until(lambda: alone.stats().running == 1)
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=chat("Hi"), timeout=30)
        assert answer.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_who_does_not_read_has_so_long_from_the_end_of_the_answer_and_not_from_that_of_its_time(
    alone, monkeypatch, stream
):
    monkeypatch.setattr(completions, "UNREAD", 0.2)
    body = json.dumps(chat("Hi", stream=stream, **NEVER_ENDS)).encode()

    async def never(*message):
        await asyncio.Event().wait()

    async def ask():
        made = completions.Completions(alone, Settings(model_name="tiny", timeout=60), Metrics(alone))
        scope = {"type": "http"}
        try:
            response = await made.answer(body)
            await asyncio.wait_for(response(scope, receive=never, send=never), 20)
        finally:
            made.close()
        return scope

    before = alone.stats()
    assert asyncio.run(ask())["llavit.gone"]
    after = alone.stats()
    assert after.generated_tokens == before.generated_tokens + 8 and after.cancelled == before.cancelled
