"""What a model is, as one number."""

import pytest
import torch

from llavit.evaluate.fingerprint import model_fingerprint


def another_end(model, processor):
    model.generation_config.eos_token_id = [model.generation_config.eos_token_id, 9]


def another_suppressed(model, processor):
    model.generation_config.suppress_tokens = [*model.generation_config.suppress_tokens, 9]


def another_weight(model, processor):
    model.lm_head.weight.data[3, 3] += 1


def another_mask(model, processor):
    model.config.bidirectional_visual_attention = False


def another_template(model, processor):
    processor.chat_template += " "


def another_dtype(model, processor):
    model.to(torch.bfloat16)


@pytest.mark.parametrize(
    "change",
    [another_end, another_suppressed, another_weight, another_mask, another_template, another_dtype],
    ids=lambda change: change.__name__,
)
def test_whatever_changes_answers_changes_it(tiny, change):
    parts = tiny.build()
    before = model_fingerprint(*parts)
    assert model_fingerprint(*parts) == before
    change(*parts)
    assert model_fingerprint(*parts) != before


def test_how_tokens_are_chosen_and_where_it_lies_do_not(tiny, tmp_path):
    model, processor = tiny.build()
    before = model_fingerprint(model, processor)
    model.generation_config.max_new_tokens = 7
    model.generation_config.suppress_tokens.append(model.config.image_token_id)  # never generated anyway
    model.config._name_or_path = str(tmp_path)
    assert model_fingerprint(model, processor) == before
