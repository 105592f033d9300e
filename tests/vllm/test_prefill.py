"""Chunked prefill and the prefix cache never cut an image, and change no answer."""

import pytest

from tests.vllm.engines import Batch, Job, run
from tests.vllm.parts import CASES, PATCHES, Case, difference
from tests.vllm.test_answers import SAME

BLOCK, BUDGET = 32, 40
TWO = CASES["two images in text"]
SHORT = BUDGET - 3
"""Tokens of the last chunk of a filler; three are left to whoever comes next."""


def filler(seed: int) -> list[int]:
    """A text that ends in a chunk of `SHORT` tokens."""
    return [3 + (seed * 7 + i * 11) % 200 for i in range(4 * BUDGET + SHORT)]


FRESH = Case("<image> first of all", [8])

BATCHES = {
    "chunks": Batch(list(CASES.values()), prompt_logprobs=True),  # without the prefix cache
    "one by one": Batch([TWO]),
    "again": Batch(list(CASES.values())),
    "hit inside an image": Batch([filler(1), TWO]),
    "image first": Batch([filler(2), FRESH]),
}


@pytest.fixture(scope="module")
def results(folders, tmp_path_factory):
    options = {"max_num_batched_tokens": BUDGET, "enable_prefix_caching": True, "max_model_len": 240}
    jobs = [Job("llavit", folders["llavit"], list(BATCHES.values()), options)]
    for name in ("hit inside an image", "image first"):
        batches = [BATCHES["one by one"], BATCHES[name]]
        jobs.append(Job(name, folders["llavit"], batches, options, whole_images=False))
    return run(jobs, tmp_path_factory.mktemp("answers"))


@pytest.mark.parametrize("batch", BATCHES)
def test_log_probabilities_are_those_of_transformers(results, references, batch):
    assert not isinstance(results["llavit"], str), results["llavit"]
    answers = results["llavit"].answers[list(BATCHES).index(batch)]
    for case, mine in zip(BATCHES[batch].prompts, answers, strict=True):
        if isinstance(case, Case):
            theirs = references["llavit"].answer(case, mine.generated)
            assert difference(mine, theirs) < SAME
            assert mine.generated == theirs.generated


def test_the_cases_are_what_they_are_called(results, references):
    """Chunks are shorter than prompts, and the prefix cache ends inside the second image."""
    cached = dict(zip(BATCHES, results["llavit"].cached, strict=True))
    prompt = results["llavit"].answers[1][0].prompt
    images = [
        i for i, token in enumerate(prompt) if token == references["llavit"].model.config.image_token_id
    ]
    assert len(prompt) > BUDGET
    assert cached["chunks"] == [0] * len(CASES)
    assert cached["one by one"] == [2 * BLOCK] and cached["hit inside an image"][1] == 2 * BLOCK
    assert images[PATCHES] < 2 * BLOCK < images[-1]
    assert all(cached["again"])
    assert references["llavit"].answer(FRESH, [5]).prompt[:PATCHES] == [prompt[images[0]]] * PATCHES


@pytest.mark.parametrize("batch", ["hit inside an image", "image first"])
def test_vllms_own_scheduler_would_cut_the_image(results, batch):
    """Both faults are there without our part of the scheduler, and then an error and not a wrong answer."""
    assert isinstance(results[batch], str)
    assert "is cut at" in results[batch] and "by chunked prefill" in results[batch]
