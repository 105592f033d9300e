"""`llavit serve`: an OpenAI-style server."""

from __future__ import annotations

import dataclasses
import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from llavit.cli.choices import Compile, Dtype
from llavit.cli.errors import reports_errors
from llavit.progress import status


class LogLevel(StrEnum):
    """How much is written."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


@reports_errors
def serve(
    model: Annotated[str, typer.Argument(help="A model's folder, or its id on the hub.")],
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    api_key: Annotated[
        str,
        typer.Option(
            envvar="LLAVIT_API_KEY",
            show_envvar=True,
            help="Clients must send it; without it none is asked for. The environment hides it from `ps`.",
        ),
    ] = "",
    model_name: Annotated[
        str, typer.Option(help="What clients call the model; the last part of its path if not given.")
    ] = "",
    dtype: Annotated[Dtype, typer.Option(help="Type of the weights.")] = Dtype.auto,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU if there is one.")] = None,
    quantize: Annotated[str | None, typer.Option(help="int8 holds the LLM's weights in int8.")] = None,
    compile_: Annotated[
        Compile,
        typer.Option(
            "--compile",
            help="auto compiles where that works: some minutes at each start on a CPU, then faster answers.",
            show_choices=True,
        ),
    ] = Compile.auto,
    revision: Annotated[str | None, typer.Option(help="Of a model on the hub.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Requests answered together.")] = 16,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; one more gets status 429.")
    ] = 64,
    max_length: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of prompt and answer together; the model's limit, at most 4096."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 1024,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until an answer is cut.")] = 300,
    read_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that a client has for its headers, and for its body.")
    ] = 30,
    max_request_bytes: Annotated[int, typer.Option(min=1, help="Greatest size of a request.")] = 32 << 20,
    max_image_bytes: Annotated[int, typer.Option(min=1, help="Greatest size of an image, as a file.")] = 16
    << 20,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Most pixels of all images of a request together.")
    ] = 33_000_000,
    max_images: Annotated[int, typer.Option(min=1, help="Most images of a request.")] = 8,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Answer to this name (example.com, *.example.com, * for any). At 127.0.0.1 a server answers to "
            "localhost, 127.0.0.1 and ::1 only, so that no web page can use it. Repeatable.",
        ),
    ] = None,
    image_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST", help="Allow image URLs of this host (example.com, *.example.com). Repeatable."
        ),
    ] = None,
    image_folder: Annotated[
        Path | None, typer.Option(help="Allow file:// image URLs of files in this folder.")
    ] = None,
    image_cache: Annotated[
        float, typer.Option(min=0, help="Greatest size of the image cache, in GB; 0 turns it off.")
    ] = 1.0,
    log_level: Annotated[LogLevel, typer.Option(help="info writes a line for each request.")] = LogLevel.info,
) -> None:
    """Serve a model as OpenAI's chat completions: http://127.0.0.1:8000/v1."""
    with status(f"{model}: starting"):
        from llavit.serve.engine import Engine
        from llavit.serve.hosts import is_loopback, served_hosts
        from llavit.serve.http import Settings, bind
        from llavit.serve.http import serve as run
        from llavit.serve.http.server import address

    logging.getLogger("llavit").setLevel(log_level.value.upper())
    settings = Settings(
        model_name=model_name or Path(model).name or Path(model).resolve().name,  # of . too
        api_key=api_key,
        max_request_bytes=max_request_bytes,
        max_image_bytes=max_image_bytes,
        max_pixels=max_pixels,
        max_images=max_images,
        max_new_tokens=max_new_tokens,
        max_requests=max_batch + max_queue + 16,
        timeout=timeout,
        read_timeout=read_timeout,
        image_hosts=tuple(image_host or ()),
        image_folder=image_folder,
        allowed_hosts=tuple(allowed_host or ()),
    )
    taken = bind(host, port)
    settings = dataclasses.replace(settings, allowed_hosts=served_hosts(host, settings.allowed_hosts))
    engine = Engine.load(
        model,
        dtype=dtype.value,
        device=device,
        compile=compile_.value,
        quantize=quantize,
        revision=revision,
        max_batch=max_batch,
        max_queue=max_queue,
        max_length=max_length,
        image_cache_bytes=int(image_cache * 1e9),
    )
    url = address(taken, host)
    if not api_key and not is_loopback(host):
        typer.echo(f"Anybody who can reach {url} can use it: set LLAVIT_API_KEY to ask for a key.", err=True)
    run(
        engine,
        settings,
        taken,
        ready=lambda: typer.echo(
            f"{settings.model_name} is served at {url}/v1  (Ctrl-C finishes what runs, twice stops at once)",
            err=True,
        ),
    )
    typer.echo("stopped", err=True)
