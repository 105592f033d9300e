"""Which names a server answers to: against DNS rebinding.

A web page may have its own name resolve to 127.0.0.1 and so ask a server on the reader's machine, as if it were of the
page's origin: no origin check of the browser sees that. What gives it away is the header Host, which still has the
page's name. So a server that listens at a loopback address answers to loopback names only, and to those it is told of.

The check is not starlette's TrustedHostMiddleware: before starlette 1.9 that knows neither IPv6 addresses nor capitals,
and its answer does not say what to do.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:  # it is of the extras, whose absence others report
    from starlette.types import ASGIApp, Receive, Scope, Send

    Refuse = Callable[[str, Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Say whether what listens at a name or address can be reached from this machine only.

    Raises:
        OSError: there is no such name.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return ipaddress.ip_address(str(found[0][4][0]).partition("%")[0]).is_loopback


def served_hosts(host: str, allowed: Sequence[str] = ()) -> tuple[str, ...]:
    """Choose the names that a server answers to.

    Args:
        host: name or address that it listens at.
        allowed: further names: "example.com", "*.example.com" for its subdomains, or "*" for any.

    Returns:
        at a loopback address its names and those allowed; elsewhere those allowed, none of which means any name.

    Example:
        >>> served_hosts("127.0.0.1", ["box.example.com"])
        ('localhost', '127.0.0.1', '::1', 'box.example.com')
        >>> served_hosts("0.0.0.0")
        ()
    """
    if not is_loopback(host):
        return tuple(allowed)
    return tuple(dict.fromkeys((*LOOPBACK, host, *allowed)))


def check_host_pattern(pattern: str) -> None:
    """Refuse what is no name of a host.

    Raises:
        ValueError: says what is expected.

    Example:
        >>> check_host_pattern("*.example.com")
        >>> check_host_pattern("https://example.com")
        Traceback (most recent call last):
        ...
        ValueError: allowed host 'https://example.com': expected a name without port: example.com, *.example.com or *
    """
    name = pattern.removeprefix("*.")
    address = name.count(":") > 1  # of IPv6
    if pattern != "*" and (name_in_header(f"[{name}]" if address else name) != name.lower() or "*" in name):
        raise ValueError(
            f"allowed host {pattern!r}: expected a name without port: example.com, *.example.com or *"
        )


def name_in_header(header: str) -> str | None:
    """Read the name in a Host header, in small letters and without port; None for one that has none.

    Example:
        >>> name_in_header("LocalHost:8000"), name_in_header("[::1]:8000"), name_in_header("a@b")
        ('localhost', '::1', None)
    """
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port  # raises where it is no number
    except ValueError:
        return None
    odd = parts.netloc != header or "@" in header or any(map(str.isspace, header))
    return None if odd else parts.hostname


class HostCheck:
    """Lets requests pass whose Host header has a name that is served.

    Args:
        app: what comes behind.
        hosts: of `served_hosts`; all pass if there are none.
        refuse: answers the others with status 403 and a message.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], refuse: Refuse):
        self.app = app
        self.hosts = tuple(host.lower() for host in hosts)
        self.refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with status 403, or pass on."""
        if scope["type"] not in ("http", "websocket") or not self.hosts or "*" in self.hosts:
            return await self.app(scope, receive, send)
        header = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        name = name_in_header(header)
        if name is not None and any(_fits(name, pattern) for pattern in self.hosts):
            return await self.app(scope, receive, send)
        shown = header if name is None else name
        message = (
            f"the host {shown[:60]!r} is not served here, only {', '.join(self.hosts)}: "
            "use one of these in the URL, or start the server with --allowed-host NAME"
        )
        await self.refuse(message, scope, receive, send)


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or (pattern.startswith("*.") and name.endswith(pattern[1:]))
