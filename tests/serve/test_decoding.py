"""Compiled decoding: the same answers as the plain step, for any number of rows and positions."""

import logging
from types import SimpleNamespace

import pytest
import torch

from llavit.serve.decoding import CompiledDecode, packed_attention
from llavit.serve.graph import MOST_COPIED, copying_weights
from llavit.serve.runner import Runner
from tests.model.families import LLMS, tiny
from tests.serve.parts import engine_of, picture, user

WORKS = pytest.mark.usefixtures("compiler")


def test_packed_heads_attend_as_repeated_keys_do():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 1, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, 5, 8, generator=generator)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]).bool()[:, None, None]
    plain = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(3, 1), value.repeat_interleave(3, 1), attn_mask=mask, scale=0.3
    )
    packed, _ = packed_attention(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(packed, plain.transpose(1, 2))


EVERY_LENGTH = ((1, 6), (2, 20), (3, 70), (1, 70))
"""Rows, and the length of the first one: 64 positions are looked at, or 128."""


def compare_steps(llm: str, cases=EVERY_LENGTH, layers: int | None = None) -> None:
    """Run the plain step and the compiled one behind the same prompts."""
    torch._dynamo.reset()
    model = tiny(llm, layers=layers)
    runner = Runner(model, max_batch=3)
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        step = CompiledDecode(model, runner.kinds, runner.slots)
        for rows, length in cases:
            for row in range(rows):
                ids = torch.randint(3, 90, (length - row,), generator=generator).tolist()
                runner.prefill(row, ids, torch.full((len(ids),), -1))
            tokens = torch.randint(3, 90, (rows,), generator=generator)
            positions = torch.tensor([length - row for row in range(rows)])
            window = min(-(-(length + 1) // 64) * 64, runner.max_length)
            plain = runner._decode_eager(tokens, positions, window)
            compiled = step(tokens, positions, window)
            # The plain step wrote the same keys and values before, so both see the same context.
            torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
            assert model.get_decoder().config._attn_implementation in ("sdpa", "eager")


@WORKS
@pytest.mark.parametrize("most_copied", [MOST_COPIED, 0])
def test_a_compiled_step_gives_the_logits_of_the_plain_one(monkeypatch, most_copied):
    monkeypatch.setattr("llavit.serve.graph.MOST_COPIED", most_copied)
    compare_steps("llama", [(1, 20), (2, 20), (3, 50)], layers=2)


@pytest.mark.parametrize("matrix_unit", [False, True])
def test_settings_that_an_older_compiler_does_not_know_are_left_out(monkeypatch, matrix_unit):
    from torch._inductor import config

    monkeypatch.setattr("llavit.serve.graph.has_matrix_unit", lambda dtype: matrix_unit)
    settings = copying_weights(torch.bfloat16)
    newer = {"cpp.enable_concat_linear", "cpp.enable_grouped_gemm_template"}
    assert len(newer & settings.keys()) == 1 and settings.keys() <= config.get_config_copy().keys()
    older = {key: value for key, value in config.get_config_copy().items() if key not in newer}
    monkeypatch.setattr("torch._inductor.config", SimpleNamespace(get_config_copy=lambda: older))
    assert copying_weights(torch.bfloat16) == {k: v for k, v in settings.items() if k not in newer}


@WORKS
@pytest.mark.slow  # how the compiler's own products run best is tried for a minute
def test_a_step_for_a_matrix_unit_gives_the_logits_of_the_plain_one(monkeypatch):
    for module in ("graph", "decoding"):
        monkeypatch.setattr(f"llavit.serve.{module}.has_matrix_unit", lambda dtype: True)
    compare_steps("llama", [(1, 20), (2, 20), (3, 50)], layers=2)


@WORKS
@pytest.mark.slow  # a minute of compiling
@pytest.mark.parametrize("llm", LLMS)
def test_a_compiled_step_gives_the_logits_of_the_plain_one_in_every_family(llm):
    compare_steps(llm)


@WORKS
@pytest.mark.slow  # a minute of compiling
def test_a_compiled_engine_answers_as_a_plain_one():
    torch._dynamo.reset()
    questions = [
        [user(picture(1), "w5 w6")],
        [user("w7 w8")],
        [user(picture(1), "w9")],  # its image is in the cache
        [user(picture(2), "w5", picture(1), "w10 w11 w12")],
    ]
    answers = []
    for compile in ("never", "always"):
        with engine_of(options={"compile": compile}) as engine:
            alone = [engine.answer(turns, max_new_tokens=8).token_ids for turns in questions]
            together = [answer.token_ids for answer in engine.answer_many(questions, max_new_tokens=8)]
            assert alone == together
            assert engine.stats().image_cache_hits > 0
            answers.append(alone)
    assert answers[0] == answers[1]


def test_where_nothing_compiles_auto_runs_as_it_is_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr("llavit.compiling.why_not", lambda: "no C++ compiler")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with engine_of(options={"compile": "auto"}) as engine:
                assert engine.answer("w5", max_new_tokens=2, min_new_tokens=2).token_ids
    assert sum("no C++ compiler" in record.message for record in caplog.records) == 1
    with pytest.raises(RuntimeError, match="install a C\\+\\+ compiler"):
        engine_of(options={"compile": "always"}).__enter__()
