"""What int8 weights cost in score and save in memory and time: docs/benchmarks/int8.json.

    llavit eval MODEL -o bf16.json
    llavit export MODEL --to EXPORTED --int8
    llavit eval EXPORTED --baselines none -o int8.json
    python benchmarks/int8.py --scores bf16.json int8.json --memory MODEL --decoding -o docs/benchmarks/int8.json

Each part is measured anew if it is asked for, and otherwise stays as the file has it.

Scores are of the two result files, over the tasks that the second has. Memory is that of a process of its own for
each, after its first answer, over that before loading. Decoding: one token through 30 layers of the starter LLM's
shapes, each way in turn, the median of 15; torchao takes part where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llavit.evaluate.environment import environment
from llavit.evaluate.result import read_result
from llavit.export import export
from llavit.loading import weight_bytes
from llavit.model.quantize import Int8Linear

WIDTH, KEYS, INNER, LAYERS = 576, 192, 1536, 30
RUNS = 15

MEMORY = """
import json, sys, torch
from PIL import Image
from llavit import LlavitForConditionalGeneration
from llavit.loading import load_model
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) * 1024
torch.ones(8, 8) @ torch.ones(8, 8)
before = resident()
model, processor = load_model(sys.argv[1], dtype="bfloat16", device="cpu")
asked = [{"role": "user", "content": [
    {"type": "image", "image": Image.new("RGB", (64, 64), "red")}, {"type": "text", "text": "What is this?"}]}]
encoded = processor.encode(asked, add_generation_prompt=True)
model.generate(input_ids=encoded["input_ids"][None], pixel_values=encoded["pixel_values"].bfloat16(), max_new_tokens=4)
llm = {p.data_ptr(): p.nbytes for part in (model.get_decoder(), model.lm_head) for p in part.parameters()}
print(json.dumps({"resident": resident() - before, "llm": sum(llm.values())}))
"""


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Set the scores of two results side by side, and count answers that stayed the same."""
    tasks = {
        name: {"bfloat16": before["tasks"][name]["score"], "int8": task["score"], "items": task["items"]}
        for name, task in after["tasks"].items()
        if task["fingerprint"] == before["tasks"][name]["fingerprint"]
    }
    pairs = [
        (old["text"] == new["text"], new["score"] - old["score"])
        for name in tasks
        for old, new in zip(
            before["tasks"][name]["predictions"], after["tasks"][name]["predictions"], strict=True
        )
    ]
    means = [sum(task[kind] for task in tasks.values()) / len(tasks) for kind in ("bfloat16", "int8")]
    return {
        "model": {key: before["model"][key] for key in ("parameters", "llm", "visual_tokens")},
        "tasks_of_the_benchmark": f"{len(tasks)} of {len(before['tasks'])}",
        "mean": {"bfloat16": round(means[0], 6), "int8": round(means[1], 6)},
        "points_lost": round(100 * (means[0] - means[1]), 2),
        "answers": len(pairs),
        "same": sum(same for same, _ in pairs),
        "better": sum(change > 0 for _, change in pairs),
        "worse": sum(change < 0 for _, change in pairs),
        "tasks": tasks,
    }


def memory(model: str) -> dict[str, Any]:
    """Export in both types and measure files and processes."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("bfloat16", "int8"):
            place = export(model, Path(folder) / kind, dtype="bfloat16", int8=kind == "int8", scores=[])
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", MEMORY, str(place)],
                check=True,
                capture_output=True,
                text=True,
            )
            found[kind] = {"file": weight_bytes(place), **json.loads(done.stdout.splitlines()[-1])}
    return found


class Layer(nn.Module):
    """The matrix products of a layer, without attention's own work."""

    def __init__(self, make: Callable[[int, int], nn.Module]):
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH, dtype=torch.bfloat16)
        self.q, self.k, self.v = make(WIDTH, WIDTH), make(WIDTH, KEYS), make(WIDTH, KEYS)
        self.o, self.down = make(WIDTH, WIDTH), make(INNER, WIDTH)
        self.gate, self.up = make(WIDTH, INNER), make(WIDTH, INNER)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute (1, WIDTH) -> (1, WIDTH)."""
        y = self.norm(x)
        x = x + self.o(self.q(y) + (self.k(y) + self.v(y)).repeat(1, WIDTH // KEYS))
        y = self.norm(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Plain(Int8Linear):
    """Without torch's kernel: the weight is made bfloat16 for each product."""

    def _suits_kernel(self) -> bool:
        return False


def _linear(width: int, outputs: int) -> nn.Linear:
    return nn.Linear(width, outputs, bias=False, dtype=torch.bfloat16)


def decoding(threads: int) -> dict[str, Any]:
    """Milliseconds a token, by way, eager and compiled layer by layer."""
    torch.set_num_threads(threads)
    stacks = {
        "bfloat16": nn.ModuleList(Layer(_linear) for _ in range(LAYERS)),
        "int8, kernel": nn.ModuleList(
            Layer(lambda *size: Int8Linear.from_float(_linear(*size))) for _ in range(LAYERS)
        ),
        "int8, plain": nn.ModuleList(
            Layer(lambda *size: Plain.from_float(_linear(*size))) for _ in range(LAYERS)
        ),
    }
    if importlib.util.find_spec("torchao"):
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        stacks["int8, torchao"] = nn.ModuleList(Layer(_linear) for _ in range(LAYERS))
        quantize_(stacks["int8, torchao"], Int8WeightOnlyConfig(version=2))
    x = torch.randn(1, WIDTH).bfloat16()

    def token(stack: nn.ModuleList) -> None:
        y = x
        for layer in stack:
            y = layer(y)

    found: dict[str, Any] = {"threads": threads, "layers": LAYERS}
    with torch.no_grad():
        for mode in ("eager", "compiled"):
            times: dict[str, list[float]] = {name: [] for name in stacks}
            for stack in stacks.values():
                if mode == "compiled":
                    for layer in stack:
                        layer.compile(dynamic=False)
                token(stack)
            for _ in range(RUNS):
                for name, stack in stacks.items():
                    token(stack)
                    start = time.perf_counter()
                    token(stack)
                    times[name].append(1e3 * (time.perf_counter() - start))
            found[mode] = {name: round(sorted(each)[RUNS // 2], 2) for name, each in times.items()}
    return found


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--scores", nargs=2, metavar="RESULT", help="of the model in bfloat16, and of it in int8"
    )
    parser.add_argument("--memory", metavar="MODEL", help="folder of the model in floating point")
    parser.add_argument("--decoding", action="store_true")
    parser.add_argument("--threads", type=int, default=1, help="for decoding")
    parser.add_argument("-o", "--output", type=Path, required=True)
    wanted = parser.parse_args()
    found = json.loads(wanted.output.read_text()) if wanted.output.is_file() else {}
    found["how"] = (__doc__ or "").strip()
    if wanted.scores:
        found["scores"] = compare(*map(read_result, wanted.scores))
    if wanted.memory:
        found["bytes"] = memory(wanted.memory)
    if wanted.decoding:
        found["milliseconds_per_token"] = decoding(wanted.threads)
    found["environment"] = environment()
    wanted.output.write_text(json.dumps(found, indent=1) + "\n")
    print(wanted.output)


if __name__ == "__main__":
    main()
