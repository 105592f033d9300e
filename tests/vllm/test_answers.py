"""vLLM answers as transformers does, to the log-probability."""

import pytest

from tests.vllm.engines import Job, run
from tests.vllm.parts import CASES, Reference, difference

SAME = 1e-4
"""Of log-probabilities in float32; kernels that sum in another order make 1e-5 here."""

ENGINES = ("llavit", "visual QKV only", "bidirectional only", "llava", "compiled")


@pytest.fixture(scope="module")
def results(folders, tmp_path_factory):
    jobs = [Job(name, folders[name]) for name in ENGINES if name != "compiled"]
    jobs.append(Job("compiled", folders["llavit"], options={"enforce_eager": False}))
    return run(jobs, tmp_path_factory.mktemp("answers"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_are_those_of_transformers(results, references, engine, case):
    assert not isinstance(results[engine], str), results[engine]
    mine = results[engine].answers[0][list(CASES).index(case)]
    theirs = references["llavit" if engine == "compiled" else engine].answer(CASES[case], mine.generated)
    assert len(mine.prompt_logprobs) == len(mine.prompt) - 1 and len(mine.generated_logprobs) == 6
    assert difference(mine, theirs) < SAME
    assert mine.generated == theirs.generated


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.pictures])
def test_without_one_of_the_changes_they_differ(results, folders, case):
    """The equalities have teeth: the same weights without routing, or with a causal mask, say something else."""
    mine = results["llavit"].answers[0][list(CASES).index(case)]
    causal = Reference(folders["llavit"], bidirectional_visual_attention=False)
    assert difference(mine, causal.answer(CASES[case], mine.generated)) > 100 * SAME
    unrouted = Reference(folders["llavit"]).without_routing()
    assert difference(mine, unrouted.answer(CASES[case], mine.generated)) > 100 * SAME


def test_each_state_of_the_switches_gives_its_own_answers(results):
    first = [results[engine].answers[0][0].generated_logprobs for engine in ENGINES if engine != "compiled"]
    for i, one in enumerate(first):
        for other in first[:i]:
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 100 * SAME
