"""Image URLs: what is refused stays refused after DNS, and what is allowed is downloaded within bounds."""

import asyncio
import http.server
import ipaddress
import threading
import time

import httpx
import pytest

from llavit.serve.http import Settings, create_app
from llavit.serve.http.completions import PREPARING
from llavit.serve.http.errors import ApiError
from llavit.serve.http.fetch import CheckedBackend, Fetcher, is_public
from llavit.serve.http.images import ImageLoader
from tests.serve.http_parts import chat, encoded, image_part, picture, running

PNG = encoded(picture())


class Host(http.server.BaseHTTPRequestHandler):
    """A host of images, of many kinds."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_GET(self):
        type(self).asked.append(f"{self.headers['host']}{self.path}")
        getattr(self, "do" + self.path.partition("?")[0].replace("/", "_").partition(".")[0])()

    def do_cat(self):
        self._send(200, PNG)

    def do_missing(self):
        self._send(404, b"")

    def do_moved(self):
        self._send(302, b"", Location="/cat.png")

    def do_large(self):
        self._send(200, b"a" * 100_000)

    def do_endless(self):
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"a" * 10_000)
        except OSError:
            self.close_connection = True

    def do_slow(self):
        self.server.stopping.wait(10)
        self.close_connection = True

    def do_garbage(self):
        self.wfile.write(b"\x00garbage\r\n\r\n")
        self.close_connection = True

    def _send(self, status, body, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def host():
    Host.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.stopping = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.stopping.set()
    server.shutdown()
    thread.join()
    server.server_close()


def only_this_machine(address):
    """Stands for `is_public` where the host of a test is to be reached; everything else is the real thing."""
    return address == ipaddress.ip_address("127.0.0.1")


def fetcher(host, *names, backend=None, **limits):
    port = host.server_address[1]
    return Fetcher(
        [f"{name}:{port}" for name in names or ("localhost",)],
        limits.get("max_bytes", 50_000),
        limits.get("timeout", 5.0),
        backend or CheckedBackend(only_this_machine),
    )


def get(fetcher, url):
    return asyncio.run(fetcher.get(url, "url"))


def refusal(fetcher, url):
    with pytest.raises(ApiError) as refused:
        get(fetcher, url)
    assert refused.value.status == 400 and refused.value.param == "url"
    return refused.value.message


def at(host, path, name="localhost"):
    return f"http://{name}:{host.server_address[1]}{path}"


def test_an_image_of_an_allowed_host_is_downloaded(host):
    assert get(fetcher(host), at(host, "/cat.png")) == PNG
    assert Host.asked[-1] == f"localhost:{host.server_address[1]}/cat.png"
    assert get(fetcher(host), at(host, "/cat.png?a=1&b=%20#part", "LOCALHOST")) == PNG
    assert Host.asked[-1].endswith("/cat.png?a=1&b=%20")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/missing.png", "status 404"),
        ("/moved.png", "redirects are not followed"),
        ("/large.png", "more than 50,000 bytes"),
        ("/endless.png", "more than 50,000 bytes"),
        ("/garbage.png", "could not be downloaded"),
    ],
)
def test_what_an_allowed_host_does_wrong_is_told(host, path, says):
    asked = len(Host.asked)
    assert says in refusal(fetcher(host), at(host, path))
    assert len(Host.asked) == asked + 1


def test_https_where_there_is_none_is_told(host):
    url = at(host, "/cat.png").replace("http:", "https:")
    assert "could not be downloaded" in refusal(fetcher(host), url)


def test_a_download_that_takes_too_long_is_given_up(host):
    assert "within 0.2 s" in refusal(fetcher(host, timeout=0.2), at(host, "/slow.png"))


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0"])
def test_this_machine_stays_refused_although_the_list_has_it(host, name):
    listed = fetcher(host, name, backend=CheckedBackend())
    assert "not public" in refusal(listed, at(host, "/cat.png?refused", name))
    assert not any("refused" in asked for asked in Host.asked)  # requests of earlier tests may still come in


@pytest.mark.parametrize("name", ["2130706433", "0x7f.1", "127.1", "017700000001"])
def test_other_ways_to_write_this_machine_are_refused_too(host, name):
    refusal(fetcher(host, name, backend=CheckedBackend()), at(host, "/cat.png?refused", name))
    assert not any("refused" in asked for asked in Host.asked)


ADDRESSES_INSIDE = """
    127.0.0.1 127.8.9.1 10.0.0.1 172.16.3.4 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255
    192.0.2.1 198.18.0.1 240.0.0.1 ::1 :: fe80::1 fc00::1 fd00:ec2::254 ff02::1 fec0::1 ::ffff:127.0.0.1
    ::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 2002:7f00:1:: 2001:db8::1 2002:a9fe:a9fe::1
"""


@pytest.mark.parametrize("address", ADDRESSES_INSIDE.split())
def test_addresses_that_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses(address):
    assert is_public(ipaddress.ip_address(address))


def test_a_name_is_resolved_once_and_what_was_checked_is_connected_to(host):
    """DNS rebinding: the second answer would be an address that is refused; it is never asked for."""
    answers = [["127.0.0.1"], ["127.0.0.2"]]

    async def resolve(name, port):
        return answers.pop(0)

    backend = CheckedBackend(only_this_machine, resolve)
    assert get(fetcher(host, "images.test", backend=backend), at(host, "/cat.png", "images.test")) == PNG
    assert len(answers) == 1
    assert "not public" in refusal(
        fetcher(host, "images.test", backend=backend), at(host, "/cat.png", "images.test")
    )


def test_one_bad_address_among_good_ones_is_enough_to_refuse(host):
    async def resolve(name, port):
        return ["127.0.0.1", "10.0.0.1"]

    listed = fetcher(host, "images.test", backend=CheckedBackend(only_this_machine, resolve))
    assert "not public" in refusal(listed, at(host, "/cat.png", "images.test"))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x.png",
        "http://images.test.evil.com/x.png",
        "http://evilimages.test/x.png",
        "http://images.test@evil.com/x.png",
        "http://user:pass@images.test/x.png",
        "http://images.test:22/x.png",
        "http://images.test:99999/x.png",
        "http://images.test:port/x.png",
        "http://images.test\\@evil.com/x.png",
        "http://evil.com#@images.test/",
        "http://im\tages.evil/x.png",
        "http:///x.png",
        "http://",
        "http://[::1",
        "https://\u0131mages.test/x.png",
        "http:images.test/x.png",
    ],
)
def test_urls_that_only_look_like_the_list(url):
    assert "only images from these hosts are allowed: images.test" in refusal(
        Fetcher(["images.test"], 10, 1.0), url
    )


@pytest.mark.parametrize(
    ("listed", "url", "allowed"),
    [
        ("a.test", "https://a.test/x", True),
        ("A.test", "https://a.TEST./x", True),
        ("a.test", "https://b.a.test/x", False),
        ("*.a.test", "https://b.a.test/x", True),
        ("*.a.test", "https://a.test/x", False),
        ("*.a.test", "https://ba.test/x", False),
        ("a.test:8080", "http://a.test:8080/x", True),
        ("a.test:8080", "http://a.test/x", False),
        ("[::1]:80", "http://[::1]/x", True),
        ("::1", "http://[::1]/x", True),
    ],
)
def test_lists_of_hosts(listed, url, allowed):
    assert Fetcher([listed], 10, 1.0).allows(url) is allowed


def test_a_name_that_nobody_knows_and_a_port_where_nobody_is(host):
    async def nowhere(name, port):
        raise OSError("Name or service not known")

    listed = fetcher(host, "images.test", backend=CheckedBackend(only_this_machine, nowhere))
    assert "cannot be resolved" in refusal(listed, at(host, "/cat.png", "images.test"))
    closed = Fetcher(["localhost:9"], 10, 2.0, CheckedBackend(only_this_machine))
    assert "could not be downloaded" in refusal(closed, "http://localhost:9/cat.png")


def test_the_server_downloads_what_it_has_been_allowed(host, http_engine):
    port = host.server_address[1]
    settings = Settings(model_name="tiny", image_hosts=(f"localhost:{port}",))
    body = chat({"type": "image_url", "image_url": {"url": at(host, "/cat.png")}}, "What?")

    async def ask(images):
        transport = httpx.ASGITransport(create_app(http_engine, settings, images=images))
        async with httpx.AsyncClient(transport=transport, base_url="http://llavit") as client:
            return await client.post("/v1/chat/completions", json=body)

    answer = asyncio.run(ask(ImageLoader(settings, fetcher(host))))
    assert answer.status_code == 200 and answer.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 4
    refused = asyncio.run(ask(None))  # as it is by default: localhost is in the list, and yet
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "image_url_not_allowed"


class Slow(ImageLoader):
    """Downloads that take until the gate opens; counts the requests whose images have been read and not decoded."""

    def __init__(self):
        super().__init__(Settings())
        self.gate, self.held, self.most = asyncio.Event(), [], 0

    async def read(self, url, param):
        if url.startswith("data:"):
            return await super().read(url, param)
        self.held.append(url)
        self.most = max(self.most, len(self.held))
        await self.gate.wait()
        return PNG

    def decode(self, files, pictures):
        time.sleep(0.01)
        decoded = super().decode(files, pictures)
        if any(data is PNG for data, _ in files):
            self.held.pop()
        return decoded


def test_who_waits_too_long_for_downloads_of_others_is_told_to_come_again(http_engine):
    async def ask():
        images, settings = Slow(), Settings(model_name="tiny", read_timeout=0.2)
        transport = httpx.ASGITransport(create_app(http_engine, settings, images=images))
        async with httpx.AsyncClient(transport=transport, base_url="http://llavit") as client:
            part = {"type": "image_url", "image_url": {"url": "http://images.test/cat.png"}}

            def post():
                return client.post("/v1/chat/completions", json=chat(part, "What?", max_tokens=1), timeout=20)

            downloads = [asyncio.ensure_future(post()) for _ in range(PREPARING)]
            while len(images.held) < PREPARING:
                await asyncio.sleep(0.001)
            refused = await post()
            images.gate.set()
            return refused, {each.status_code for each in [*await asyncio.gather(*downloads), await post()]}

    refused, others = asyncio.run(ask())
    assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
    assert "images of other requests are still being downloaded" in refused.json()["error"]["message"]
    assert others == {200}


def test_so_many_requests_hold_images_from_elsewhere_and_those_without_do_not_wait_for_them(http_engine):
    async def ask():
        images = Slow()
        transport = httpx.ASGITransport(create_app(http_engine, Settings(model_name="tiny"), images=images))
        async with httpx.AsyncClient(transport=transport, base_url="http://llavit") as client:

            def post(*content):
                return client.post("/v1/chat/completions", json=chat(*content, max_tokens=1), timeout=20)

            part = {"type": "image_url", "image_url": {"url": "http://images.test/cat.png"}}
            downloads = [asyncio.ensure_future(post(part, "What?")) for _ in range(10)]
            while len(images.held) < PREPARING:
                await asyncio.sleep(0.001)
            others = [await asyncio.wait_for(post(*content), 10) for content in ([image_part()], ["Hi"])]
            assert not any(each.done() for each in downloads)
            images.gate.set()
            return images.most, {each.status_code for each in [*others, *await asyncio.gather(*downloads)]}

    assert asyncio.run(ask()) == (PREPARING, {200})


def test_file_urls_stay_in_their_folder(http_engine, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "cat one.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "large.png").write_bytes(PNG + b" " * 10_000)

    with running(http_engine, image_folder=folder, max_image_bytes=len(PNG)) as server:

        def status(url):
            body = chat({"type": "image_url", "image_url": {"url": url}})
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=20)
            return answer.status_code

        assert status(f"file://{folder}/cat%20one.png") == 200
        assert status(f"file://localhost{folder}/cat%20one.png") == 200
        for bad in (
            f"file://{tmp_path}/secret.png",
            f"file://{folder}/../secret.png",
            f"file://{folder}/%2e%2e/secret.png",
            f"file://{folder}/link.png",
            f"file://{folder}/large.png",
            f"file://{folder}/none.png",
            f"file://{folder}/",
            f"file://evil.com{folder}/cat%20one.png",
            f"file://{folder}/cat%00.png",
            "file:///dev/zero",
            "file:",
        ):
            assert status(bad) == 400, bad
