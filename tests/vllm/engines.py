"""Engines of vLLM's and what they are asked, in another process (`worker.py`)."""

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.vllm.parts import CASES, Answer, Case

OPTIONS = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,  # the least of vLLM's CPU kernels
    "max_model_len": 256,
    "max_num_seqs": 8,
    "limit_mm_per_prompt": {"image": 2},
    "disable_log_stats": True,
    "kv_cache_memory_bytes": 1 << 26,
}

ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass
class Batch:
    """Prompts that an engine gets at once.

    Attributes:
        prompts: a case, or token ids.
        prompt_logprobs: ask for them; vLLM then passes over its prefix cache.
        max_tokens: to generate.
    """

    prompts: list[Case | list[int]]
    prompt_logprobs: bool = False
    max_tokens: int = 6


@dataclass
class Job:
    """An engine and what it is asked.

    Attributes:
        whole_images: False takes our part of the scheduler out, to show what vLLM's own does.
    """

    name: str
    folder: Path
    batches: list[Batch] = field(default_factory=lambda: [Batch(list(CASES.values()), prompt_logprobs=True)])
    options: dict[str, Any] = field(default_factory=dict)
    whole_images: bool = True


@dataclass
class Result:
    """Answers by batch, and how many tokens of each prompt came from the prefix cache."""

    answers: list[list[Answer]]
    cached: list[list[int]]


def run(jobs: list[Job], folder: Path, **environment: str) -> dict[str, Result | str]:
    """Run engines in another process; gives results, or the error's text, by the job's name.

    Args:
        jobs: run one after the other.
        folder: for files.
        **environment: of the process, beside `ENVIRONMENT`.
    """
    asked, given = folder / "jobs.pickle", folder / "answers.pickle"
    asked.write_bytes(pickle.dumps(jobs))
    command = [sys.executable, "-m", "tests.vllm.worker", str(asked), str(given)]
    variables = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **environment}
    subprocess.run(command, env=variables, check=True)
    return pickle.loads(given.read_bytes())
