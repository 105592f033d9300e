"""Real weights: the engine's answers are those of generate, and its figures hold where they do not depend on speed."""

import pytest
import torch

from llavit import Engine, build_llavit
from llavit.starter.weights import starter_llm, starter_tower
from tests.serve.parts import generated, picture, user

NEW = 24


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    model, processor = build_llavit(
        starter_tower(), starter_llm(), vision_feature_layer=[4, 8, -2], image_size=84, dtype=torch.float32
    )
    return model.eval(), processor


@pytest.mark.slow  # two dozen tokens of a 135M model, four times over
def test_cached_or_not_together_or_alone_answers_are_those_of_generate(parts):
    model, processor = parts
    conversations = [
        [user("What is the capital of France?")],
        [user(picture(1), "Describe the picture.")],
        [user(picture(1), "Which colours do you see, and where?")],
        [user(picture(2), picture(1), "What is the difference?")],
    ]
    suppressed = {"suppress_tokens": [model.config.image_token_id]}
    expected = [generated(model, processor, each, NEW, **suppressed) for each in conversations]
    assert len({tuple(answer) for answer in expected}) == 4
    with Engine(model, processor, max_batch=4) as engine:
        together = engine.answer_many(conversations, max_new_tokens=NEW)
        assert [list(answer.token_ids) for answer in together] == expected
        assert "Paris" in together[0].text
        alone = [engine.answer(each, max_new_tokens=NEW) for each in conversations]
        assert [list(answer.token_ids) for answer in alone] == expected
        assert all(answer.cached_tokens == answer.prompt_tokens - 1 for answer in alone)
        assert len({answer.text for answer in alone}) == 4
