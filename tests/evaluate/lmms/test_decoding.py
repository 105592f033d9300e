"""lmms-eval's generation_kwargs, and where an answer ends."""

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteriaList

from llavit.evaluate.lmms.decoding import MAX_NEW_TOKENS, Decoding, EndsAt, cut, ended
from tests.tiny import tokenizer


def test_what_the_papers_tasks_state_is_greedy():
    stated = [
        {
            "max_new_tokens": 16,
            "temperature": 0,
            "top_p": 1.0,
            "num_beams": 1,
            "do_sample": False,
            "until": ["\n\n"],
        },
        {"until": ["ASSISTANT:"], "image_aspect_ratio": "original"},
        {"max_new_tokens": 128, "until": ["\n\n"]},
        {"until": None, "do_sample": False},
    ]
    made = [Decoding.of(kwargs) for kwargs in stated]
    assert [one.sampling for one in made] == [()] * 4
    assert [one.max_new_tokens for one in made] == [16, MAX_NEW_TOKENS, 128, MAX_NEW_TOKENS]
    assert [one.until for one in made] == [("\n\n",), ("ASSISTANT:",), ("\n\n",), ()]


def test_a_temperature_draws_unless_sampling_is_off():
    assert dict(Decoding.of({"temperature": 0.7, "top_p": 0.9}).sampling) == {
        "temperature": 0.7,
        "top_p": 0.9,
    }
    assert Decoding.of({"temperature": 0.7, "do_sample": False}).sampling == ()
    assert Decoding.of({"temperature": 0.0, "do_sample": True}).sampling == ()


def test_equal_settings_are_equal_whatever_their_order():
    one = Decoding.of({"until": "x", "max_new_tokens": 4, "repetition_penalty": 1.1})
    assert one == Decoding.of({"repetition_penalty": 1.1, "max_new_tokens": 4, "until": ["x"]})
    assert len({one, Decoding.of({"until": "x", "max_new_tokens": 5})}) == 2


def test_what_means_nothing_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"mmvp: generation_kwargs \['max_tokns'\] are not known"):
        Decoding.of({"max_tokns": 5}, "mmvp")
    with pytest.raises(ValueError, match="expected `until` to be strings"):
        Decoding.of({"until": [""]})


def test_generate_takes_the_arguments():
    for kwargs in ({}, {"temperature": 0.5, "top_k": 5}, {"num_beams": 2, "length_penalty": 0.5}):
        arguments = Decoding.of(kwargs).arguments()
        GenerationConfig().update(**arguments)
        assert set(arguments) <= set(GenerationConfig().to_dict()), arguments


def test_an_answer_ends_before_its_first_stop_string():
    assert cut(" A cat.\n\nIt sits", ["sits", "\n\n"]) == "A cat."
    assert cut("no stop", ["\n\n"]) == "no stop"
    assert cut("ASSISTANT: late", ["ASSISTANT:"]) == ""


def test_an_empty_line_before_the_answer_does_not_end_it():
    assert cut("\n\n\n\nB", ["\n\n"]) == "B"
    assert not ended("\n\n", ["\n\n"]) and not ended("\n\nB", ["\n\n"]) and ended("\n\nB\n\n", ["\n\n"])


def test_each_row_of_a_batch_ends_by_itself():
    words = tokenizer()
    rows = [words.encode(text, add_special_tokens=False) for text in ("ab;;cdST", "ab;;cdxx")]
    criteria = StoppingCriteriaList([EndsAt(words, 2, ["ST", "ab"])])  # "ab" is in the prompts only
    assert criteria(torch.tensor(rows), None).tolist() == [True, False]
