"""Evaluation and inspection on a GPU that is pretended."""

import numpy as np
import torch

from llavit.evaluate.engine import Engine
from llavit.evaluate.stretches import Prompt
from llavit.inspect import (
    Block,
    attention_maps,
    attention_mask,
    attention_rollout,
    knockout,
    patch_pca,
    qkv_drift,
    token_statistics,
    vocabulary_lens,
)
from tests.model.families import IMAGE, PATCHES, pixels, tiny
from tests.pretend_gpu import move, pretend_gpu
from tests.serve.parts import picture, processor, user


@torch.no_grad()
def test_an_evaluation_on_a_gpu_is_that_on_a_cpu_and_reads_all_likelihoods_of_a_batch_at_once():
    def answers(model):
        features = model.model.encode_images(pixels(2))
        image = [IMAGE] * PATCHES
        prompts = [
            Prompt([3, 4, *image, 5, 6], [features[0]], ["a"], IMAGE),
            Prompt([3, 4, *image, 5, 7, 8], [features[0]], ["a"], IMAGE),
            Prompt([3, *image, 5, 7, 8], [features[1]], ["b"], IMAGE),
        ]
        engine = Engine(model, 0, batch_size=8, least_shared=2)
        options = [[[5], [6, 7]], [[5, 6, 8], [6, 7]], [[5, 6, 8], [6, 7]]]
        # without their own inference mode, in which torch refuses to pretend
        written = Engine.generate.__wrapped__(engine, prompts, max_new_tokens=3)
        return written, Engine.likelihoods.__wrapped__(engine, prompts, options)

    expected = answers(tiny("llama"))
    with pretend_gpu() as pretence:
        written, likelihoods = answers(move(tiny("llama")))
    assert written == expected[0]
    np.testing.assert_allclose(np.concatenate(likelihoods), np.concatenate(expected[1]), rtol=1e-4)
    assert sum(count for line, count in pretence.waits.items() if "x[" in line) == 2


@torch.no_grad()
def test_inspections_run_on_a_gpu():
    words, messages = processor(), [user(picture(1), "w5 w6")]
    with pretend_gpu():
        model = move(tiny("llama"))
        encoded = words.encode(messages, add_generation_prompt=True)
        looks = [
            lambda: attention_mask(model, words, messages),
            lambda: attention_maps(model, words, messages, max_new_tokens=2, keep_all=True),
            lambda: attention_rollout(model, encoded),
            lambda: patch_pca(model, words, [picture(1), picture(2)]),
            lambda: qkv_drift(model),
            lambda: token_statistics(model, words, [messages]),
            lambda: vocabulary_lens(model, words, messages, k=2, whole_words=False),
        ]
        for look in looks:
            assert look() is not None
        with knockout(model, Block("visual_to_visual"), Block("visual_v", [0])):
            model.generate(
                input_ids=encoded["input_ids"][None].to(model.device),
                pixel_values=encoded["pixel_values"].to(model.device),
                max_new_tokens=2,
            )
