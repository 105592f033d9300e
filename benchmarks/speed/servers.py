"""Servers as processes of their own: `llavit serve`, and vLLM out of an environment of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.speed.channel import HUGE_PAGES, ROOT, SideFailed, SideTooSlow

LENGTH = 1024
"""Most tokens of a chat, for all servers alike."""

_PROBE = """
import importlib.metadata, json
names = [point.name for point in importlib.metadata.entry_points(group="vllm.general_plugins")]
import torch, transformers, vllm
print(json.dumps({"vllm": vllm.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
                  "plugin": "llavit" in names}))
"""


class Server:
    """A process that serves OpenAI's chat completions on a port of 127.0.0.1.

    Args:
        name: what to call it, and its model.
        command: starts it; `{port}` and `{name}` stand for a free port and the name.
        log: file that takes what it prints.
        environment: variables for it.

    Attributes:
        url: where its API begins.

    Raises:
        SideFailed: from `wait_ready`: the process ended.

    Example:
        ```python
        with Server("ours", llavit_command(folder, "float32", 16), Path("ours.log"), {}) as server:
            server.wait_ready(600)
            chats(server.url, "ours", asked, tokens=32)
        ```
    """

    def __init__(self, name: str, command: list[str], log: Path, environment: dict[str, str]):
        self.name, self.log = name, log
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/v1"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [word.format(port=port, name=name) if "{" in word else word for word in command],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self, limit: float) -> None:
        """Wait until it has its model.

        Raises:
            SideFailed: its process ended.
            SideTooSlow: it did not get there within `limit` seconds.
        """
        end = time.monotonic() + limit
        while True:
            if self.process.poll() is not None:
                raise SideFailed(
                    f"{self.name}: its process ended with status {self.process.poll()}{self._tail()}"
                )
            try:
                with urllib.request.urlopen(f"{self.url}/models", timeout=5) as answer:
                    json.load(answer)
                return
            except (urllib.error.URLError, OSError):
                if time.monotonic() > end:
                    raise SideTooSlow(
                        f"{self.name}: not ready within {limit:.0f} seconds{self._tail()}"
                    ) from None
                time.sleep(0.5)

    def close(self) -> None:
        """End the process, first in peace."""
        for stop in (self.process.terminate, self.process.kill):
            if self.process.poll() is None:
                stop()
                try:
                    self.process.wait(30)
                except subprocess.TimeoutExpired:
                    continue

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _tail(self) -> str:
        return f"\nThe end of {self.log}:\n" + "\n".join(
            self.log.read_text(errors="replace").splitlines()[-15:]
        )


def llavit_command(
    model: str, dtype: str, chats: int, eager: bool = False, length: int = LENGTH
) -> list[str]:
    """Give the command of `llavit serve`.

    Args:
        model: a LLaViT's folder.
        dtype: of weights, keys and values.
        chats: at once.
        eager: nothing is compiled.
        length: most tokens of a chat.
    """
    return [
        *(sys.executable, "-m", "llavit.cli", "serve", model, "--port", "{port}", "--model-name", "{name}"),
        *("--dtype", dtype, "--max-batch", str(chats), "--max-length", str(length), "--log-level", "warning"),
        *(("--compile", "never") if eager else ()),
    ]


def llavit_environment(threads: int) -> dict[str, str]:
    """Give the variables of `llavit serve`: those of the other sides."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", HUGE_PAGES),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }


def vllm_command(
    python: Path, model: str, dtype: str, chats: int, eager: bool = False, options: tuple[str, ...] = ()
) -> list[str]:
    """Give the command of vLLM's server; see `llavit_command`.

    Args:
        python: of its environment.
        model: see there.
        dtype: see there.
        chats: see there.
        eager: see there.
        options: more of them.
    """
    return [
        *(str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"),
        *("--port", "{port}", "--served-model-name", "{name}", "--dtype", dtype),
        *("--max-model-len", str(LENGTH), "--max-num-seqs", str(chats), *options),
        *(("--enforce-eager",) if eager else ()),
    ]


def vllm_environment(threads: int) -> dict[str, str]:
    """Give the variables of vLLM; on a CPU it has as many threads as the others, bound to no core like theirs."""
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GB: 16 chats of 1,024 tokens of the starter's LLM in float32 take 0.7
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", HUGE_PAGES),
        "PYTHONPATH": "",  # it has packages of its own
    }


def vllm_facts(environment: str | None) -> tuple[Path | None, dict[str, Any]]:
    """Find Python and versions of an environment with vLLM and llavit's plug-in.

    Args:
        environment: its folder, or None.

    Returns:
        its Python and versions; or None and the reason, as `{"left out": ...}`.
    """
    if not environment:
        return None, {
            "left out": "no environment with vLLM and llavit: make test-vllm makes one, VLLM names another"
        }
    python = Path(environment).absolute() / "bin" / "python"
    if not python.exists():
        return None, {
            "left out": "VLLM is set to a folder without bin/python; make test-vllm makes an environment"
        }
    run = subprocess.run(
        [str(python), "-c", _PROBE], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}
    )
    if run.returncode:
        last = run.stderr.strip().splitlines()[-1]
        return None, {"left out": f"the environment VLLM does not have what it takes: {last}"}
    facts = json.loads(run.stdout.splitlines()[-1])
    if not facts.pop("plugin"):
        return None, {"left out": "the environment VLLM lacks llavit, whose plug-in vLLM takes"}
    return python, facts


def free_port() -> int:
    """Find a port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
