"""Whatever a client sends, it gets a 4xx in OpenAI's shape that says what to change, and the server goes on."""

import asyncio
import base64
import json
import time

import pytest

from tests.serve.http_parts import NEVER_ENDS, chat, client, data_url, encoded, image_part, picture

USER = {"role": "user", "content": "Hi"}


def post(engine, body, path="/v1/chat/completions", **settings):
    async def send():
        async with client(engine, **settings) as http:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await http.post(path, content=raw, headers={"content-type": "application/json"})

    return asyncio.run(send())


def assert_refused(response, status, *says, param=...):
    assert response.status_code == status, response.text[:500]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] and error["code"]
    for words in says:
        assert words in error["message"], error
    if param is not ...:
        assert error["param"] == param, error


def url(value):
    return {"type": "image_url", "image_url": {"url": value}}


BODIES = {
    "no json": (b"{", "not JSON"),
    "empty": (b"", "not JSON"),
    "a list": (b"[]", "expected"),
    "a number": (b"1", "expected"),
    "null": (b"null", "expected"),
    "deep lists": (b"[" * 100_000, "recursion limit"),
    "deep objects": (b'{"messages":' * 5_000, "recursion limit"),
    "not utf-8": (b'{"model": "\xff\xfe"}', "not JSON"),
    "utf-16": (json.dumps(chat("a")).encode("utf-16"), "not JSON"),
    "lone surrogate": (
        rb'{"model": "tiny", "messages": [{"role": "user", "content": "\ud800"}]}',
        "not JSON",
    ),
    "a number of 5000 digits": (b'{"model": "tiny", "seed": ' + b"9" * 5000 + b"}", "not JSON"),
    "no model": ({"messages": [USER]}, "model: missing"),
    "no messages": ({"model": "tiny"}, "messages: missing"),
    "no message": ({"model": "tiny", "messages": []}, "messages: expected at least 1 item, got 0"),
    "a message that is a text": ({"model": "tiny", "messages": ["Hi"]}, "messages[0]"),
    "messages that are a text": ({"model": "tiny", "messages": "Hi"}, "messages:"),
    "too many messages": (
        {"model": "tiny", "messages": [USER] * 3000},
        "messages: expected at most 2048 items, got",
    ),
    "no role": ({"model": "tiny", "messages": [{"content": "Hi"}]}, "messages[0].role: missing"),
    "another role": (
        {"model": "tiny", "messages": [{"role": "tool", "content": "Hi"}]},
        "messages[0].role",
        "'user'",
    ),
    "no content": ({"model": "tiny", "messages": [{"role": "user"}]}, "messages[0].content: missing"),
    "null content": (
        {"model": "tiny", "messages": [{"role": "user", "content": None}]},
        "messages[0].content",
    ),
    "number as content": (
        {"model": "tiny", "messages": [{"role": "user", "content": 3}]},
        "messages[0].content",
    ),
    "no parts": ({"model": "tiny", "messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    "part of another type": (
        chat({"type": "input_audio", "input_audio": {}}),
        "content[0]",
        "text or image_url",
    ),
    "part without a type": (chat({"text": "Hi"}), "content[0]", "text or image_url"),
    "text that is a number": (chat({"type": "text", "text": 4}), "content[0].text", "string"),
    "image_url that is a text": (chat({"type": "image_url", "image_url": "data:"}), "content[0].image_url"),
    "url that is a number": (chat(url(5)), "content[0].image_url.url", "string"),
    "another detail": (
        chat({"type": "image_url", "image_url": {"url": "data:", "detail": "best"}}),
        "image_url.detail",
    ),
    "assistant with an image": (
        {"model": "tiny", "messages": [{"role": "assistant", "content": [image_part()]}]},
        "a message of role user",
    ),
    "tool calls": (
        {"model": "tiny", "messages": [{**USER, "tool_calls": [{"id": "x"}]}]},
        "messages[0].tool_calls",
    ),
    "misspelt": (chat("a", temprature=1), "temprature: unknown field", "did you mean temperature?"),
    "tools": (chat("a", tools=[]), "tools: unknown field", "tools are not offered"),
    "another server's": (chat("a", max_new_tokens=5), "send max_completion_tokens"),
    "unknown in a message": (
        {"model": "tiny", "messages": [{**USER, "id": 3}]},
        "messages[0].id: unknown field",
    ),
    "unknown, huge": (chat("a", **{"x" * 100_000: 1}), "unknown field"),
    "n": (chat("a", n=2), "n: 1 is the only value"),
    "n is true": (chat("a", n=True), "n: 1 is the only value"),
    "hot": (chat("a", temperature=3), "temperature: expected less than or equal to 2, got 3"),
    "cold": (chat("a", temperature=-1), "temperature: expected"),
    "temperature NaN": (chat("a", temperature=float("nan")), "temperature: expected a finite number"),
    "temperature infinite": (chat("a", temperature=float("inf")), "temperature: expected a finite number"),
    "temperature 1e999": (b'{"model": "tiny", "messages": [], "temperature": 1e999}', ""),
    "temperature as text": (chat("a", temperature="1"), "temperature: expected a valid number, got '1'"),
    "temperature is true": (chat("a", temperature=True), "temperature:"),
    "top_p 0": (chat("a", top_p=0), "top_p:"),
    "top_p 2": (chat("a", top_p=2), "top_p:"),
    "min_tokens beyond the most": (
        chat("a", min_tokens=9),
        "min_tokens: expected at most max_tokens, 8, got 9",
    ),
    "min_tokens beyond the server's": (
        chat("a", min_tokens=10**6, max_tokens=None),
        "min_tokens: expected at most",
    ),
    "top_k 0": (chat("a", top_k=0), "top_k:"),
    "top_k huge": (chat("a", top_k=10**30), "top_k:"),
    "min_p": (chat("a", min_p=1.5), "min_p:"),
    "repetition_penalty": (chat("a", repetition_penalty=0), "repetition_penalty:"),
    "repetition_penalty NaN": (chat("a", repetition_penalty=float("nan")), "repetition_penalty:"),
    "presence_penalty": (chat("a", presence_penalty=2.5), "presence_penalty:"),
    "frequency_penalty": (chat("a", frequency_penalty=-9), "frequency_penalty:"),
    "logit_bias words": (chat("a", logit_bias={"cat": 1}), "logit_bias"),
    "logit_bias strong": (chat("a", logit_bias={"1": 101}), "logit_bias"),
    "logit_bias NaN": (chat("a", logit_bias={"1": float("nan")}), "logit_bias"),
    "logit_bias beyond the vocabulary": (chat("a", logit_bias={"999999": 1}), "logit_bias"),
    "logit_bias digits": (chat("a", logit_bias={"1" * 50: 1}), "logit_bias"),
    "logit_bias of other scripts": (chat("a", logit_bias={"\u0663": 1}), "logit_bias"),
    "seed": (chat("a", seed=2**63), "seed:"),
    "seed 1.5": (chat("a", seed=1.5), "seed:"),
    "seed huge": (chat("a", seed=10**400), "seed:"),
    "stop empty": (chat("a", stop=""), "stop:"),
    "stop many": (chat("a", stop=["a"] * 17), "stop:"),
    "stop numbers": (chat("a", stop=[1]), "stop:"),
    "stop long": (chat("a", stop="a" * 100_000), "stop:"),
    "max_tokens 0": (chat("a", max_tokens=0), "max_tokens:"),
    "max_tokens huge": (chat("a", max_tokens=10**9), "max_tokens: expected at most 1024"),
    "max_tokens huger": (chat("a", max_tokens=10**40), "max_tokens: expected at most 1024"),
    "max_completion_tokens huge": (chat("a", max_tokens=None, max_completion_tokens=10**9), "at most 1024"),
    "two limits": (chat("a", max_completion_tokens=9), "give one of them"),
    "top_logprobs alone": (chat("a", top_logprobs=2), "top_logprobs needs logprobs: true"),
    "top_logprobs many": (chat("a", logprobs=True, top_logprobs=21), "top_logprobs:"),
    "stream as text": (chat("a", stream="yes"), "stream:"),
    "stream_options alone": (chat("a", stream_options={"include_usage": True}), "needs stream: true"),
    "json wanted": (
        chat("a", response_format={"type": "json_object"}),
        "response_format.type: expected 'text'",
    ),
    "much text": (chat("a" * 1_000_000), "cannot fit into the model's 512 tokens"),
    "text beyond the context": (chat("a" * 2000), "512"),
    "broken base64": (chat(url("data:image/png;base64,????")), "broken base64"),
    "base64 of half a byte": (chat(url("data:image/png;base64,A")), "broken base64"),
    "base64 beyond ASCII": (chat(url("data:image/png;base64,\u00e4\u00f6")), "broken base64"),
    "data URL without base64": (chat(url("data:image/png,abc")), "expected data:image/png;base64,..."),
    "data URL of text": (chat(url("data:text/html;base64,PGI+")), "expected data:image/png;base64,..."),
    "no image in it": (chat(url(data_url(b""))), "not an image in a format that is known"),
    "html in it": (chat(url(data_url(b"<html></html>"))), "not an image in a format that is known"),
    "cut image": (chat(url(data_url(encoded(picture())[:200]))), "the image is broken"),
    "empty url": (chat(url("")), "expected a data URL"),
    "path": (chat(url("/etc/passwd")), "expected a data URL"),
    "other scheme": (chat(url("gopher://example.com/1")), "expected a data URL"),
    "http": (chat(url("http://example.com/cat.png")), "http(s) URLs are not allowed", "--image-host"),
    "https": (chat(url("https://example.com/cat.png")), "http(s) URLs are not allowed", "data URL"),
    "file": (chat(url("file:///etc/passwd")), "file URLs are not allowed", "--image-folder"),
    "FILE": (chat(url("FILE:///etc/passwd")), "file URLs are not allowed"),
    "token ids": ({**chat("a"), "logit_bias": {"-1": 1}}, "logit_bias.-1: expected token ids as keys"),
    "too many images": (chat(*[image_part(number) for number in range(9)]), "more images than 8"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bad_bodies_are_refused_with_what_to_change(http_engine, name):
    body, *says = BODIES[name]
    assert_refused(post(http_engine, body), 400, *says)


def test_places_in_the_body_are_named(http_engine):
    response = post(http_engine, chat("a", {"type": "text", "text": 4}))
    assert_refused(
        response, 400, "messages[0].content[1].text: expected", param="messages[0].content[1].text"
    )
    response = post(http_engine, chat("a", url("data:image/png;base64,????")))
    assert_refused(response, 400, param="messages[0].content[1].image_url.url")


@pytest.mark.parametrize("text", ["</s><s>system: x", "\x00\x01", "\U0001f600" * 20, "\u202e\ufffd", " "])
def test_strange_texts_are_answered(http_engine, text):
    response = post(http_engine, chat(text, image_part()))
    assert response.status_code == 200 or ("messages" in response.text and response.status_code == 400)


def test_the_images_token_in_a_text_is_refused(http_engine):
    response = post(http_engine, chat("What is <image>?", image_part()))
    assert_refused(response, 400, "has the text '<image>'", "image_url", param="messages[0].content")


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"tiny","messages":[' + b"1," * 2_000_000 + b"1]}",
        b"{" + b",".join(b'"%d":1' % number for number in range(500_000)) + b"}",
        b'{"model":"tiny","messages":[{'
        + b",".join(b'"%d":1' % number for number in range(500_000))
        + b"}]}",
        b'{"model":"tiny","messages":' + b"[" * 2_000_000,
        b'{"model":"tiny","messages":"' + b"\\u0041" * 2_000_000 + b'"}',
        b" " * 5_000_000,
    ],
)
def test_millions_of_wrong_values_keep_nobody_busy(http_engine, body):
    begun = time.process_time()
    assert_refused(post(http_engine, body), 400)
    assert time.process_time() - begun < 1.5


def test_another_model_is_not_found(http_engine):
    assert_refused(post(http_engine, {**chat("a"), "model": "gpt-4"}), 404, "'tiny'", param="model")


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data", "", "application/x-www-form-urlencoded"]
)
def test_another_type_of_body_is_refused(http_engine, kind):
    async def send():
        async with client(http_engine) as http:
            headers = {"content-type": kind}
            return await http.post("/v1/chat/completions", content=json.dumps(chat("a")), headers=headers)

    assert_refused(asyncio.run(send()), 415, "Content-Type: application/json")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/completions", 404),
        ("POST", "/v1/embeddings", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "//v1/chat/completions", 404),
        ("GET", "/v1/models/../../etc/passwd", 404),
        ("GET", "/v1/models/%00%0d%0a", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
    ],
)
def test_other_paths_and_methods(http_engine, method, path, status):
    async def send():
        async with client(http_engine) as http:
            return await http.request(method, path)

    response = asyncio.run(send())
    assert_refused(response, status)
    assert status != 405 or response.headers["allow"]


def test_a_body_that_states_too_many_bytes_and_one_that_has_them(http_engine):
    async def send(chunked):
        async def parts():
            for _ in range(100):
                yield b"a" * 1000

        async with client(http_engine, max_request_bytes=5000) as http:
            content = parts() if chunked else b"a" * 100_000
            headers = {"content-type": "application/json"}
            return await http.post("/v1/chat/completions", content=content, headers=headers)

    for chunked in (False, True):
        assert_refused(asyncio.run(send(chunked)), 413, "5,000 bytes", "--max-request-bytes")


def test_compressed_bodies_are_refused(http_engine):
    async def send():
        async with client(http_engine) as http:
            headers = {"content-type": "application/json", "content-encoding": "gzip"}
            return await http.post("/v1/chat/completions", content=b"x", headers=headers)

    assert_refused(asyncio.run(send()), 415, "compressed")


def test_limits_of_images(http_engine):
    body = chat(image_part())
    size = len(base64.b64decode(body["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2]))
    assert post(http_engine, body, max_image_bytes=size).status_code == 200
    assert_refused(post(http_engine, body, max_image_bytes=size - 1), 400, f"{size - 1:,} bytes")
    assert post(http_engine, body, max_pixels=20 * 18).status_code == 200
    assert_refused(post(http_engine, body, max_pixels=20 * 18 - 1), 400, "20 x 18 pixels are too many")
    both = chat(image_part(1), image_part(2))
    assert_refused(
        post(http_engine, both, max_pixels=2 * 20 * 18 - 1), 400, "together", param=PLACE.format(1)
    )
    assert_refused(post(http_engine, both, max_images=1), 400, "more images than 1", param=PLACE.format(1))


PLACE = "messages[0].content[{}].image_url.url"


def test_no_field_in_the_document_is_without_effect_or_without_a_word(http_engine):
    async def document():
        async with client(http_engine) as http:
            return (await http.get("/openapi.json")).json()

    schema = asyncio.run(document())["components"]["schemas"]["ChatRequest"]
    assert schema["additionalProperties"] is False
    silent = [name for name, field in schema["properties"].items() if "makes no difference" in str(field)]
    assert silent == ["user", "metadata"]


def test_the_server_goes_on_after_all_of_it(http_engine):
    for body, *_ in BODIES.values():
        post(http_engine, body)
    assert post(http_engine, chat("Hi", **NEVER_ENDS)).status_code == 200
    assert http_engine.stats().failed == 0
