"""Options of a request: they do what transformers' do, and what each says."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llavit import Sampling
from llavit.serve.sampling import Sampler
from tests.model.families import IMAGE
from tests.serve.parts import engine_of, generated, picture, user

CONVERSATION = [user(picture(1), "w5 w6 w7")]


@pytest.fixture(scope="module")
def engine():
    with engine_of(gain=2.0) as engine:
        yield engine


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.5},
        {"do_sample": True, "temperature": 3.0, "top_k": 5},
        {"do_sample": True, "top_p": 0.5},
        {"do_sample": True, "temperature": 2.0, "min_p": 0.3},
        {"do_sample": True, "temperature": 1.5, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3},
        {"repetition_penalty": 1.5},
        {"min_new_tokens": 20},
    ],
    ids=str,
)
def test_an_option_gives_the_tokens_that_generate_gives(engine, options):
    plain = {"top_k": 0, "top_p": 1.0, "temperature": 1.0} if options.get("do_sample") else {}
    with engine.exclusive() as model:
        torch.manual_seed(7)
        expected = generated(model, engine.processor, CONVERSATION, 20, **{**plain, **options})
        greedy = generated(model, engine.processor, CONVERSATION, 20)
    answer = engine.answer(CONVERSATION, max_new_tokens=20, seed=7, **options)
    assert list(answer.token_ids) == expected
    assert expected != greedy or "min_new_tokens" in options


def test_a_seed_gives_the_same_answer_alone_and_in_a_batch(engine):
    options = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 16, "seed": 3}
    alone = engine.answer(CONVERSATION, **options)
    noise = [engine.stream("w8 w9", do_sample=True, max_new_tokens=16) for _ in range(2)]
    assert engine.answer(CONVERSATION, **options).token_ids == alone.token_ids
    assert engine.answer(CONVERSATION, **{**options, "seed": 4}).token_ids != alone.token_ids
    for stream in noise:
        stream.result()


def test_without_a_seed_answers_differ(engine):
    options = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 16, "min_new_tokens": 16}
    assert len({engine.answer(CONVERSATION, **options).token_ids for _ in range(4)}) > 1


def test_penalties_of_presence_and_frequency_count_what_the_answer_has(engine):
    options = {"max_new_tokens": 30, "min_new_tokens": 30, "logit_bias": {50: 60.0, 51: 59.0}}
    assert set(engine.answer(CONVERSATION, **options).token_ids) == {50}
    once = engine.answer(CONVERSATION, presence_penalty=30.0, **options).token_ids
    assert once[:2] == (50, 51) and set(once[2:]) == {50}
    even = engine.answer(CONVERSATION, frequency_penalty=30.0, **options).token_ids
    assert even[:4] == (50, 51, 50, 51) or even[:3] == (50, 51, 50)
    assert len(set(even)) > 2


def test_a_bias_forces_and_forbids_a_token_but_never_an_image(engine):
    greedy = engine.answer(CONVERSATION, max_new_tokens=1, min_new_tokens=1).token_ids[0]
    forbidden = engine.answer(CONVERSATION, max_new_tokens=1, min_new_tokens=1, logit_bias={greedy: -100})
    assert forbidden.token_ids[0] != greedy
    image = engine.answer(CONVERSATION, max_new_tokens=5, min_new_tokens=5, logit_bias={IMAGE: 1000})
    assert IMAGE not in image.token_ids


def test_logprobs_are_those_of_a_plain_forward_pass(engine):
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "logprobs": True, "top_logprobs": 3}
    answer = engine.answer(CONVERSATION, temperature=0.5, do_sample=True, seed=1, **options)
    with engine.exclusive() as model, torch.no_grad():
        encoded = engine.processor.encode(CONVERSATION, add_generation_prompt=True)
        ids = torch.cat([encoded["input_ids"], torch.tensor(answer.token_ids)])
        logits = model(input_ids=ids[None], pixel_values=encoded["pixel_values"]).logits[0]
    # Words of this tokenizer have spaces between them; that of a first token is in no text, but is the token's.
    assert "".join(each.token for each in answer.logprobs) == f" {answer.text}"
    rows = logits.log_softmax(-1)[len(encoded["input_ids"]) - 1 : -1]
    for row, token, given in zip(rows, answer.token_ids, answer.logprobs, strict=True):
        assert given.token_id == token
        assert given.token == " " + engine.processor.tokenizer.decode([token])
        assert given.logprob == pytest.approx(float(row[token]), abs=1e-4)
        best = row.topk(3)
        assert [entry[1] for entry in given.top] == best.indices.tolist()
        assert all(text == " " + engine.processor.tokenizer.decode([token]) for text, token, _ in given.top)
        assert [entry[2] for entry in given.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_pieces_carry_the_tokens_and_logprobs_of_the_answer(engine):
    with engine.stream(CONVERSATION, max_new_tokens=9, min_new_tokens=9, logprobs=True) as stream:
        pieces = list(stream)
    answer = stream.result()
    assert "".join(piece.text for piece in pieces) == answer.text == str(answer)
    assert sum((piece.token_ids for piece in pieces), ()) == answer.token_ids
    assert sum((piece.logprobs for piece in pieces), ()) == answer.logprobs
    assert len(answer.logprobs) == 9 and answer.logprobs[0].top == ()


@pytest.mark.parametrize("temperature", [0.001, 1000])
def test_extreme_options_still_give_an_answer(engine, temperature):
    extreme = {
        "repetition_penalty": 1000,
        "presence_penalty": -1000,
        "frequency_penalty": 1000,
        "top_p": 0.001,
    }
    options = {**extreme, "min_p": 1, "top_k": 10**9, "logit_bias": {4: 10000, 5: -10000}, "seed": 2**63 - 1}
    answer = engine.answer("w5", do_sample=True, temperature=temperature, max_new_tokens=5, **options)
    assert answer.finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0}, "temperature=0: expected a number from 0.001 to 1000; .*do_sample=False"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: expected a whole number from 1 up"),
        ({"max_new_tokens": True}, "max_new_tokens=True"),
        ({"min_new_tokens": 300}, r"min_new_tokens=300: .* 0 to 256 \(max_new_tokens\)"),
        ({"top_p": 0}, "top_p=0: expected a number from 0.001 to 1"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"min_p": -0.1}, "min_p=-0.1: expected a number from 0 to 1"),
        ({"top_k": 0}, "top_k=0"),
        ({"repetition_penalty": "2"}, "repetition_penalty='2'"),
        ({"presence_penalty": float("inf")}, "presence_penalty=inf: expected a number"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs=21: expected a whole number from 0 to 20"),
        ({"top_logprobs": 2}, "without logprobs=True"),
        ({"stop": ("",)}, "none of them empty"),
        ({"stop": 3}, "stop=3"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"logit_bias": {5: 1e9}}, "logit_bias.* from -10000 to 10000"),
        ({"do_sample": 1}, "do_sample=1: expected True or False"),
    ],
    ids=str,
)
def test_an_option_that_makes_no_sense_says_what_would(options, said):
    with pytest.raises(ValueError, match=said):
        Sampling(**options)


def test_a_biased_token_must_be_in_the_vocabulary(engine):
    with pytest.raises(ValueError, match="token ids below 100, got 100"):
        engine.submit("w5", sampling=Sampling(logit_bias={100: 1.0}))


def test_a_thousand_biases_cost_a_token_no_more_than_two():
    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.operations += 1
            return function(*args, **(kwargs or {}))

    def operations(count):
        bias = {token: 0.5 for token in range(1, 1 + count)}
        sampler = Sampler(Sampling(logit_bias=bias), [5], [2], "cpu")
        with Count() as counted:
            assert sampler.choose(torch.zeros(2000), torch.tensor([], dtype=torch.long)).token == 1
        return counted.operations

    assert operations(1000) == operations(2)
