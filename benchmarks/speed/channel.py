"""Processes that are told over a socket what to do next: the measured sides.

A side is a function `side(spec, channel)` in one of the modules of `worker.SIDES`. It prepares itself, says so with
`channel.ready(...)`, and then answers one command after the other, each with a dictionary.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ADDRESS, KEY = "SPEED_ADDRESS", "SPEED_KEY"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Memory in huge pages, for all sides and for the limits: reading weights and activations is a quarter faster."""


class SideFailed(RuntimeError):
    """A side stopped with an error; the message holds the end of its log."""


class SideTooSlow(SideFailed):
    """A side did not answer in time."""


class Channel:
    """The side's end: takes commands, gives answers. Of several processes that are one side, the first talks.

    Args:
        talks: whether this process talks; the others get each command from `share`.
    """

    def __init__(self, talks: bool = True):
        self.connection: Connection | None = None
        if talks:
            self.connection = Client(os.environ[ADDRESS], authkey=bytes.fromhex(os.environ[KEY]))

    def send(self, **facts: Any) -> None:
        """Answer a command."""
        if self.connection is not None:
            self.connection.send(facts)

    def ready(self, **facts: Any) -> None:
        """Say that everything is loaded."""
        self.send(ready=True, **facts)

    def receive(self) -> dict[str, Any]:
        """Wait for a command, `{"do": ..., ...}`; in processes that do not talk, for the first one's."""
        message = [self.connection.recv() if self.connection is not None else None]
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            import torch

            torch.distributed.broadcast_object_list(message, src=0)
        assert message[0] is not None
        return message[0]

    def commands(self) -> Iterator[dict[str, Any]]:
        """Give commands until one says stop."""
        while (command := self.receive())["do"] != "stop":
            yield command


class Side:
    """The harness's end of a side: starts its process (or processes), talks with it, ends it.

    Args:
        name: what to call it.
        side: a key of `worker.SIDES`.
        spec: what it needs to know; must be picklable as JSON.
        threads: of each process.
        processes: 1, or more that `torchrun` starts to train together.
        log: file that takes what it prints.
        environment: variables for it.

    Attributes:
        facts: what it said about itself when it was ready.
        last: its last answer.

    Raises:
        SideFailed: from any method: the process ended or reported an error.

    Example:
        ```python
        with Side("ours", "train_ours", {"stage": "instruct"}, threads=2, log=Path("ours.log")) as side:
            side.wait_ready(600)
            side.ask("steps", count=2)["seconds"]
        ```
    """

    def __init__(
        self,
        name: str,
        side: str,
        spec: dict[str, Any],
        *,
        threads: int,
        log: Path,
        processes: int = 1,
        environment: dict[str, str] | None = None,
    ):
        import json

        self.name, self.log = name, log
        folder = tempfile.mkdtemp(prefix="speed-")
        key = secrets.token_bytes(16)
        self.listener = Listener(f"{folder}/socket", family="AF_UNIX", authkey=key)
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", HUGE_PAGES),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]),
            ADDRESS: str(self.listener.address),
            KEY: key.hex(),
            **(environment or {}),
        }
        variables.pop("OMP_WAIT_POLICY", None)  # as users have it
        launch = [sys.executable, "-m"]
        if processes > 1:
            launch += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*launch, "benchmarks.speed.worker", side, json.dumps(spec)],
                cwd=ROOT,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.connection: Connection | None = None
        self.facts: dict[str, Any] = {}
        self.last: dict[str, Any] = {}

    def wait_ready(self, limit: float) -> dict[str, Any]:
        """Wait until the side is loaded; give what it says about itself."""
        if self.connection is None:
            self.connection = self._accept(limit)
        self.facts = self._answer(limit)
        return self.facts

    def ask(self, do: str, *, limit: float = 900, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            SideTooSlow: nothing came within `limit` seconds; the side is still at it.
        """
        assert self.connection is not None, "wait_ready first"
        self.connection.send({"do": do, **arguments})
        self.last = self._answer(limit)
        return self.last

    def close(self) -> None:
        """End the process."""
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.send({"do": "stop"})
            self.connection.close()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.listener.close()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _accept(self, limit: float) -> Connection:
        """Wait for the process to call; `accept` itself would wait for ever for one that has died."""
        import threading

        found: list[Connection] = []
        thread = threading.Thread(target=lambda: found.append(self.listener.accept()), daemon=True)
        thread.start()
        end = time.monotonic() + limit
        while thread.is_alive():
            thread.join(0.2)
            if self.process.poll() is not None:
                raise SideFailed(
                    f"{self.name}: its process ended with status {self.process.poll()}{self._tail()}"
                )
            if time.monotonic() > end:
                raise SideTooSlow(f"{self.name}: did not start within {limit:.0f} seconds{self._tail()}")
        return found[0]

    def _answer(self, limit: float) -> dict[str, Any]:
        assert self.connection is not None
        if not self.connection.poll(limit):
            raise SideTooSlow(f"{self.name}: no answer within {limit:.0f} seconds{self._tail()}")
        try:
            answer = self.connection.recv()
        except EOFError as error:
            raise SideFailed(f"{self.name}: its process ended{self._tail()}") from error
        if "error" in answer:
            raise SideFailed(f"{self.name}: {answer['error']}{self._tail()}")
        return answer

    def _tail(self) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"\nThe end of {self.log}:\n" + "\n".join(text.splitlines()[-15:]) if text.strip() else ""
