"""What a server allows: one value for each option of `llavit serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llavit.serve.hosts import check_host_pattern


@dataclass(frozen=True)
class Settings:
    """Limits and permissions of a server. The defaults are safe on a machine that others can reach.

    Attributes:
        model_name: what clients call the model; the last part of its path if empty.
        api_key: clients must send it as `Authorization: Bearer KEY`; no key is asked for if empty. Never printed.
        max_request_bytes: greatest size of a request's body.
        max_image_bytes: greatest size of one image, as a file.
        max_pixels: most pixels of all images of one request together; what stands against decompression bombs.
        max_images: most images of one request.
        max_new_tokens: most tokens of one answer, and how many there may be if a request does not say.
        max_requests: chat requests at the same time, those that are still being received among them; one more gets
            status 429. The queue of the engine is shorter than that.
        timeout: seconds from a request's arrival in the engine to the end of its answer, which is then cut.
        read_timeout: seconds that a client has to send its headers, and again its body; also for a download of an
            image, and for waiting while others download theirs.
        image_hosts: hosts that http(s) image URLs may name: "example.com", "example.com:8443", or "*.example.com"
            for its subdomains. None: such URLs are refused.
        image_folder: `file://` image URLs may name files in this folder. None: such URLs are refused.
        allowed_hosts: names that requests may have in their header Host: "example.com", "*.example.com" for its
            subdomains, "*" for any. None: any; but `serve` at a loopback address always adds the loopback names, and
            then no others pass.

    Raises:
        ValueError: a limit that is not above 0, a host that is a URL, or a folder that is not there.

    Example:
        >>> Settings(max_images=2).max_images
        2
        >>> Settings(timeout=0)
        Traceback (most recent call last):
        ...
        ValueError: timeout=0: expected a number above 0
    """

    model_name: str = ""
    api_key: str = ""
    max_request_bytes: int = 32 << 20
    max_image_bytes: int = 16 << 20
    max_pixels: int = 33_000_000
    max_images: int = 8
    max_new_tokens: int = 1024
    max_requests: int = 96
    timeout: float = 300.0
    read_timeout: float = 30.0
    image_hosts: tuple[str, ...] = ()
    image_folder: Path | None = None
    allowed_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (
            "max_request_bytes",
            "max_image_bytes",
            "max_pixels",
            "max_images",
            "max_new_tokens",
            "max_requests",
            "timeout",
            "read_timeout",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a number above 0")
        for host in self.image_hosts:
            if not host or "/" in host or "@" in host or host.strip() != host:
                raise ValueError(
                    f"image host {host!r}: expected a host as in example.com, example.com:8443 or *.example.com"
                )
        for host in self.allowed_hosts:
            check_host_pattern(host)
        if self.image_folder is not None and not self.image_folder.is_dir():
            raise ValueError(f"image folder {self.image_folder}: no such folder")
        if any(ord(letter) < 33 or ord(letter) > 126 for letter in self.api_key):
            raise ValueError(
                "the API key has a character that no HTTP header can carry: expected printable ASCII"
            )

    def __repr__(self) -> str:
        return f"Settings(model_name={self.model_name!r}, api_key={'***' if self.api_key else ''!r}, ...)"
