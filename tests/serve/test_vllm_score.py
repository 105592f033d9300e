"""The starter model end to end: its benchmark's score through vLLM's server is ours, question by question.

vLLM has an environment of its own: `make test-vllm` makes it and names its folder in VLLM.
"""

import os

import pytest
import torch

from benchmarks.served_score import scores
from llavit import build_llavit

VLLM = os.environ.get("VLLM", "")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not VLLM, reason="vLLM has an environment of its own: make test-vllm"),
]

TASKS = "mini-pope,mini-gqa,mini-ocrbench"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    from llavit.starter.bench.build import build_bench

    folder = tmp_path_factory.mktemp("bench")
    build_bench(folder, TASKS, items=4, workers=1)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """SmolLM2-135M and the starter's tower as LLaViT; its visual QKV are random, so that routing shows."""
    from llavit.starter.weights import starter_llm, starter_tower

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "starter"
    built = build_llavit(
        starter_tower(),
        starter_llm(),
        vision_feature_layer=[4, 8, 11],
        visual_qkv_start="random",
        image_size=84,
    )
    built.model.float().save_pretrained(folder)
    built.processor.save_pretrained(folder)
    return folder


def test_the_starters_score_through_vllm_is_ours_question_by_question(model, bench):
    found = scores(model, VLLM, bench, TASKS, options=("--block-size", "32"))
    assert found["differences"] == [] and found["alike"] == found["questions"] == 12
    assert found["different_texts"] >= 4  # else anything would be alike
    for task in found["tasks"].values():
        assert task["here"] == task["there"]
