"""Many clients for a long time: does the server lose a request, and does its memory grow?

    llavit serve MODEL's process is started here, asked, watched and ended:
    .venv/bin/python benchmarks/soak.py runs/demo/instruct docs/serving/soak.json --requests 1000 --clients 16

Each client sends one request after another, drawn by a seed: texts, images (some new, some seen before), streams,
streams that are broken off, and bad ones. Every request must end as its kind should; the server's resident memory is
read all along. The JSON says how it was made, the picture beside it shows memory and finished requests over time.
"""

import argparse
import base64
import collections
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

KINDS = {"text": 30, "image": 25, "stream": 15, "stream with image": 15, "cancel": 8, "bad": 7}
"""Of a hundred requests, so many of each kind."""

BAD = (
    {"temperature": 9},
    {"n": 2},
    {"model": "gpt-4"},
    {"messages": []},
    {"unknown": 1},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]}
        ]
    },
    {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}],
            }
        ]
    },
)


class Server:
    """`llavit serve` in a process of its own."""

    def __init__(self, model: Path, *options: str):
        command = [
            sys.executable,
            "-m",
            "llavit.cli",
            "serve",
            str(model),
            "--port",
            "0",
            "--log-level",
            "error",
        ]
        self.command = ["llavit", "serve", "MODEL", *command[5:], *options]
        self.process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self.url = ""
        ready = threading.Event()
        threading.Thread(target=self._read, args=(ready,), daemon=True).start()
        if not ready.wait(600) or not self.url:
            raise RuntimeError(f"the server did not start: {self.log}")
        self.name = httpx.get(f"{self.url}/v1/models").json()["data"][0]["id"]

    def _read(self, ready: threading.Event) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip())
            if " is served at " in line:
                self.url = line.partition(" is served at ")[2].split("/v1")[0]
                ready.set()
        ready.set()

    def end(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def picture(number: int, side: int) -> str:
    """A data URL of a picture of its own for each number."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((side, side)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def draw(rng: random.Random, number: int, tokens: int, side: int) -> tuple[str, dict]:
    """Draw a request: its kind and its body."""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    text = f"Question {number}: what is to be seen here, and how many of it?"
    content: list[dict] = [{"type": "text", "text": text}]
    if kind in ("image", "stream with image", "cancel"):
        # Half of the pictures are ten that come again and again, half are new: the image cache fills and is cleared.
        which = rng.randrange(10) if rng.random() < 0.5 else 1000 + number
        content.insert(0, {"type": "image_url", "image_url": {"url": picture(which, side)}})
    body = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens if kind != "cancel" else 20 * tokens,
        "temperature": rng.choice((0, 0.8)),
        "seed": number,
        "stream": kind.startswith("stream") or kind == "cancel",
    }
    if rng.random() < 0.2:
        body |= {"logprobs": True, "top_logprobs": 3}
    return kind, body | rng.choice(BAD) if kind == "bad" else body


def ask(http: httpx.Client, kind: str, body: dict) -> str:
    """Send a request; return "ok" if it ended as its kind should, else what happened."""
    while True:
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code == 429:
                wait = float(answer.headers["retry-after"])
            elif kind == "bad":
                answer.read()
                return "ok" if answer.status_code in (400, 404) and "error" in answer.json() else answer.text
            elif answer.status_code != 200:
                answer.read()
                return f"status {answer.status_code}: {answer.text[:200]}"
            elif kind == "cancel":
                for _ in zip(range(6), answer.iter_lines(), strict=False):
                    pass
                return "ok"
            elif not body["stream"]:
                answer.read()
                choice = answer.json()["choices"][0]
                return "ok" if choice["finish_reason"] in ("stop", "length") else answer.text
            else:
                lines = [line for line in answer.iter_lines() if line]
                return (
                    "ok" if lines[-1] == "data: [DONE]" and len(lines) >= 3 else f"cut stream: {lines[-1:]}"
                )
        time.sleep(wait)


def soak(server: Server, requests: int, clients: int, tokens: int, side: int, seed: int) -> dict:
    """Send the requests; return what came of them, and the server's memory over time."""
    numbers = iter(range(requests))
    lock = threading.Lock()
    kinds: collections.Counter[str] = collections.Counter()
    outcomes: collections.Counter[str] = collections.Counter()
    times: list[float] = []
    memory: list[tuple[float, float, int]] = []
    process = psutil.Process(server.process.pid)
    begun = time.monotonic()
    done = threading.Event()

    def watch() -> None:
        while True:
            now = time.monotonic() - begun
            memory.append((round(now, 2), round(process.memory_info().rss / 1e6, 1), sum(outcomes.values())))
            if done.wait(max(0.2, min(2.0, now / 200))):
                return

    def client() -> None:
        with httpx.Client(base_url=server.url, timeout=600) as http:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                kind, body = draw(random.Random(f"{seed}/{number}"), number, tokens, side)
                body.setdefault("model", server.name)
                sent = time.monotonic()
                try:
                    outcome = ask(http, kind, body)
                except httpx.HTTPError as error:
                    outcome = f"{type(error).__name__}: {error}"
                with lock:
                    kinds[kind] += 1
                    outcomes[outcome] += 1
                    times.append(time.monotonic() - sent)

    watcher = threading.Thread(target=watch)
    watcher.start()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begun
    done.set()
    watcher.join()
    return {
        "requests": requests,
        "ended_as_they_should": outcomes["ok"],
        "lost": requests - outcomes["ok"],
        "what_went_wrong": {text: count for text, count in outcomes.items() if text != "ok"},
        "kinds": dict(sorted(kinds.items())),
        "seconds": round(seconds, 1),
        "seconds_per_request": {
            "median": round(float(np.median(times)), 3),
            "99th_percentile": round(float(np.percentile(times, 99)), 3),
        },
        "memory": memory,
    }


def growth(memory: list[tuple[float, float, int]], requests: int) -> dict:
    """Return the server's memory in the second and in the last quarter of the requests, in MB."""
    quarter = requests / 4

    def mean(low: float, high: float) -> float:
        return float(np.mean([mb for _, mb, finished in memory if low <= finished <= high]))

    second, last = mean(quarter, 2 * quarter), mean(3 * quarter, requests)
    return {
        "second_quarter_mb": round(second, 1),
        "last_quarter_mb": round(last, 1),
        "growth_percent": round(100 * (last / second - 1), 2),
    }


def plot(result: dict, file: Path) -> None:
    """Draw memory and finished requests over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    seconds, megabytes, finished = zip(*result["memory"], strict=True)
    figure, axis = plt.subplots(figsize=(8, 4))
    axis.plot(seconds, megabytes, color="tab:blue")
    axis.set(xlabel="seconds", ylabel="resident memory of the server, MB", ylim=(0, max(megabytes) * 1.15))
    axis.yaxis.label.set_color("tab:blue")
    other = axis.twinx()
    other.plot(seconds, finished, color="tab:orange")
    other.set(ylabel="finished requests", ylim=(0, None))
    other.yaxis.label.set_color("tab:orange")
    axis.set_title(
        f"{result['requests']:,} requests from {result['clients']} clients, {result['lost']} lost; "
        f"last against second quarter: {result['growth']['growth_percent']:+.1f} % memory",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run a soak and write its result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path, help="a JSON file; the picture gets the same name and .png")
    parser.add_argument("--about", default="", help="what the model is, for the JSON")
    parser.add_argument("--note", default="", help="how the machine was, for the JSON")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24, help="most tokens of an answer")
    parser.add_argument("--side", type=int, default=336, help="of the pictures, in pixels")
    parser.add_argument("--image-cache", type=float, default=0.2, help="GB; small, so that it is full soon")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    server = Server(chosen.model, "--image-cache", str(chosen.image_cache), "--max-new-tokens", "4000")
    try:
        result = soak(server, chosen.requests, chosen.clients, chosen.tokens, chosen.side, chosen.seed)
        wait_for_rest(server.url)
        metrics = httpx.get(f"{server.url}/metrics").text
        status = server.end()
    finally:
        server.process.kill()
    result = {
        "what": "A soak of the server: benchmarks/soak.py",
        "model": chosen.about or chosen.model.name,
        "note": chosen.note,
        "command": " ".join(server.command),
        "clients": chosen.clients,
        "tokens_of_an_answer": chosen.tokens,
        "seed": chosen.seed,
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "growth": growth(result["memory"], chosen.requests),
        "exit_status_after_sigterm": status,
        "lines_at_level_error": [
            line for line in server.log if " is served at " not in line and line != "stopped"
        ],
        "engine": engine_counters(metrics),
        **result,
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    plot(result, chosen.out.with_suffix(".png"))
    lines = json.dumps({**result, "memory": "@"}, indent=1)
    rows = ",\n  ".join(json.dumps(row) for row in result["memory"])
    chosen.out.write_text(lines.replace('"@"', f"[\n  {rows}\n ]") + "\n")
    print({key: result[key] for key in ("lost", "growth", "seconds", "exit_status_after_sigterm")})


def wait_for_rest(url: str) -> None:
    """Wait until nothing runs: what was broken off last takes a step to leave."""
    for _ in range(100):
        counters = engine_counters(httpx.get(f"{url}/metrics").text)
        if counters["running"] == 0 == counters["waiting"]:
            return
        time.sleep(0.1)


def engine_counters(metrics: str) -> dict[str, float]:
    """Return what the server's metrics say of the engine."""
    found = {}
    for line in metrics.splitlines():
        if line.startswith("llavit_engine_"):
            name, _, value = line.removeprefix("llavit_engine_").partition(" ")
            found[name.removesuffix("_total")] = float(value)
    return found


if __name__ == "__main__":
    main()
