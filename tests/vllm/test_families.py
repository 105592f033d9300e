"""Every LLM family and every vision tower of the conformance suite."""

import pytest

from tests.model import families as conformance
from tests.vllm.engines import Job, run
from tests.vllm.families import LLMS
from tests.vllm.parts import CASES, TOWERS, Reference, difference, save_tiny
from tests.vllm.test_answers import SAME

OTHER_TOWERS = [tower for tower in TOWERS if tower != "clip"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    parent = tmp_path_factory.mktemp("families")
    llms = {name: save_tiny(parent / name, make()) for name, make in LLMS.items()}
    return llms | {tower: save_tiny(parent / tower, tower=tower) for tower in OTHER_TOWERS}


@pytest.fixture(scope="module")
def results(models, tmp_path_factory):
    return run([Job(name, folder) for name, folder in models.items()], tmp_path_factory.mktemp("answers"))


def test_all_families_of_the_conformance_suite_are_here():
    assert list(LLMS) == list(conformance.LLMS) and list(TOWERS) == list(conformance.TOWERS)


@pytest.mark.parametrize("part", [*LLMS, *OTHER_TOWERS])
def test_log_probabilities_are_those_of_transformers(models, results, part):
    assert not isinstance(results[part], str), results[part]
    reference = Reference(models[part])
    for case, mine in zip(CASES.values(), results[part].answers[0], strict=True):
        theirs = reference.answer(case, mine.generated)
        assert difference(mine, theirs) < SAME
        assert mine.generated == theirs.generated
    first = results[part].answers[0][0]
    case = next(iter(CASES.values()))
    assert difference(first, reference.without_routing().answer(case, first.generated)) > 10 * SAME
    causal = Reference(models[part], bidirectional_visual_attention=False)
    assert difference(first, causal.answer(case, first.generated)) > 10 * SAME
