"""The process of a side: `python -m benchmarks.speed.worker SIDE JSON`, started by `channel.Side`."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import traceback

from benchmarks.speed.channel import Channel

SIDES = {
    "train_ours": "benchmarks.speed.train_ours",
    "train_peer": "benchmarks.speed.train_peer",
    "train_nano": "benchmarks.speed.train_nano",
    "answer_ours": "benchmarks.speed.answer_ours",
    "answer_peer": "benchmarks.speed.answer_peer",
    "scaling": "benchmarks.speed.scaling",
    "limits": "benchmarks.speed.limits",
}
"""Name to module; each has a function `side(spec, channel)`."""


def main(side: str, spec: str) -> None:
    """Run a side until it is told to stop; an error goes to the harness."""
    logging.basicConfig(level=logging.INFO)
    for noisy in ("httpx", "filelock", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    channel = Channel(talks=os.environ.get("RANK", "0") == "0")
    try:
        import torch

        if threads := os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(int(threads))
        importlib.import_module(SIDES[side]).side(json.loads(spec), channel)
    except Exception as error:
        traceback.print_exc()
        channel.send(error=f"{type(error).__name__}: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
