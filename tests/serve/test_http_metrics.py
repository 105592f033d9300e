"""Metrics, health, keys and the document."""

import asyncio
import re

import httpx
import pytest
from fastapi import FastAPI

from llavit.serve.http import Settings, create_app
from tests.serve.http_parts import chat, client, image_part


def run(engine, conversation, **settings):
    async def inside():
        async with client(engine, **settings) as http:
            return await conversation(http)

    return asyncio.run(inside())


def value(text, name, labels=""):
    found = re.search(rf"^{re.escape(name + labels)} ([\d.e+-]+)$", text, re.MULTILINE)
    assert found, name
    return float(found.group(1))


def test_metrics_count_what_happened(http_engine):
    async def conversation(http):
        before = (await http.get("/metrics")).text
        for number in range(2):
            await http.post("/v1/chat/completions", json=chat(image_part(500), "What?", max_tokens=4))
            assert number >= 0
        await http.post("/v1/chat/completions", json=chat("a", n=2))
        await http.get("/wp-login.php")
        answer = await http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        return before, answer.text

    before, after = run(http_engine, conversation)

    def grown(name, labels=""):
        return value(after, name, labels) - (value(before, name, labels) if name + labels in before else 0)

    chat_path = 'path="/v1/chat/completions"'
    assert value(after, "llavit_http_requests_total", f'{{{chat_path},status="200"}}') == 2
    assert value(after, "llavit_http_requests_total", f'{{{chat_path},status="400"}}') == 1
    assert value(after, "llavit_http_requests_total", '{path="other",status="404"}') == 1
    assert value(after, "llavit_time_to_first_token_seconds_count") == 2
    assert value(after, "llavit_http_request_seconds_count", f"{{{chat_path}}}") == 3
    assert grown("llavit_engine_requests_total") == 2
    assert grown("llavit_engine_generated_tokens_total") >= 2
    assert (
        grown("llavit_engine_image_cache_hits_total") == 1 == grown("llavit_engine_image_cache_misses_total")
    )
    assert value(after, "llavit_engine_image_cache_bytes") > 0
    assert value(after, "llavit_engine_running") == 0 == value(after, "llavit_engine_waiting")


def test_a_key_opens_v1_and_nothing_else_opens_it(http_engine):
    async def conversation(http):
        for headers in (
            {},
            {"authorization": "Bearer"},
            {"authorization": "Bearer wrong"},
            {"authorization": "sesame"},
            {"authorization": "Basic sesame"},
            {"authorization": b"Bearer \xff\xfe"},
            {"x-api-key": "sesame"},
        ):
            for method, path in (
                ("GET", "/v1/models"),
                ("POST", "/v1/chat/completions"),
                ("GET", "/v1/nothing"),
            ):
                answer = await http.request(method, path, headers=headers, json=chat("a"))
                assert answer.status_code == 401, (headers, path)
                assert answer.json()["error"]["code"] == "invalid_api_key"
        for key in ("Bearer sesame", "bearer  sesame "):
            assert (await http.get("/v1/models", headers={"authorization": key})).status_code == 200
        for path in ("/health", "/metrics", "/openapi.json"):
            assert (await http.get(path)).status_code == 200

    run(http_engine, conversation, api_key="sesame")


@pytest.mark.parametrize("mounted", [True, False], ids=["mounted", "root_path"])
def test_below_another_path_it_answers_and_asks_for_the_key_all_the_same(http_engine, mounted):
    app = create_app(http_engine, Settings(model_name="tiny", api_key="sesame", max_request_bytes=10_000))
    if mounted:
        outer = FastAPI()
        outer.mount("/llm", app)
        transport = httpx.ASGITransport(outer)
    else:
        transport = httpx.ASGITransport(app, root_path="/llm")  # as uvicorn's option sets it
    body, key = chat("a", max_tokens=1), {"authorization": "Bearer sesame"}

    async def conversation():
        async with httpx.AsyncClient(transport=transport, base_url="http://llavit/llm") as http:
            answers = [await http.get("/v1/models"), await http.post("/v1/chat/completions", json=body)]
            answers += [
                await http.post("/v1/chat/completions", json=each, headers=key)
                for each in (body, chat("a" * 10_000))
            ]
            counted = (await http.get("/metrics")).text
        return [answer.status_code for answer in answers], counted

    statuses, counted = asyncio.run(conversation())
    assert statuses == [401, 401, 200, 413]
    assert value(counted, "llavit_http_requests_total", '{path="/v1/models",status="401"}') == 1


def test_health_says_when_the_server_drains(http_engine):
    async def conversation(http):
        assert (await http.get("/health")).json() == {"status": "ok"}
        http._transport.app.state.draining = True
        answers = await http.get("/health"), await http.post("/v1/chat/completions", json=chat("a"))
        for answer in answers:
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "shutting_down"
            assert int(answer.headers["retry-after"]) > 0

    run(http_engine, conversation)


@pytest.mark.parametrize("key", ["", "sesame"])
def test_the_document_lists_every_answer(http_engine, key):
    async def conversation(http):
        return (await http.get("/openapi.json")).json()

    document = run(http_engine, conversation, api_key=key)
    responses = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(responses) == {"200", "400", "401", "403", "404", "408", "413", "415", "429", "503"}
    assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"]["$ref"].endswith("/ChatRequest")
    assert ("securitySchemes" in document["components"]) is bool(key)
    assert "422" not in str(document["paths"])
