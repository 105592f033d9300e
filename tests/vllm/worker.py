"""Runs vLLM in a process of its own, engine after engine: importing it takes longer than starting one.

    python -m tests.vllm.worker JOBS ANSWERS      two pickles: a list of `Job`, and answers or the error by name

transformers' classes are changed here (vLLM marks decoders for torch.compile), so references are made elsewhere.
"""

import gc
import pickle
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tests.vllm.engines import OPTIONS, Job, Result
from tests.vllm.parts import Case, answer_of


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
