"""Downloading an image from a host that is allowed, and from no address that is not public.

The check is made on the address that is then connected to, so a name that resolves to another address a moment later
gains nothing. Redirects are not followed, proxies of the environment not used.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import httpcore

from llavit.serve.http.errors import ApiError, sayable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]

DEFAULT_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SITE_LOCAL = ipaddress.ip_network("fec0::/10")


class Target(NamedTuple):
    """What a URL names."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The host, with the port where it is not the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


class NotPublic(httpcore.ConnectError):
    """A host has an address that no image may come from."""


def is_public(address: Address) -> bool:
    """Say whether an address is one of the open internet, also where it hides one of IPv4 (mapped, 6to4, NAT64).

    Example:
        >>> [is_public(ipaddress.ip_address(each)) for each in ("93.184.216.34", "127.0.0.1", "::ffff:10.0.0.1")]
        [True, False, False]
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        hidden = (address.sixtofour, *(address.teredo or ()))
        if address in _SITE_LOCAL or any(inner is not None and not is_public(inner) for inner in hidden):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, as DNS and the machine's own tables give them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only: resolves once, checks every address, connects to what it checked.

    Args:
        allows: says of an address whether it may be connected to.
        resolve: gives the addresses of a host.
    """

    def __init__(self, allows: Callable[[Address], bool] = is_public, resolve: Resolve = resolve):
        self._allows = allows
        self._resolve = resolve
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of a host.

        Raises:
            NotPublic: any of its addresses is not allowed.
            httpcore.ConnectError: it has none, or does not answer.
        """
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"its name cannot be resolved: {error}") from error
        if not addresses:
            raise httpcore.ConnectError("its name has no address")
        for address in addresses:
            if not self._allows(ipaddress.ip_address(address.partition("%")[0])):
                raise NotPublic(
                    "it has an address that is private, loopback, link-local or otherwise not public"
                )
        return await self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._inner.sleep(seconds)


class Fetcher:
    """Downloads images from allowed hosts.

    Args:
        hosts: see `Settings.image_hosts`.
        max_bytes: greatest size.
        timeout: seconds for all of a download.
        backend: what makes connections.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        max_bytes: int,
        timeout: float,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ):
        self.hosts = tuple(host.lower() for host in hosts)
        self.max_bytes = max_bytes
        self.timeout = timeout
        self.backend = backend or CheckedBackend()

    def allows(self, url: str) -> bool:
        """Say whether the list of hosts has that of a URL, with its port.

        Example:
            >>> Fetcher(["*.example.com"], 10, 1.0).allows("https://a.example.com/x.png")
            True
            >>> Fetcher(["example.com"], 10, 1.0).allows("https://example.com:8443/x.png")
            False
        """
        target = parse(url)
        if target is None:
            return False
        for allowed in self.hosts:
            name, colon, number = allowed.rpartition(":")
            if not (colon and number.isdigit() and (":" not in name or name.endswith("]"))):
                name, number = allowed, ""
            name = name.strip("[]")
            if target.port != (int(number) if number else DEFAULT_PORTS[target.scheme]):
                continue
            if target.host == name or (name.startswith("*.") and target.host.endswith(name[1:])):
                return True
        return False

    async def get(self, url: str, param: str) -> bytes:
        """Download an image.

        Args:
            url: with http or https.
            param: where in the request it stands.

        Raises:
            ApiError: 400; the message says why it was refused or could not be had.
        """
        target = parse(url)
        if target is None or not self.allows(url):
            raise ApiError(400, f"{param}: {self._why_not()}", param=param, code="image_url_not_allowed")
        try:
            async with asyncio.timeout(self.timeout):
                return await self._download(target, param)
        except NotPublic as error:
            raise ApiError(
                400, f"{param}: the host is refused: {error}", param=param, code="image_url_not_allowed"
            ) from None
        except TimeoutError:
            message = f"the image did not come within {self.timeout:g} s"
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            ssl.SSLError,
        ) as error:
            message = f"the image could not be downloaded: {sayable(str(error) or type(error).__name__, 200)}"
        except (httpcore.UnsupportedProtocol, UnicodeError, ValueError) as error:
            message = f"the URL cannot be used: {sayable(str(error), 200)}"
        raise ApiError(400, f"{param}: {message}", param=param, code="image_download_failed")

    @functools.cached_property
    def _certificates(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    async def _download(self, target: Target, param: str) -> bytes:
        limit = self.timeout
        timeouts = {"timeout": {"connect": limit, "read": limit, "write": limit, "pool": limit}}
        url = httpcore.URL(
            scheme=target.scheme, host=target.host, port=target.port, target=target.path
        )  # of the parts that were checked: a second parser might read another host
        headers = [("Host", target.authority), ("Accept", "image/*"), ("User-Agent", "llavit")]
        async with (
            httpcore.AsyncConnectionPool(
                ssl_context=self._certificates, network_backend=self.backend
            ) as pool,
            pool.stream("GET", url, headers=headers, extensions=timeouts) as response,
        ):
            if response.status != 200:
                moved = (
                    "; redirects are not followed: give the address itself"
                    if 300 <= response.status < 400
                    else ""
                )
                raise ApiError(
                    400,
                    f"{param}: the host answered with status {response.status}{moved}",
                    param=param,
                    code="image_download_failed",
                )
            data = bytearray()
            async for part in response.aiter_stream():
                data += part
                if len(data) > self.max_bytes:
                    message = f"the image has more than {self.max_bytes:,} bytes; make it smaller (--max-image-bytes)"
                    raise ApiError(400, f"{param}: {message}", param=param, code="image_too_large")
            return bytes(data)

    def _why_not(self) -> str:
        if not self.hosts:
            return (
                "http(s) URLs are not allowed; send the image as a data URL (data:image/png;base64,...), or have the "
                "server started with --image-host"
            )
        return f"only images from these hosts are allowed: {', '.join(self.hosts)}"


def parse(url: str) -> Target | None:
    """Take an http(s) URL apart; None if it cannot be used, or has a user's name in it.

    Example:
        >>> parse("https://Example.com/a b.png?x=1#part")
        Target(scheme='https', host='example.com', port=443, path='/a%20b.png?x=1')
        >>> parse("https://user@example.com/") is None
        True
    """
    try:
        split = urlsplit(url)
        port = split.port or DEFAULT_PORTS[split.scheme]
        host = (split.hostname or "").rstrip(".").encode("ascii").decode()
    except (ValueError, KeyError):
        return None
    if not host or split.username is not None or split.password is not None:
        return None
    path = (split.path or "/") + (f"?{split.query}" if split.query else "")
    return Target(split.scheme, host, port, quote(path, safe="/%?&=+:;,@!$'()*~[]"))
