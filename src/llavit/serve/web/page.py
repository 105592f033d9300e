"""The Gradio page: a conversation, a box to ask in, and what can be set. What it does is in the modules beside it."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from llavit.serve import Engine, Sampling
from llavit.serve.formats import load_upload
from llavit.serve.hosts import HostCheck, check_host_pattern, served_hosts
from llavit.serve.web.examples import Example
from llavit.serve.web.heat import LAYERS, look
from llavit.serve.web.render import conversation_html, model_kind
from llavit.serve.web.talk import Picture, Talk, said

logger = logging.getLogger(__name__)

# Before gradio is imported: it reports its use over the network otherwise.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
try:
    import gradio as gr
except ImportError as error:
    raise ImportError('the web page needs gradio: pip install "llavit[web]"') from error

HERE = Path(__file__).parent
UPLOADS = "GRADIO_TEMP_DIR"
"""Environment variable of the folder where gradio puts uploads."""
SHOWN_SIDE = 1024
"""Longest side in pixels of a picture as the page shows it; the model gets the whole."""
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")


class Page:
    """A page on one engine, or on two that answer the same questions side by side.

    Nothing on it is loaded from another host.

    Args:
        engines: one or two; they stay the caller's to close.
        names: what to call the models; the engines' names if not given.
        examples: pictures with questions to begin with.
        max_new_tokens: greatest length of an answer, until the user changes it.
        max_upload_bytes: greatest size of a picture's file.

    Attributes:
        url: where it is served, after `open`.

    Raises:
        ValueError: not one or two engines, or not as many names.

    Example:
        with Engine.load("runs/demo/instruct") as engine, Page([engine]) as page:
            print(page.open(port=7860))
            input("Enter stops it. ")
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        names: Sequence[str] = (),
        examples: Sequence[Example] = (),
        max_new_tokens: int = 256,
        max_upload_bytes: int = 20 << 20,
    ):
        if len(engines) not in (1, 2):
            raise ValueError(f"engines: expected one or two, got {len(engines)}")
        if names and len(names) != len(engines):
            raise ValueError(f"names: expected {len(engines)}, one for each model, got {len(names)}")
        self.engines = list(engines)
        self.names = list(names) or [_short(engine.name) for engine in engines]
        self.max_new_tokens = max_new_tokens
        self.max_upload_bytes = max_upload_bytes
        self.url = ""
        self._talks: dict[str, Talk] = {}
        _keep_uploads_apart()
        self._folder = tempfile.TemporaryDirectory(prefix="llavit-web-")
        self._examples = [(self._shown(example.image), example) for example in examples]
        self.blocks = self._build()

    def open(self, host: str = "127.0.0.1", port: int = 7860, *, allowed_hosts: Sequence[str] = ()) -> str:
        """Serve the page from threads of its own; return its address.

        Args:
            host: to listen at; 0.0.0.0 lets other machines in.
            port: 0 takes any that is free.
            allowed_hosts: names that the page answers to, see `served_hosts`: at a loopback address beside its own.

        Raises:
            OSError: the port is taken.
            ValueError: what is allowed is no name of a host.
        """
        for name in allowed_hosts:
            check_host_pattern(name)
        hosts = served_hosts(host, allowed_hosts)
        _, self.url, _ = self.blocks.launch(
            server_name=host,
            server_port=checked_port(host, port),
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            show_error=True,
            ssr_mode=False,
            footer_links=[],
            max_file_size=self.max_upload_bytes,
            allowed_paths=[self._folder.name],
            theme=gr.themes.Base(
                primary_hue="orange", neutral_hue="gray", font=FONT, font_mono=MONO, radius_size="lg"
            ),
            css_paths=HERE / "page.css",
            app_kwargs={"middleware": [Middleware(HostCheck, hosts=hosts, refuse=_refuse_host)]},
        )
        return self.url

    def close(self) -> None:
        """Stop serving, and delete the pictures that were shown."""
        for talk in list(self._talks.values()):
            talk.stop()
        self.blocks.close(verbose=False)
        self._folder.cleanup()

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _build(self) -> Any:
        with gr.Blocks(title="llavit", analytics_enabled=False, delete_cache=(600, 24 * 3600)) as blocks:
            with gr.Row(elem_id="head"):
                gr.HTML(self._head(), elem_id="models", js_on_load=None)
                new = gr.Button("New", size="sm", variant="secondary", elem_id="new")
            conversation = gr.HTML(
                self._html(Talk(self.engines)),
                elem_id="conversation",
                js_on_load=(HERE / "page.js").read_text(encoding="utf-8"),
                apply_default_css=False,
            )
            with gr.Column(elem_id="dock"):
                box = gr.MultimodalTextbox(
                    file_types=["image"],
                    file_count="multiple",
                    sources=["upload"],
                    placeholder="Drop a picture, and ask about it",
                    show_label=False,
                    elem_id="box",
                    max_lines=8,
                )
            with gr.Accordion("Settings", open=False, elem_id="settings"):
                with gr.Row():
                    temperature = gr.Slider(
                        0, 2, 0, step=0.05, label="Temperature", info="0 takes the likeliest token each time"
                    )
                    top_p = gr.Slider(
                        0.05, 1, 1, step=0.05, label="Top-p", info="Draws among the likeliest with this share"
                    )
                with gr.Row():
                    most = gr.Number(
                        self.max_new_tokens, precision=0, minimum=1, label="Most tokens of an answer"
                    )
                    seed = gr.Textbox(label="Seed", placeholder="random", max_lines=1)
                    layers = gr.Dropdown(list(LAYERS), value=LAYERS[0], label="Heat map over")
            shown = [conversation, box]
            options = [temperature, top_p, most, seed]
            live: dict[str, Any] = {
                "show_progress": "hidden",
                "concurrency_limit": None,
                "api_visibility": "private",
            }
            box.submit(self._ask, [box, *options], shown, **live)
            box.stop(self._stop, **live)
            conversation.select(self._clicked, [layers, *options], shown, **live)
            new.click(self._new, None, shown, **live)
            blocks.unload(self._left)
        blocks.queue(default_concurrency_limit=None)
        return blocks

    # What the page calls. `request` tells one open page from another.

    def _ask(
        self,
        box: dict[str, Any],
        temperature: float,
        top_p: float,
        most: float,
        seed: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, Any]]:
        talk = self._talk(request)
        question, files = (box.get("text") or "").strip(), box.get("files") or []
        if not question:
            gr.Info("Ask something about the picture." if files else "Type a question first.")
            yield gr.skip(), gr.skip()
            return
        if not talk.begin():
            gr.Info("The answer before is still being written.")
            yield gr.skip(), gr.skip()
            return
        try:
            pictures = [self._picture(load_upload(file)) for file in files]
            sampling = _sampling(temperature, top_p, most, seed)
        except Exception as error:
            talk.busy = False  # nothing was asked yet: the question stays in the box
            raise _shown_error("Not asked", error) from error
        asked = {"text": question, "files": files}
        yield from self._answer(talk, request, question, pictures, sampling, asked)

    def _answer(
        self,
        talk: Talk,
        request: gr.Request,
        question: str,
        pictures: list[Picture],
        sampling: Sampling,
        asked: dict[str, Any],
    ) -> Iterator[tuple[Any, Any]]:
        """Show an answer as it is written; a question that no model could answer goes back into the box."""
        with closing(talk.ask(question, pictures, sampling)) as steps:
            next(steps)
            yield self._html(talk), _box(busy=True, value={"text": "", "files": []})
            for _ in steps:
                if talk.left:
                    break
                yield self._html(talk), gr.skip()
        if talk.left:
            # An old state may have reached the page after the new conversation, which therefore has the last word.
            now = self._talks.get(str(request.session_hash))
            if now is not None:
                yield self._html(now), _box(busy=now.busy)
        elif all(reply.error is not None for reply in talk.exchanges[-1].replies):
            yield self._html(talk), _box(busy=False, value=asked)
        else:
            yield self._html(talk), _box(busy=False)

    def _clicked(
        self,
        layers: str,
        temperature: float,
        top_p: float,
        most: float,
        seed: str,
        event: gr.EventData,
        request: gr.Request,
    ) -> Iterator[tuple[Any, Any]]:
        talk, data = self._talk(request), event._data or {}
        if data.get("act") == "example":
            if talk.exchanges or not talk.begin():
                return
            try:
                _, example = self._examples[int(data["number"])]
                sampling = _sampling(temperature, top_p, most, seed)
            except Exception as error:
                talk.busy = False
                raise _shown_error("Not asked", error) from error
            pictures = [self._picture(example.image)]
            asked = {"text": example.question}
            yield from self._answer(talk, request, example.question, pictures, sampling, asked)
            return
        try:
            exchange, model = int(data["exchange"]), int(data["model"])
            reply = talk.exchanges[exchange].replies[model]
            opens = data["act"] == "word" and (
                reply.look is None or (reply.look.word, reply.look.layers) != (int(data["word"]), layers)
            )
            reply.look = look(talk, exchange, model, int(data["word"]), layers) if opens else None
        except Exception as error:
            raise _shown_error("No heat map", error) from error
        yield self._html(talk), gr.skip()

    def _stop(self, request: gr.Request) -> None:
        self._talk(request).stop()

    def _new(self, request: gr.Request) -> tuple[Any, Any]:
        self._forget(request)
        return self._html(self._talk(request)), _box(busy=False, value={"text": "", "files": []})

    def _left(self, request: gr.Request) -> None:
        self._forget(request)

    def _talk(self, request: gr.Request) -> Talk:
        return self._talks.setdefault(str(request.session_hash), Talk(self.engines))

    def _forget(self, request: gr.Request) -> None:
        """Stop what is being written on a page, and delete its pictures."""
        talk = self._talks.pop(str(request.session_hash), None)
        if talk is None:
            return
        talk.left = True
        talk.stop()
        for exchange in talk.exchanges:
            for picture in exchange.pictures:
                (Path(self._folder.name) / picture.url.rpartition("/")[2]).unlink(missing_ok=True)

    # What the page shows.

    def _html(self, talk: Talk) -> str:
        return conversation_html(talk, self.names, [(url, each.question) for url, each in self._examples])

    def _head(self) -> str:
        heads = "".join(
            f"<div><h1>{escape(name)}</h1><p>{escape(model_kind(engine.model.config))}</p></div>"
            for name, engine in zip(self.names, self.engines, strict=True)
        )
        return f'<div class="{"two" if len(self.engines) > 1 else "one"}">{heads}</div>'

    def _picture(self, image: Image.Image) -> Picture:
        return Picture(image, self._shown(image))

    def _shown(self, image: Image.Image) -> str:
        """Write a picture as the page shows it; return its address, which cannot be guessed."""
        path = Path(self._folder.name) / f"{uuid.uuid4().hex}.png"
        small = image.copy()
        small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        small.save(path)
        return f"gradio_api/file={path}"


async def _refuse_host(message: str, scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(message, 403)(scope, receive, send)


def _keep_uploads_apart() -> None:
    """Give this process a folder of its own for what browsers upload, unless GRADIO_TEMP_DIR names one.

    Gradio's is one for all its processes, with files named by their content, and each process deletes what it is done
    with: two servers on a machine would take the same picture away from each other.
    """
    if UPLOADS not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="llavit-uploads-")
        atexit.register(folder.cleanup)
        os.environ[UPLOADS] = folder.name


def _box(*, busy: bool, **changes: Any) -> Any:
    """The box to ask in, with the button that fits: to stop while an answer is written, to send otherwise."""
    return gr.MultimodalTextbox(submit_btn=not busy, stop_btn=busy, **changes)


def _shown_error(title: str, error: BaseException) -> gr.Error:
    """Make a note that stays until it is closed. Gradio takes its text for HTML, which an error's words are not."""
    return gr.Error(escape(said(error)), title=title, duration=None, print_exception=False)


def _sampling(temperature: float, top_p: float, most: float, seed: str) -> Sampling:
    """Make options of what the controls say; greedy at temperature 0.

    Raises:
        ValueError: a value that makes no sense; says which do.
    """
    try:
        number = int(seed) if str(seed or "").strip() else None
    except ValueError:
        raise ValueError(f"seed={seed!r}: expected a whole number, or nothing for a random one") from None
    if most is None:
        raise ValueError("most tokens of an answer: expected a whole number from 1 up, got nothing")
    draws: dict[str, Any] = {}
    if temperature > 0:
        draws = {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p), "seed": number}
    return Sampling(max_new_tokens=int(most), **draws)


def _short(name: str) -> str:
    """The last two parts of a model's path."""
    return "/".join(Path(name).parts[-2:])


def checked_port(host: str, port: int) -> int:
    """Return a port that is free now: the one that is given, or any for 0.

    Raises:
        OSError: it is taken, or there is no such address here.

    Example:
        >>> checked_port("127.0.0.1", 0) > 0
        True
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(f"cannot listen at {host}, port {port}: {error.strerror}") from error
        return probe.getsockname()[1]
