"""Over real sockets: clients that go away, are slow, endless, too many or no HTTP at all."""

import json
import select
import socket
import threading
import time

import httpx
import pytest

from llavit import Engine
from tests.serve.http_parts import (
    NEVER_ENDS,
    chat,
    image_part,
    running,
    wait_until,
)

LONG = {"max_tokens": 440, **NEVER_ENDS}


def connect(server) -> socket.socket:
    taken = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return taken


def head(length: int, path: str = "/v1/chat/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: llavit", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def read_all(taken: socket.socket) -> bytes:
    got = b""
    while part := taken.recv(65536):
        got += part
    return got


def read_answer(taken: socket.socket) -> bytes:
    """Read until an answer's body has come, or the connection ends."""
    got = b""
    while part := taken.recv(65536):
        got += part
        lines, blank, body = got.partition(b"\r\n\r\n")
        length = [line for line in lines.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if blank and length and len(body) >= int(length[0].partition(b":")[2]):
            break
    return got


def error_of(answer: bytes) -> dict:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


@pytest.fixture(scope="module")
def server(http_engine):
    with running(http_engine, read_timeout=0.7, max_request_bytes=100_000) as server:
        yield server


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_its_generation(server, http_engine, stream):
    before = http_engine.stats()
    body = json.dumps(chat("Talk", image_part(), stream=stream, **LONG)).encode()
    with connect(server) as taken:
        taken.sendall(head(len(body)) + body)
        if stream:
            assert b"200 OK" in taken.recv(4096)
        wait_until(lambda: http_engine.stats().running == 1, what="generation")
    wait_until(lambda: http_engine.stats().cancelled == before.cancelled + 1, what="its end")
    after = http_engine.stats()
    assert after.running == 0
    assert after.generated_tokens - before.generated_tokens < LONG["max_tokens"]
    assert 'status="499"' in httpx.get(f"{server.url}/metrics").text or stream


def test_a_client_that_goes_away_while_it_sends_leaves_nothing_behind(server, http_engine):
    before = http_engine.stats().requests
    with connect(server) as taken:
        taken.sendall(head(5000) + b'{"model"')
    time.sleep(0.1)
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert http_engine.stats().requests == before


def test_headers_that_do_not_come_are_not_waited_for(server):
    with connect(server) as taken:
        begun = time.monotonic()
        assert read_all(taken) == b""  # nothing was sent: the connection is closed
        assert 0.4 < time.monotonic() - begun < 5
    with connect(server) as taken:
        taken.sendall(b"GET /health HTTP/1.1\r\nHost: llavit\r\nX-Slow: ")
        answer = read_all(taken)
    assert answer.startswith(b"HTTP/1.1 408") and "headers did not come" in error_of(answer)["message"]


def test_a_body_that_drips_is_not_waited_for(server):
    with connect(server) as taken:
        taken.sendall(head(5000))
        done = threading.Event()

        def drip():
            while not done.wait(0.05):
                try:
                    taken.sendall(b" ")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        begun = time.monotonic()
        try:
            answer = read_answer(taken)
        finally:
            done.set()
            thread.join()
        assert time.monotonic() - begun < 5
    assert answer.startswith(b"HTTP/1.1 408") and "did not come within 0.7 s" in error_of(answer)["message"]


def test_an_endless_body_is_cut_and_the_client_reads_why(server):
    with connect(server) as taken:
        taken.sendall(head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        sent, block = 0, b"2000\r\n" + b" " * 0x2000 + b"\r\n"
        taken.settimeout(0.02)
        answer = b""
        while not answer:
            try:
                sent += taken.send(block)
                answer = taken.recv(65536)
            except TimeoutError:
                assert sent < 200_000_000
        taken.settimeout(20)
        while b"100,000 bytes" not in answer and (part := taken.recv(65536)):
            answer += part
        assert answer.startswith(b"HTTP/1.1 413") and b"100,000 bytes" in answer


def test_an_oversize_upload_gets_its_answer(server):
    answer = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=b" " * 3_000_000,
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_a_400_or_a_closed_door(server, garbage):
    with connect(server) as taken:
        try:
            taken.sendall(garbage)
            answer = read_answer(taken)
        except ConnectionError:
            answer = b""
    assert not answer or answer.startswith(b"HTTP/1.1 4"), answer[:200]
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_full_queue_says_when_to_come_again(tiny):
    built = tiny.build()
    with (
        Engine(built.model.eval(), built.processor, max_batch=1, max_queue=1) as engine,
        running(engine) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
    ):
        statuses: list[httpx.Response] = []

        def ask():
            statuses.append(http.post("/v1/chat/completions", json=chat("Talk", **LONG)))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        busy = [each for each in statuses if each.status_code == 429]
        assert busy and {each.status_code for each in statuses} == {200, 429}
        assert all(int(each.headers["retry-after"]) >= 1 for each in busy)
        assert {each.json()["error"]["type"] for each in busy} == {"rate_limit_error"}


def test_so_many_requests_at_once_and_no_more(http_engine):
    with running(http_engine, max_requests=1) as server, connect(server) as taken:
        taken.sendall(head(5000))  # one is being received
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=chat("a"))
        while answer.status_code != 429:  # the server had not seen the first one yet
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=chat("a"))
        assert answer.headers["retry-after"] == "1"
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_large_bodies_together_have_a_bound(http_engine):
    large = 1_000_000
    with running(http_engine, max_request_bytes=large, max_requests=50, read_timeout=20) as server:
        held = []
        try:
            for _ in range(9):
                taken = connect(server)
                held.append(taken)
                taken.sendall(head(large) + b" " * (large - 1))
            answered, _, _ = select.select(held, [], [], 20)  # whichever of them came last
            assert [read_answer(taken)[:12] for taken in answered] == [b"HTTP/1.1 429"]
        finally:
            for taken in held:
                taken.close()
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=chat("a"))
        while answer.status_code == 429:  # until the server has seen that the clients went away
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=chat("a"))
        assert answer.status_code == 200


def test_an_answer_that_takes_too_long_is_cut_and_says_so(http_engine):
    for timeout in (0.1, 0.2, 0.4, 0.8):  # until a token comes within it, on however busy a machine
        with running(http_engine, timeout=timeout) as server:
            answer, stream = (
                httpx.post(f"{server.url}/v1/chat/completions", json=chat("Talk", **LONG, **more), timeout=30)
                for more in ({}, {"stream": True})
            )
        assert {answer.status_code, stream.status_code} <= {200, 408}
        if answer.status_code == stream.status_code == 200:
            break
    last = json.loads(stream.text.split("\n\n")[-3].removeprefix("data: "))
    assert last["timed_out"] and last["choices"][0]["finish_reason"] == "length"
    body = answer.json()
    assert body["timed_out"] and body["choices"][0]["finish_reason"] == "length"
    assert 0 < body["usage"]["completion_tokens"] < LONG["max_tokens"]
