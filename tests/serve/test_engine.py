"""Loading and asking an engine, and what it says to bad input before anything is queued."""

import subprocess
import sys

import numpy as np
import pytest
from transformers import Phi3Config

from llavit import Engine
from llavit.serve.runner import _max_length
from tests.model.families import PATCHES
from tests.serve.parts import engine_of, generated, picture, user


@pytest.fixture(scope="module")
def engine():
    with engine_of() as engine:
        yield engine


def test_it_loads_a_folder_and_answers_text_and_images(tiny, tmp_path):
    model, processor = tiny.build()
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    with Engine.load(tmp_path, dtype="float32", device="cpu", max_batch=2) as engine:
        assert engine.name == str(tmp_path)
        answer = engine.answer("What is this?", [picture(1)], max_new_tokens=5)
        assert answer.visual_tokens == 4 and answer.seconds >= answer.seconds_to_first_token > 0
        expected = generated(
            model.eval(), processor, [user(picture(1), "What is this?")], 5, suppress_tokens=None
        )
        assert list(answer.token_ids) == expected


@pytest.mark.parametrize("source", ["no/such/folder", "./missing", "/nowhere"])
def test_a_folder_that_is_not_there_is_said(source):
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        Engine.load(source)


def test_importing_llavit_does_not_import_the_engine():
    code = "import sys, llavit; assert 'llavit.serve' not in sys.modules and 'Engine' in dir(llavit)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_images_go_where_the_messages_leave_room_and_the_rest_before_the_last_question(engine):
    parts = [{"type": "text", "text": "w5"}, {"type": "image"}, {"type": "text", "text": "w6"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "w7"}, user("w8")]
    placed = [user("w5", picture(1), "w6"), turns[1], user(picture(2), "w8")]
    assert (
        engine.answer(turns, [picture(1), picture(2)], max_new_tokens=6).token_ids
        == engine.answer(placed, max_new_tokens=6).token_ids
    )


def test_a_key_of_an_image_part_that_holds_none_counts_as_absent(engine, tmp_path):
    picture(1).save(tmp_path / "cat.png")
    absent = dict.fromkeys(("text", "image", "path", "url"))
    for key in ("path", "url"):
        parts = [{**absent, "type": "image", key: str(tmp_path / "cat.png")}, {"type": "text", "text": "w6"}]
        answer = engine.answer([{"role": "user", "content": parts}], max_new_tokens=6)
        assert answer.token_ids == engine.answer([user(picture(1), "w6")], max_new_tokens=6).token_ids
    parts = [{**absent, "type": "image"}, user(picture(1))["content"][0]]
    with pytest.raises(ValueError, match="room for 1 images, 0 were given"):
        engine.submit([{"role": "user", "content": parts}])


def test_what_a_caller_passes_stays_as_it_was(engine):
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w6"}]}]
    engine.answer(turns, [picture(1)], max_new_tokens=1)
    assert turns == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "w6"}]}]


@pytest.mark.parametrize(
    ("messages", "images", "said"),
    [
        ([], [], "at least one message"),
        (5, [], "messages: expected a question"),
        ([{"role": "user"}], [], "message 0: expected role and content"),
        ([{"role": "tool", "content": "w5"}], [], "role='tool'"),
        ([{"role": "user", "content": None}], [], "got NoneType"),
        ([{"role": "user", "content": [{"type": "video"}]}], [], "message 0: expected parts"),
        ([{"role": "user", "content": [{"type": "text"}]}], [], "message 0: expected parts"),
        ([{"role": "user", "content": [{"type": "image"}] * 2}], [1], "room for 2 images, 1 were given"),
        (
            [{"role": "user", "content": [{"type": "image"}]}, {"role": "user"}],
            [],
            "room for 1 images, 0 were given",
        ),
        ([{"role": "system", "content": "w5"}], [1], "1 are left, and no user's turn"),
        ("w5 <image>", [], "number of images"),
        ("w5", ["missing.png"], "image 1: cannot read"),
        ("w5", [b"nonsense"], "image 1: cannot read"),
        ("w5", [np.zeros((4, 4))], "image 1: expected an image"),
        ("w5", "cat.jpg", "put one image in a list"),
        (" ".join(["w5"] * 300), [], "the prompt has 303 tokens .* at most 255"),
    ],
    ids=str,
)
def test_bad_input_says_what_was_expected_and_queues_nothing(engine, messages, images, said):
    images = [picture(1)] if str(images) == "[1]" else images
    before = engine.stats()
    with pytest.raises(ValueError, match=said):
        engine.submit(messages, images)
    assert engine.stats() == before


def test_a_long_answer_ends_where_the_slot_does(engine):
    answer = engine.answer(" ".join(["w5"] * 250), max_new_tokens=200, min_new_tokens=200)
    assert (answer.prompt_tokens + len(answer.token_ids), answer.finish_reason) == (256, "length")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_batch": 0}, "max_batch=0"),
        ({"max_queue": 0}, "max_queue=0"),
        ({"max_length": 257}, "max_length=257: expected 2 to 256"),
        ({"compile": "maybe"}, "compile='maybe'"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_say_what_would(options, said):
    with pytest.raises(ValueError, match=said), engine_of(options=options):
        pass


@pytest.mark.parametrize("timeout", [0, -1])
def test_a_timeout_must_lie_ahead(engine, timeout):
    with pytest.raises(ValueError, match="seconds above 0"):
        engine.submit("w5", timeout=timeout)


def test_flex_attention_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="attn_implementation='sdpa'"), engine_of(backend="flex_attention"):
        pass


def test_memory_of_slots_is_taken_as_it_is_used():
    with engine_of(options={"max_batch": 4}) as engine:
        slots = engine._runner.slots
        engine.answer("w5", [picture(1)], max_new_tokens=2)
        assert slots.read(0, 0, PATCHES + 3).abs().sum() > 0
        assert not any(slots.read(slot, 0, 256).any() for slot in (1, 2, 3))


def test_where_rotary_factors_change_a_longer_max_length_is_refused():
    """Longrope takes other factors as soon as any row is longer than the first training's contexts."""
    half = 8  # of a head
    rope = {"rope_type": "longrope", "short_factor": [1.0] * half, "long_factor": [4.0] * half}
    config = Phi3Config(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=256,
        original_max_position_embeddings=32,
        rope_parameters={**rope, "rope_theta": 1e4, "original_max_position_embeddings": 32},
        pad_token_id=0,
    )
    assert _max_length(config, None) == _max_length(config, 32) == 32
    with pytest.raises(ValueError, match=r"max_length=33: expected at most 32: .*longrope"):
        _max_length(config, 33)
