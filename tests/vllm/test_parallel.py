"""Two processes, each with a part of every layer, or with some of the layers."""

import pytest

from tests.vllm.engines import Job, run
from tests.vllm.parts import CASES, difference
from tests.vllm.test_answers import SAME

WAYS = {
    "tensor": {"tensor_parallel_size": 2},
    # vLLM's CPU worker makes the buffers between the processes only where it warms up to compile.
    "pipeline": {"pipeline_parallel_size": 2, "enforce_eager": False},
}


@pytest.fixture(scope="module")
def results(folders, tmp_path_factory):
    jobs = [Job(way, folders["llavit"], options=options) for way, options in WAYS.items()]
    return run(jobs, tmp_path_factory.mktemp("answers"), VLLM_CPU_OMP_THREADS_BIND="0|1")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_are_those_of_transformers(results, references, way, case):
    assert not isinstance(results[way], str), results[way]
    mine = results[way].answers[0][list(CASES).index(case)]
    theirs = references["llavit"].answer(CASES[case], mine.generated)
    assert difference(mine, theirs) < SAME
    assert mine.generated == theirs.generated
