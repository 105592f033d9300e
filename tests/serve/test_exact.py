"""The engine answers what the model answers: as transformers' generate, cached or not, alone or in a batch."""

import pytest

from tests.model.families import LLMS
from tests.serve.parts import engine_of, generated, picture, user

NEW = 8
SWITCHES = {
    "llavit": {},
    "llava": {"visual_qkv": False, "bidirectional_visual_attention": False},
    "qkv only": {"bidirectional_visual_attention": False},
    "mask only": {"visual_qkv": False},
}
CONVERSATIONS = [
    [user(picture(1), "w5 w6 w7")],
    [user("w9 w8")],  # text only
    [user(picture(2), picture(3), "w20")],  # adjacent images
    [user("w30 w31 w32 w33 w34 w35", picture(1), "w11", picture(4), "w12 w13")],
    [user(picture(1), "w5 w6"), {"role": "assistant", "content": "w40 w41"}, user("w7", picture(5))],
    [user("w50 w51 w52 w53")],
    [user("w3 w60 w61 w20 w77")],
]


def asked(engine, conversations, **options):
    return [
        list(answer.token_ids) for answer in engine.answer_many(conversations, max_new_tokens=NEW, **options)
    ]


@pytest.mark.parametrize(
    ("llm", "switches"),
    [
        pytest.param(llm, name, marks=() if llm == "llama" or "only" not in name else pytest.mark.slow)
        for llm in LLMS
        for name in SWITCHES
    ],
)
def test_a_batch_of_uneven_rows_answers_as_generate_does_row_by_row_and_again_from_the_cache(llm, switches):
    with engine_of(llm, **SWITCHES[switches]) as engine:
        expected = [generated(engine.model, engine.processor, each, NEW) for each in CONVERSATIONS]
        assert len({tuple(answer) for answer in expected}) > 2
        assert asked(engine, CONVERSATIONS) == expected
        before = engine.stats()
        assert asked(engine, CONVERSATIONS[::-1]) == expected[::-1]
        after = engine.stats()
        assert after.image_cache_misses == before.image_cache_misses
        assert after.image_cache_hits > before.image_cache_hits


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_without_a_cache_answers_are_the_same(backend):
    with engine_of(backend=backend, options={"image_cache_bytes": 0, "max_batch": 2}) as engine:
        expected = [generated(engine.model, engine.processor, each, NEW) for each in CONVERSATIONS]
        assert asked(engine, CONVERSATIONS) == expected
        assert engine.stats().cached_tokens == 0
