"""`llavit web`: the web page."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from llavit.cli.choices import Compile, Dtype
from llavit.cli.errors import reports_errors
from llavit.progress import status


@reports_errors
def web(
    model: Annotated[str, typer.Argument(help="A model's folder, or its id on the hub.")],
    model2: Annotated[
        str | None, typer.Argument(help="Another one, to answer the same questions beside it.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 7860,
    name: Annotated[
        list[str] | None,
        typer.Option(help="What to call the model; with two models give it twice. Its path if not given."),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Type of the weights.")] = Dtype.auto,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU if there is one.")] = None,
    quantize: Annotated[str | None, typer.Option(help="int8, or nothing.")] = None,
    compile_: Annotated[
        Compile,
        typer.Option(
            "--compile",
            help="auto compiles where that works: some minutes at each start on a CPU, then faster answers.",
            show_choices=True,
        ),
    ] = Compile.auto,
    max_batch: Annotated[int, typer.Option(min=1, help="Questions answered together.")] = 8,
    max_queue: Annotated[int, typer.Option(min=1, help="Questions that may wait.")] = 32,
    max_length: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of a conversation; the model's limit, at most 4096."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer, until changed on the page.")
    ] = 256,
    max_upload: Annotated[
        float, typer.Option(min=0.001, help="Greatest size of a picture's file, in MB.")
    ] = 20,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Answer to this name (example.com, *.example.com, * for any). At 127.0.0.1 the page answers to "
            "localhost, 127.0.0.1 and ::1 only, so that no other page can use it. Repeatable.",
        ),
    ] = None,
    examples: Annotated[
        bool, typer.Option(help="Begin with pictures of the starter, if it is there.")
    ] = True,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in the browser.")] = False,
) -> None:
    """Serve a page to ask a model about pictures, or two models side by side."""
    with status(f"{model}: starting"):
        from llavit.serve import Engine
        from llavit.serve.hosts import is_loopback
        from llavit.serve.web.examples import starter_examples
        from llavit.serve.web.page import Page, checked_port

    names = list(name or [])
    sources = [model] if model2 is None else [model, model2]
    if names and len(names) != len(sources):
        raise ValueError(f"--name: expected it {len(sources)} times, once for each model, got {len(names)}")
    port = checked_port(host, port)
    engines: list[Engine] = []
    stopped = threading.Event()

    def stop(*_: Any) -> None:
        stopped.set()

    try:
        for source in sources:
            engines.append(
                Engine.load(
                    Path(source) if Path(source).is_dir() else source,
                    dtype=dtype.value,
                    device=device,
                    quantize=quantize,
                    compile=compile_.value,
                    max_batch=max_batch,
                    max_queue=max_queue,
                    max_length=max_length,
                )
            )
        with Page(
            engines,
            names=names,
            examples=starter_examples() if examples else (),
            max_new_tokens=max_new_tokens,
            max_upload_bytes=int(max_upload * 1e6),
        ) as page:
            url = page.open(host, port, allowed_hosts=allowed_host or ())
            signal.signal(signal.SIGTERM, stop)
            signal.signal(signal.SIGINT, stop)
            typer.echo(f"{url}  (Ctrl-C stops it)", err=True)
            if not is_loopback(host):
                typer.echo("Anybody who can reach this address can use the page.", err=True)
            if browser:
                typer.launch(url)
            stopped.wait()
    finally:
        for engine in engines:
            engine.close()
    typer.echo("stopped", err=True)
