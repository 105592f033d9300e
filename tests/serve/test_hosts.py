"""Names that a server answers to: a web page cannot use it through a name of its own."""

import asyncio
import threading

import httpx
import pytest

from llavit.serve.hosts import HostCheck, is_loopback, served_hosts
from llavit.serve.http import Settings, bind, serve, server
from tests.serve.http_parts import chat, client


def passes(header, hosts):
    """Whether a request with this Host header reaches what is behind the check."""
    reached = []

    async def app(*_):
        reached.append("app")

    async def refuse(message, *_):
        assert "--allowed-host" in message
        reached.append("refused")

    check = HostCheck(app, hosts, refuse)
    headers = [] if header is None else [(b"host", header.encode())]
    asyncio.run(check({"type": "http", "headers": headers}, None, None))
    (which,) = reached
    return which == "app"


LOCAL = served_hosts("127.0.0.1")


@pytest.mark.parametrize(
    "header", ["localhost", "localhost:8000", "LocalHost", "127.0.0.1:1", "[::1]", "[::1]:8000"]
)
def test_loopback_names_pass(header):
    assert passes(header, LOCAL)


@pytest.mark.parametrize(
    "header",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "evil-localhost",
        "127.0.0.1.evil.example",
        "0.0.0.0",
        "",
        None,
        "[::1",
        "evil.example@localhost",
        "localhost@evil.example",
        "localhost/evil",
        "localhost:x",
        "localhost?",
    ],
)
def test_other_names_do_not_pass(header):
    assert not passes(header, LOCAL)


def test_a_pattern_is_for_subdomains_and_a_star_for_all():
    assert passes("a.example.com:80", ("*.example.com",)) and passes("A.B.Example.com", ("*.EXAMPLE.com",))
    assert not passes("example.com", ("*.example.com",)) and not passes("badexample.com", ("*.example.com",))
    assert passes("anything", ("*",)) and passes("anything", ())


def test_only_at_a_loopback_address_are_names_chosen():
    assert served_hosts("0.0.0.0") == served_hosts("::") == ()
    assert served_hosts("0.0.0.0", ["a.example"]) == ("a.example",)
    assert set(served_hosts("localhost")) == set(LOCAL) and "127.0.0.2" in served_hosts("127.0.0.2")
    assert is_loopback("127.0.0.2") and not is_loopback("192.0.2.1")


@pytest.mark.parametrize("pattern", ["http://a.example", "a.example:80", "", "*.*", "a*", "a@b", " a", "*."])
def test_a_pattern_that_is_no_name_is_refused(pattern):
    with pytest.raises(ValueError, match="expected a name without port"):
        Settings(allowed_hosts=(pattern,))


def test_good_patterns_are_taken():
    good = ("*", "a.example", "*.a.example", "localhost", "127.0.0.1", "::1", "A.example")
    assert Settings(allowed_hosts=good).allowed_hosts == good


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/models", "/health", "/metrics", "/openapi.json"]
)
def test_a_rebound_name_gets_no_path_and_is_told_what_to_do(http_engine, path):
    async def ask():
        async with client(http_engine, allowed_hosts=LOCAL) as http:
            return await http.request(
                "POST" if "chat" in path else "GET", path, json=chat("a")
            )  # host: llavit

    answer = asyncio.run(ask())
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert error["code"] == "host_not_allowed" and error["type"] == "permission_error"
    assert "'llavit' is not served here, only localhost" in error["message"]


def test_a_server_at_a_loopback_address_checks_without_being_told(http_engine, monkeypatch):
    """`serve` by itself, not the command."""
    made = []

    class Server(server.DrainingServer):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    class Lent:
        """The engine of all tests, which `serve` must not close."""

        def __getattr__(self, name):
            return (lambda: None) if name == "close" else getattr(http_engine, name)

    monkeypatch.setattr(server, "DrainingServer", Server)
    taken, ready = bind("127.0.0.1", 0), threading.Event()
    thread = threading.Thread(target=serve, args=(Lent(), Settings(), taken), kwargs={"ready": ready.set})
    thread.start()
    try:
        assert ready.wait(20)
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/health"
        assert httpx.get(url).status_code == 200
        assert httpx.get(url, headers={"host": "evil.example"}).status_code == 403
    finally:
        made[0].should_exit = True
        thread.join(20)
    assert not thread.is_alive()
