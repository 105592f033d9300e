"""A chat request's way: from its body to the engine, and from the engine to an answer, whole or in chunks."""

from __future__ import annotations

import asyncio
import functools
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Any

from jinja2 import TemplateError
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from llavit.serve.answers import Answer, EngineBusy, EngineClosed, Piece, TokenLogprob
from llavit.serve.engine import Engine
from llavit.serve.http.errors import ApiError, as_api_error, draining, invalid_request, retry_after
from llavit.serve.http.images import ImageLoader
from llavit.serve.http.limits import Places
from llavit.serve.http.metrics import Metrics
from llavit.serve.http.responses import chunk, completion, finish_reason, logprobs_body, usage_chunk
from llavit.serve.http.schema import ChatRequest, ImagePart
from llavit.serve.http.settings import Settings
from llavit.serve.request import Stream
from llavit.serve.sampling import Sampling

PREPARING = 4
"""Requests whose bodies are parsed and images decoded at the same time: bounds what decoded pictures take. As many hold
images that were not in their bodies, from files and downloads; others wait for that, as long as for a download."""

UNREAD = 30.0
"""Seconds that a client has to read the rest of an answer that has ended."""

MOST_VALUES = 50_000
"""Commas, and quotes, of a body; at least two for each token of the context. Base64 has none of either, so no request
needs more, and millions of wrong values would keep the validation, and with it everybody, busy for many seconds."""

CHARACTERS_PER_TOKEN = 64
"""A text with more than so many characters for each token of the context cannot fit; it is not even tokenised."""


class Completions:
    """Answers chat requests with an engine.

    Args:
        engine: what answers.
        settings: limits.
        metrics: where times are counted.
        images: gets images.

    Attributes:
        open: requests whose answers are being made or sent.
    """

    def __init__(
        self, engine: Engine, settings: Settings, metrics: Metrics, images: ImageLoader | None = None
    ):
        self.engine, self.settings, self.metrics = engine, settings, metrics
        self.images = images or ImageLoader(settings)
        busy = "images of other requests are still being downloaded or read"
        self._places = Places(PREPARING, settings.read_timeout, busy)
        self._preparing = ThreadPoolExecutor(PREPARING, "llavit-prepare")
        self._reading = ThreadPoolExecutor(settings.max_requests, "llavit-read")

    def close(self) -> None:
        """End the threads."""
        self._preparing.shutdown(wait=False, cancel_futures=True)
        self._reading.shutdown(wait=False, cancel_futures=True)

    async def answer(self, body: bytes) -> Response:
        """Return the response to a chat request; it makes the answer when it is sent.

        Raises:
            ApiError: the request cannot be answered; says what to change.
        """
        asked = await self._in_thread(self._parse, body)
        urls: list[tuple[str, str]] = []
        for number, message in enumerate(asked.messages):
            for place, part in enumerate(message.content):
                if isinstance(part, ImagePart):
                    param = f"messages[{number}].content[{place}].image_url.url"
                    if len(urls) == self.settings.max_images:
                        raise ApiError(
                            400,
                            f"{param}: more images than {self.settings.max_images} in one request; send fewer "
                            "(--max-images)",
                            param=param,
                            code="too_many_images",
                        )
                    urls.append((part.image_url.url, param))
        elsewhere = any(url[:5].lower() != "data:" for url, _ in urls)
        async with self._places.one() if elsewhere else nullcontext():  # bodies have a bound of their own
            files = await self.images.read_all(urls)
            stream = await self._in_thread(self._submit, asked, files)
        return ChatResponse(self, asked.model_copy(update={"messages": []}), stream)  # its images are large

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(
            self._preparing, functools.partial(function, *args)
        )

    def _parse(self, body: bytes) -> ChatRequest:
        most = max(MOST_VALUES, 2 * self.engine.max_length)
        if max(body.count(b","), body.count(b'"')) > most:
            message = f"the body has more than {most:,} commas or quotes, more values than a request can have"
            raise ApiError(400, message, code="too_many_values")
        try:
            asked = ChatRequest.model_validate_json(body)
        except ValidationError as error:
            raise invalid_request(error, ChatRequest) from None
        if asked.model != self.settings.model_name:
            raise ApiError(
                404,
                f"no such model; this server has {self.settings.model_name!r}",
                param="model",
                code="model_not_found",
            )
        limit = self.settings.max_new_tokens
        for name in ("max_completion_tokens", "max_tokens", "min_tokens"):
            if (getattr(asked, name) or 0) > limit:
                raise ApiError(
                    400,
                    f"{name}: expected at most {limit}, the limit of this server (--max-new-tokens)",
                    param=name,
                    code="invalid_value",
                )
        self._check_texts(asked)
        return asked

    def _check_texts(self, asked: ChatRequest) -> None:
        image, characters = self.engine.processor.image_token, 0
        for number, message in enumerate(asked.messages):
            parts = [message.content] if isinstance(message.content, str) else message.content
            for text in (part if isinstance(part, str) else getattr(part, "text", "") for part in parts):
                characters += len(text)
                if image in text:
                    param = f"messages[{number}].content"
                    raise ApiError(
                        400,
                        f"{param}: has the text {image!r}, which stands for an image; leave it out "
                        "(images go into parts of type image_url)",
                        param=param,
                        code="invalid_value",
                    )
        if characters > CHARACTERS_PER_TOKEN * self.engine.max_length:
            raise ApiError(
                400,
                f"the messages have {characters:,} characters of text, which cannot fit into the model's "
                f"{self.engine.max_length:,} tokens; shorten them",
                param="messages",
                code="context_length_exceeded",
            )

    def _submit(self, asked: ChatRequest, files: list[tuple[bytes, str]]) -> Stream:
        pictures = iter(self.images.decode(files, self.engine.pictures))
        turns = [
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": message.content
                if isinstance(message.content, str)
                else [
                    {"type": "image", "image": next(pictures)}
                    if isinstance(part, ImagePart)
                    else {"type": "text", "text": part.text}
                    for part in message.content
                ],
            }
            for message in asked.messages
        ]
        try:
            return self.engine.submit(
                turns, (), sampling(asked, self.settings.max_new_tokens), timeout=self.settings.timeout
            )
        except EngineBusy as error:
            raise ApiError(
                429,
                f"the queue is full; try again in {error.retry_after:.1f} s",
                code="server_busy",
                headers=retry_after(error.retry_after),
            ) from None
        except EngineClosed:
            raise draining() from None
        except TemplateError as error:
            raise ApiError(
                400,
                f"messages: the model's chat template refuses them: {error}",
                param="messages",
                code="invalid_value",
            ) from None
        except ValueError as error:
            long = "max_length" in str(error)
            code = "context_length_exceeded" if long else "invalid_value"
            raise ApiError(400, str(error), param="messages" if long else None, code=code) from None

    async def pieces(self, stream: Stream, ended: asyncio.Event) -> AsyncIterator[Piece]:
        """Give the pieces of an answer as they come; who stops reading cancels the answer.

        Args:
            stream: the answer.
            ended: set when it has ended, however many pieces have not been taken yet.

        Raises:
            Exception: what went wrong in the engine.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()

        def pump() -> None:
            end: BaseException | None = None
            try:
                for piece in stream:
                    loop.call_soon_threadsafe(queue.put_nowait, piece)
            except BaseException as error:  # reaches the client's request, not the thread's end
                end = error
            with suppress(RuntimeError):  # the loop is closed: nobody reads
                loop.call_soon_threadsafe(queue.put_nowait, end)
                loop.call_soon_threadsafe(ended.set)

        self._reading.submit(pump)
        try:
            while isinstance(piece := await queue.get(), Piece):
                yield piece
            if piece is not None:
                raise piece
        finally:
            if not stream.done:
                stream.cancel()


class ChatResponse(Response):
    """The answer to a chat request: waits for it, watches the client, and sends.

    The status waits for the first piece of the answer, so that what fails before has a status of its own.
    """

    def __init__(self, completions: Completions, asked: ChatRequest, stream: Stream):
        super().__init__()
        self._completions = completions
        self._asked = asked
        self._stream = stream
        self._answered = asyncio.Event()
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": completions.settings.model_name,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, or stop it when the client goes away."""
        making = asyncio.ensure_future(
            (self._chunks if self._asked.stream else self._whole)(scope, receive, send)
        )
        watching = asyncio.ensure_future(_gone(receive))
        waiting = asyncio.ensure_future(self._too_late())
        try:
            await asyncio.wait({making, watching, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not making.done():
                scope["llavit.gone"] = True
        finally:
            self._stream.cancel()  # changes nothing when the answer has ended
            for task in (making, watching, waiting):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _too_late(self) -> None:
        """Wait for the end of the answer, or of its time, and then as long as a client has to read the rest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._completions.settings.timeout):
                await self._answered.wait()
        await asyncio.sleep(UNREAD)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: Response
        try:
            async for _ in self._completions.pieces(self._stream, self._answered):
                pass
            answer = self._ended(scope)
            body = completion(self._head, answer, bool(self._asked.logprobs))
            response = JSONResponse(body)
        except Exception as error:
            response = as_api_error(error).response()
        await response(scope, receive, send)

    async def _chunks(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def event(data: dict[str, Any] | str) -> None:
            nonlocal started
            text = data if isinstance(data, str) else json.dumps(data)
            if not started:
                started = True
                headers = [
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"cache-control", b"no-cache"),
                ]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send(
                {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True}
            )

        wants_counts = bool(self._asked.stream_options and self._asked.stream_options.include_usage)
        head = {**self._head, "usage": None} if wants_counts else self._head
        waiting: tuple[TokenLogprob, ...] = ()
        try:
            async for piece in self._completions.pieces(self._stream, self._answered):
                if not started:
                    await event(chunk(head, {"role": "assistant", "content": "", "refusal": None}))
                waiting += piece.logprobs
                if piece.text:
                    logprobs = logprobs_body(waiting) if self._asked.logprobs else None
                    await event(chunk(head, {"content": piece.text}, logprobs=logprobs))
                    waiting = ()
            answer = self._ended(scope)
            if not started:
                await event(chunk(head, {"role": "assistant", "content": "", "refusal": None}))
            last = logprobs_body(waiting) if self._asked.logprobs and waiting else None
            end = chunk(head, {}, logprobs=last, finish=finish_reason(answer))
            await event({**end, "timed_out": answer.finish_reason == "timeout"})
            if wants_counts:
                await event(usage_chunk(head, answer))
            await event("[DONE]")
        except Exception as error:
            told = as_api_error(error)
            if not started:
                return await told.response()(scope, receive, send)
            await event(told.body())
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _ended(self, scope: Scope) -> Answer:
        answer = self._stream.result()
        if answer.seconds_to_first_token is not None:
            self._completions.metrics.first_token.observe(answer.seconds_to_first_token)
        scope["llavit.notes"] = (
            f"{answer.prompt_tokens} + {len(answer.token_ids)} tokens",
            f"{answer.cached_tokens} cached",
        )
        if answer.finish_reason == "timeout" and not answer.token_ids:
            raise ApiError(
                408,
                f"no token came within {self._completions.settings.timeout:g} s; try again later, or with fewer images",
                code="timeout",
                headers=retry_after(5),
            )
        if answer.finish_reason == "cancelled":
            raise draining()
        return answer


_LEAST = 0.001
"""Least temperature and top_p of the engine's sampling."""


def sampling(asked: ChatRequest, most: int) -> Sampling:
    """Return the engine's options for a request.

    Example:
        >>> body = '{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}'
        >>> sampling(ChatRequest.model_validate_json(body), most=64).max_new_tokens
        64
    """
    temperature = 1.0 if asked.temperature is None else asked.temperature
    draws = temperature >= _LEAST  # below, a draw is the likeliest token all the same
    stop = asked.stop or ()
    return Sampling(
        max_new_tokens=asked.max_completion_tokens or asked.max_tokens or most,
        min_new_tokens=asked.min_tokens or 0,
        do_sample=draws,
        temperature=temperature if draws else 1.0,
        top_k=asked.top_k,
        top_p=None if asked.top_p is None else max(asked.top_p, _LEAST),
        min_p=asked.min_p,
        repetition_penalty=asked.repetition_penalty or 1.0,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        logit_bias={int(token): bias for token, bias in (asked.logit_bias or {}).items()},
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        seed=asked.seed,
        logprobs=bool(asked.logprobs),
        top_logprobs=asked.top_logprobs or 0,
    )


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
