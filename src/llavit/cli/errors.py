"""How commands tell a user's mistakes from bugs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import typer

Command = TypeVar("Command", bound=Callable[..., Any])

USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)
"""What a user can cause: one clear line instead of a traceback."""

_shows_traceback = False


def show_traceback(wanted: bool) -> None:
    """Say whether errors that a user can cause come with a traceback."""
    global _shows_traceback
    _shows_traceback = wanted


def reports_errors(command: Command) -> Command:
    """Turn what a user can cause into a line on stderr and exit code 2.

    Example:
        @app.command()
        @reports_errors
        def train(): ...
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except USER_ERRORS as error:
            if _shows_traceback:
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo("stopped", err=True)
            raise typer.Exit(130) from error

    return wrapped  # type: ignore[return-value]


@contextmanager
def ends_when_stopped() -> Iterator[None]:
    """Around what trains: after SIGTERM say in one line where the same command goes on, and leave as it asks.

    Example:
        with ends_when_stopped():
            train(recipe)
    """
    from llavit.train.distributed import is_first_process
    from llavit.train.stopping import EXIT_STATUS, Stopped

    try:
        yield
    except Stopped as stopped:
        if is_first_process():
            typer.echo(str(stopped), err=True)
        raise typer.Exit(EXIT_STATUS) from stopped
