"""Which image URLs a request may have, and decoding what they hold, within bounds."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from llavit.model.images import to_rgb
from llavit.serve.formats import FORMATS, UNKNOWN
from llavit.serve.http.errors import ApiError, sayable
from llavit.serve.http.fetch import Fetcher
from llavit.serve.http.settings import Settings
from llavit.serve.pictures import Picture, Pictures, file_key

MOST_OBLONG = 100
"""Of an image's sides. Processors that scale the shorter side make of 1 x 1,000,000 pixels more than fits anywhere."""

_DATA_URL = re.compile(r"data:image/[\w.+-]{1,40}(;[\w.=+-]{1,80})*;base64,", re.ASCII)


class ImageLoader:
    """Gets the images of requests by a server's settings.

    Args:
        settings: limits, allowed hosts, folder of images.
        fetcher: downloads; made from the settings if not given.

    Example:
        loader = ImageLoader(Settings())
        urls = [("data:image/png;base64,...", "messages[0].content[0].image_url.url")]
        pictures = loader.decode(await loader.read_all(urls), engine.pictures)
    """

    def __init__(self, settings: Settings, fetcher: Fetcher | None = None):
        self.settings = settings
        self.fetcher = fetcher or Fetcher(
            settings.image_hosts, settings.max_image_bytes, settings.read_timeout
        )

    async def read_all(self, urls: Sequence[tuple[str, str]]) -> list[tuple[bytes, str]]:
        """Return the bytes of a request's images, each with its place; all are read at the same time.

        Args:
            urls: of each, and where in the request it stands; one that comes again is read once.

        Raises:
            ApiError: see `read`; of several, that of the first image.
        """
        first = dict(reversed(urls))  # where each URL stands first
        reading = {url: asyncio.ensure_future(self.read(url, param)) for url, param in first.items()}
        try:
            return [(await reading[url], param) for url, param in urls]
        finally:
            for task in reading.values():
                task.cancel()
            await asyncio.gather(*reading.values(), return_exceptions=True)

    async def read(self, url: str, param: str) -> bytes:
        """Return the bytes of an image file.

        Args:
            url: as the request names it.
            param: where in the request it stands, for errors.

        Raises:
            ApiError: 400, the URL is of a kind that is not allowed, or holds no bytes within the limits.
        """
        scheme = url[:12].partition(":")[0].lower()
        if scheme == "data":
            return self._data(url, param)
        if scheme in ("http", "https"):
            return await self.fetcher.get(url, param)
        if scheme == "file":
            return self._file(url, param)
        raise _refused(
            f"expected a data URL (data:image/png;base64,...), got {sayable(url, 40)!r}",
            param,
            "invalid_image_url",
        )

    def decode(self, files: Sequence[tuple[bytes, str]], pictures: Pictures) -> list[Picture]:
        """Return pictures; what was sent lately is not decoded again.

        Args:
            files: the bytes of each, and where in the request it stands.
            pictures: those that are known.

        Raises:
            ApiError: 400, one is no image of the known formats, is broken, or all together have too many pixels.
        """
        left, most = self.settings.max_pixels, self.settings.max_pixels
        given = []
        for data, param in files:
            # A key of its own: what others made of the same bytes did not pass these checks.
            picture = pictures.take(("http", file_key(data)), partial(decode_image, data, param, left, most))
            width, height = picture.size
            if width * height > left:
                raise _too_many_pixels(f"{width} x {height} pixels", param, most)
            left -= width * height
            given.append(picture)
        return given

    def _data(self, url: str, param: str) -> bytes:
        head = _DATA_URL.match(url)
        if head is None:
            raise _refused(
                f"expected data:image/png;base64,..., got {sayable(url, 40)!r}", param, "invalid_image_url"
            )
        body = url[head.end() :]
        if len(body) // 4 * 3 > self.settings.max_image_bytes + 2:
            raise too_large(self.settings.max_image_bytes, param)
        try:
            data = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise _refused(f"broken base64 in the data URL: {error}", param, "invalid_base64_image") from None
        if len(data) > self.settings.max_image_bytes:
            raise too_large(self.settings.max_image_bytes, param)
        return data

    def _file(self, url: str, param: str) -> bytes:
        folder = self.settings.image_folder
        if folder is None:
            raise _refused(
                "file URLs are not allowed; send the image as a data URL (data:image/png;base64,...), or have the "
                "server started with --image-folder",
                param,
                "image_url_not_allowed",
            )
        nowhere = _refused("no such image file in the folder that is allowed", param, "image_not_found")
        try:
            split = urlsplit(url)
            path = Path(unquote(split.path)).resolve(strict=True)
            if split.netloc not in ("", "localhost") or not path.is_relative_to(folder.resolve()):
                raise nowhere
            if not path.is_file():
                raise nowhere
            if path.stat().st_size > self.settings.max_image_bytes:
                raise too_large(self.settings.max_image_bytes, param)
            return path.read_bytes()
        except (OSError, ValueError):
            raise nowhere from None


def decode_image(data: bytes, param: str, pixels_left: int, most: int) -> Image.Image:
    """Decode the bytes of an image file into an RGB picture.

    Args:
        data: of a file in one of `FORMATS`.
        param: where in the request it stands.
        pixels_left: so many it may have.
        most: the limit that is told.

    Raises:
        ApiError: 400, whatever is wrong with it.

    Example:
        >>> png = base64.b64decode(
        ...     "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
        ... )
        >>> decode_image(png, "image", 100, 100).size
        (1, 1)
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > pixels_left:
                raise _too_many_pixels(f"{opened.width} x {opened.height} pixels", param, most)
            opened.load()
            short, long = sorted(opened.size)
            if short < 1 or long > MOST_OBLONG * short:
                raise _refused(
                    f"{opened.width} x {opened.height} pixels: one side may be {MOST_OBLONG} times the other at most; "
                    "crop it",
                    param,
                    "image_too_oblong",
                )
            return to_rgb(opened, "image")
    except ApiError:
        raise
    except Image.DecompressionBombError:
        raise _too_many_pixels("its pixels", param, most) from None
    except Image.UnidentifiedImageError:
        raise _refused(UNKNOWN, param, "invalid_image") from None
    except (
        Exception
    ) as error:  # over broken bytes a decoder may raise almost anything: struct.error, IndexError
        cause = str(error) if isinstance(error, OSError | ValueError) and str(error) else type(error).__name__
        raise _refused(f"the image is broken: {sayable(cause, 200)}", param, "invalid_image") from None


def too_large(most: int, param: str) -> ApiError:
    """Return the error for an image file that is too large."""
    return _refused(
        f"the image has more than {most:,} bytes; make it smaller (--max-image-bytes)",
        param,
        "image_too_large",
    )


def _too_many_pixels(what: str, param: str, most: int) -> ApiError:
    return _refused(
        f"{what} are too many; all images of a request may have {most:,} together: make them smaller (--max-pixels)",
        param,
        "image_too_large",
    )


def _refused(message: str, param: str, code: str) -> ApiError:
    return ApiError(400, f"{param}: {message}", param=param, code=code)
