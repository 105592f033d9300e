"""Runs vLLM in a process of its own, engine after engine: importing it takes longer than starting one.

    python -m tests.vllm.engines JOBS ANSWERS      two pickles: a list of `Job`, and answers or the error by name

transformers' classes are changed there (vLLM marks decoders for torch.compile), so references are made elsewhere.
"""

import gc
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.vllm.parts import CASES, Answer, Case, answer_of

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
    """Run engines in another process; gives results, or the error's text, by the job's name."""
    asked, given = folder / "jobs.pickle", folder / "answers.pickle"
    asked.write_bytes(pickle.dumps(jobs))
    command = [sys.executable, "-m", "tests.vllm.engines", str(asked), str(given)]
    variables = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **environment}
    subprocess.run(command, env=variables, check=True)
    return pickle.loads(given.read_bytes())


def answer(job: Job) -> Result:
    """Start an engine, ask it, stop it."""
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(str(job.folder), **{**OPTIONS, **job.options})
    result = Result([], [])
    try:
        for batch in job.batches:
            sampling = SamplingParams(
                max_tokens=batch.max_tokens,
                temperature=0,
                logprobs=0,
                prompt_logprobs=0 if batch.prompt_logprobs else None,
                ignore_eos=True,
            )
            requests = [
                p.request() if isinstance(p, Case) else {"prompt_token_ids": p} for p in batch.prompts
            ]
            outputs = llm.generate(requests, sampling, use_tqdm=False)
            result.answers.append([answer_of(output) for output in outputs])
            result.cached.append([output.num_cached_tokens for output in outputs])
    finally:
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()
    return result


@contextmanager
def _vllms_own_scheduler() -> Iterator[None]:
    from llavit.serve.vllm.inside import scheduler

    mine, scheduler.whole_images = scheduler.whole_images, lambda images, computed, new: new
    try:
        yield
    finally:
        scheduler.whole_images = mine


def main(asked: str, given: str) -> None:
    """Answer all jobs; an error of one is its answer."""
    results: dict[str, Result | str] = {}
    for job in pickle.loads(Path(asked).read_bytes()):
        try:
            with nullcontext() if job.whole_images else _vllms_own_scheduler():
                results[job.name] = answer(job)
        except Exception:
            results[job.name] = traceback.format_exc()
        gc.collect()  # an engine that failed hangs on to the traceback until here
    Path(given).write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
