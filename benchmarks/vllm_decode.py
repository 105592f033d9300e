"""What separate QKV cost in decode steps on vLLM: LLaVA, LLaViT, and LLaViT that projects every token twice.

    .venv-vllm/bin/python -m benchmarks.vllm_decode docs/serving/vllm_decode.json

Random weights, float32. Engines run in one process, one after the other and then in the opposite order, so that a drift
of the machine falls on all alike. A decode step's time is that of answers of many tokens less that of answers of one,
over the steps between; the median of the repeats counts. The third model is LLaViT with both projections
computed for all tokens, as a choice by mask inside the graph would.
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from llavit.evaluate.environment import environment
from tests.tiny import tokenizer
from tests.vllm.parts import LLAVA, save_tiny

LLM = dict(
    hidden_size=576,  # SmolLM2-135M's layers, a third of them
    intermediate_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    num_hidden_layers=10,
    max_position_embeddings=512,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
CHATS, TOKENS = 8, 65


@contextmanager
def projecting_all_tokens():
    """Let every token go through both projections, whatever it is."""
    import torch

    from llavit.serve.vllm.inside import model, projection

    forward = model.LlavitForConditionalGeneration.forward

    def project_all(self, input_ids, *args, **kwargs):
        everyone = torch.ones(len(input_ids), dtype=torch.bool)
        model.set_visual_rows = lambda visual, device: projection.set_visual_rows(everyone, device)
        return forward(self, input_ids, *args, **kwargs)

    model.LlavitForConditionalGeneration.forward = project_all
    try:
        yield
    finally:
        model.LlavitForConditionalGeneration.forward = forward
        model.set_visual_rows = projection.set_visual_rows


def seconds(engine: Any, tokens: int) -> float:
    """Return how long answers of so many tokens take."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    prompts = [{"prompt_token_ids": [5 + chat] * 16} for chat in range(CHATS)]
    start = time.perf_counter()
    engine.generate(prompts, sampling, use_tqdm=False)
    return time.perf_counter() - start


def milliseconds(folder: Path, eager: bool, repeats: int) -> list[float]:
    """Return how long a decode step takes, by repeat."""
    from vllm import LLM as Engine
    from vllm.distributed import cleanup_dist_env_and_memory

    engine = Engine(str(folder), dtype="float32", max_model_len=256, enforce_eager=eager)
    seconds(engine, TOKENS)
    found = [1000 * (seconds(engine, TOKENS) - seconds(engine, 1)) / (TOKENS - 1) for _ in range(repeats)]
    del engine
    gc.collect()
    cleanup_dist_env_and_memory()
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    with tempfile.TemporaryDirectory() as scratch:
        config = LlamaConfig(vocab_size=len(tokenizer()), **LLM)
        llavit = save_tiny(Path(scratch) / "llavit", config)
        llava = save_tiny(Path(scratch) / "llava", config, **LLAVA)
        models = {
            "LLaVA": (llava, nullcontext),
            "LLaViT": (llavit, nullcontext),
            "LLaViT, both projections of all tokens": (llavit, projecting_all_tokens),
        }
        times: dict[str, list[float]] = {name: [] for name in models}
        for name in [*models, *reversed(models)]:
            folder, patch = models[name]
            with patch():
                times[name] += milliseconds(folder, not options.compile, options.repeats)
    result = {
        "what": "milliseconds of a decode step on vLLM: benchmarks/vllm_decode.py",
        "model": "random weights in float32: 10 layers of SmolLM2-135M's size, 259 words",
        "step": f"{CHATS} chats, one token each, {'compiled' if options.compile else 'eager'}",
        "medians": {name: round(statistics.median(found), 2) for name, found in times.items()},
        "times": {name: [round(one, 2) for one in found] for name, found in times.items()},
        "environment": environment(),
        "date": time.strftime("%Y-%m-%d"),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["medians"], indent=1))


if __name__ == "__main__":
    main()
