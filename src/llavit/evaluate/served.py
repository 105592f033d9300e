"""Score a model that a server has: the same items, over HTTP, as OpenAI's chat completions.

The server may be `llavit serve`, vLLM, or any other that takes images as data URLs. What it computes with is its own
business: a result says under which name it was asked, and cannot say more.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from PIL import Image

from llavit.evaluate.asking import Answer, first_line
from llavit.evaluate.baselines import BASELINES
from llavit.evaluate.bench import BenchTask
from llavit.evaluate.fingerprint import SERVED
from llavit.evaluate.items import Item, Picture
from llavit.evaluate.run import Finished, Progress, check, decoding, run_tasks
from llavit.model.images import to_rgb

_TIMEOUT = 600.0
_OF_THE_ITEM = (400, 413, 415, 422)
"""Statuses by which a server refuses one question; any other is of no question's making."""


class ServedAsker:
    """Asks a server the questions of items.

    Args:
        url: where its API begins, like "http://127.0.0.1:8000/v1".
        model: its name there; may be left out where the server has one only.
        api_key: what the server asks for.
        requests: questions that are sent at once.

    Raises:
        ImportError: the `openai` client is missing.
        ConnectionError: no server answers.
        ValueError: no model of this name; or several, and none was named.

    Example:
        ```python
        asker = ServedAsker("http://127.0.0.1:8000/v1")
        answers = asker.generate(task.items, ["own"] * len(task.items), max_new_tokens=8)
        ```
    """

    def __init__(self, url: str, model: str | None = None, api_key: str = "", requests: int = 16):
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                'asking a server takes the openai client: pip install "llavit[client]"'
            ) from error
        self.openai = openai
        self.client = openai.OpenAI(base_url=url, api_key=api_key or "none", timeout=_TIMEOUT)
        self.url, self.requests = url, requests
        try:
            names = [each.id for each in self.client.models.list()]
        except openai.APIConnectionError as error:
            raise ConnectionError(f"no server answers at {url}: {error.__cause__ or error}") from error
        except openai.APIStatusError as error:
            raise ValueError(f"{url}/models: {error.message}") from error
        if model is None and len(names) == 1:
            model = names[0]
        if model not in names:
            raise ValueError(f"expected the name of a model that {url} has, {names}, got {model!r}")
        self.model = model

    def forget_pictures(self) -> None:
        """Nothing is kept."""

    def generate(
        self,
        items: Sequence[Item],
        pictures: Sequence[Picture],
        max_new_tokens: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Return the greedy answer to each item, its first line; see `Asker.generate`.

        An item that the server refuses has the reason instead of a text.

        Raises:
            ConnectionError: the server is gone, keeps failing, or no longer knows the key or the model.
        """
        with ThreadPoolExecutor(self.requests) as pool:
            asked = [
                pool.submit(self._answer, item, picture, max_new_tokens)
                for item, picture in zip(items, pictures, strict=True)
            ]
            try:
                for future in as_completed(asked):
                    future.result()
                    if progress:
                        progress(1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [future.result() for future in asked]

    def rendered(self, item: Item, picture: Picture = "own") -> str:
        """Return what is asked, an image as <image>; the server's template puts it into words of its own."""
        parts = item.messages(picture)[0]["content"]
        return "".join("<image>" if part["type"] == "image" else part["text"] for part in parts)

    def _answer(self, item: Item, picture: Picture, max_new_tokens: int) -> Answer:
        try:
            messages: Any = as_openai(item.messages(picture))
        except (ValueError, OSError) as error:  # a picture that cannot be read
            return Answer(None, f"{type(error).__name__}: {error}")
        try:
            made = self.client.chat.completions.create(
                model=self.model, messages=messages, temperature=0, max_tokens=max_new_tokens
            )
        except self.openai.APIConnectionError as error:
            raise ConnectionError(f"{self.url} stopped answering: {error.__cause__ or error}") from error
        except self.openai.APIStatusError as error:
            if error.status_code not in _OF_THE_ITEM:
                raise ConnectionError(f"{self.url}: status {error.status_code}: {error.message}") from error
            return Answer(None, f"status {error.status_code}: {error.message}")
        return Answer(first_line(made.choices[0].message.content or ""))


def evaluate_served(
    url: str,
    tasks: Sequence[BenchTask],
    *,
    model: str | None = None,
    api_key: str = "",
    baselines: Sequence[str] = BASELINES,
    limit: int | None = None,
    requests: int = 16,
    output: str | Path | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    finished: Finished | None = None,
) -> dict[str, Any]:
    """Run tasks on a model that a server has; `evaluate` says what comes out and what the rest means.

    [Contract] with users: a result goes on with an earlier one of the same name at whatever address; that the server
    still has the same weights under it is theirs to know.

    Args:
        url: see `ServedAsker`.
        tasks: of `load_bench`.
        model: see `ServedAsker`.
        api_key: see `ServedAsker`.
        baselines: out of `BASELINES`.
        limit: only so many items of each task.
        requests: questions that are sent at once.
        output: the result file.
        name: of the model in tables; the server's name for it if None.
        progress: see `Progress`.
        finished: see `Finished`.

    Raises:
        ValueError: see `evaluate` and `ServedAsker`.
        ConnectionError: see `ServedAsker`; with `output`, finished tasks are kept.
        ImportError: see `evaluate` and `ServedAsker`.

    Example:
        ```python
        result = evaluate_served("http://127.0.0.1:8000/v1", load_bench("runs/bench"), output="served.json")
        ```
    """
    check(tasks, "generate", baselines)
    asker = ServedAsker(url, model, api_key, requests)
    settings = {
        "model": SERVED + asker.model,
        "mode": "generate",
        "baselines": list(baselines),
        "limit": limit,
        "dtype": "the server's",
        "decoding": decoding("generate"),
    }
    return run_tasks(
        asker,
        tasks,
        settings,
        {"source": asker.model, "server": url},
        batch_size=requests,
        output=output,
        name=name or Path(asker.model).name,
        progress=progress,
        finished=finished,
    )


def as_openai(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write a conversation as OpenAI has it: images as data URLs, a file's bytes as they are.

    Raises:
        OSError: a file that cannot be read, or is no image.

    Example:
        >>> as_openai([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}])
        [{'role': 'user', 'content': [{'type': 'text', 'text': 'Hi'}]}]
    """

    def part(one: dict[str, Any]) -> dict[str, Any]:
        if one["type"] != "image":
            return one
        return {"type": "image_url", "image_url": {"url": data_url(one["image"])}}

    return [{"role": turn["role"], "content": [part(one) for one in turn["content"]]} for turn in messages]


def data_url(image: Any) -> str:
    """Write an image, or the file of one, as a data URL.

    Example:
        >>> data_url(Image.new("RGB", (1, 1)))[:40]
        'data:image/png;base64,iVBORw0KGgoAAAANSU'
    """
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, "PNG")
        kind, data = "image/png", file.getvalue()
    else:
        with Image.open(image) as opened:
            if opened.format not in Image.MIME:  # the web has no name for it
                return data_url(to_rgb(opened))
            kind = Image.MIME[opened.format]
        data = Path(image).read_bytes()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
