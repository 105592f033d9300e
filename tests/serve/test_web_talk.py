"""The web page's inside: conversations, stopping, errors, heat maps, HTML. Without a browser."""

import base64
import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

from llavit import EngineBusy, Sampling
from llavit.inspect.attention import Word, answer_attention
from llavit.serve.answers import Answer
from llavit.serve.web.examples import KINDS, starter_examples
from llavit.serve.web.heat import LAYERS, chosen_layers, heat_images, look
from llavit.serve.web.render import conversation_html, small_print
from llavit.serve.web.talk import Exchange, Picture, Reply, Talk, said
from llavit.starter import sources
from llavit.starter.sources import package_versions
from tests.serve.parts import picture
from tests.serve.web_parts import LONG, engine_with_room


@pytest.fixture(scope="module")
def engines():
    with engine_with_room(name="one") as one, engine_with_room(llava=True, name="two") as two:
        yield [one, two]


def shown(seed: int = 1) -> Picture:
    return Picture(picture(seed), f"shown/{seed}.png")


def ask(talk: Talk, question: str = "w5 w6", pictures=(), **options) -> list[Reply]:
    for _ in talk.ask(question, list(pictures), Sampling(**{"max_new_tokens": 6, **options})):
        pass
    return talk.exchanges[-1].replies


def test_both_models_answer_the_same_question_each_as_its_engine_does(engines):
    talk = Talk(engines)
    replies = ask(talk, pictures=[shown()])
    for engine, reply in zip(engines, replies, strict=True):
        expected = engine.answer("w5 w6", [picture(1)], max_new_tokens=6)
        assert reply.text == expected.text and reply.answer.token_ids == expected.token_ids
    assert replies[0].text != replies[1].text
    assert not talk.busy


def test_a_further_question_brings_the_conversation_of_its_own_model(engines):
    talk = Talk(engines)
    first = ask(talk, pictures=[shown()])
    second = ask(talk, "w7")
    for model, engine in enumerate(engines):
        image = {"type": "image", "image": picture(1)}
        turns = [
            {"role": "user", "content": [image, {"type": "text", "text": "w5 w6"}]},
            {"role": "assistant", "content": first[model].text},
            {"role": "user", "content": "w7"},
        ]
        assert second[model].text == engine.answer(turns, max_new_tokens=6).text
        assert len(talk.pictures(model, 1)) == 1
    assert second[0].answer.cached_tokens > 0


def test_stopping_ends_both_answers_and_keeps_what_has_come(engines):
    talk = Talk(engines)
    before = [engine.stats().cancelled for engine in engines]
    steps = talk.ask("w5", [], Sampling(max_new_tokens=LONG))
    for _ in steps:
        if all(reply.text for reply in talk.exchanges[0].replies):
            talk.stop()
    for engine, reply, cancelled in zip(engines, talk.exchanges[0].replies, before, strict=True):
        assert reply.answer.finish_reason == "cancelled"
        assert 0 < len(reply.answer.token_ids) < LONG and reply.text == reply.answer.text
        assert engine.stats().cancelled == cancelled + 1 and engine.stats().running == 0


def test_a_stop_before_anything_has_come_is_not_lost(engines):
    talk = Talk(engines)
    steps = talk.ask("w5", [], Sampling(max_new_tokens=LONG))
    next(steps)
    talk.stop()
    for _ in steps:
        pass
    assert all(reply.answer.finish_reason == "cancelled" for reply in talk.exchanges[0].replies)


def test_a_reader_that_goes_away_stops_the_answers(engines):
    talk = Talk(engines[:1])
    steps = talk.ask("w5", [], Sampling(max_new_tokens=LONG))
    while not talk.exchanges or not talk.exchanges[0].replies[0].text:
        next(steps)
    before = engines[0].stats().cancelled
    steps.close()
    deadline = time.monotonic() + 5
    while engines[0].stats().running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engines[0].stats().cancelled == before + 1 and not talk.busy
    assert not talk.exchanges[0].replies[0].running  # or the page would wait for it for ever


def test_a_prompt_that_is_too_long_says_so_and_is_left_out_of_the_conversation(engines):
    talk = Talk(engines)
    replies = ask(talk, "w5 " * (2 * LONG))
    assert all("expected at most" in reply.error and not reply.text for reply in replies)
    ask(talk, "w7")
    assert [len(talk.messages(model, 1)) for model in (0, 1)] == [1, 1]


def test_a_full_queue_says_so():
    with engine_with_room(max_batch=1, max_queue=1) as engine:
        running = [engine.stream("w5", max_new_tokens=LONG)]
        next(running[0])  # it has the only row
        running.append(engine.stream("w5", max_new_tokens=LONG))
        (reply,) = ask(Talk([engine]))
        assert reply.error.startswith("the queue is full")
        for stream in running:
            stream.cancel()


def test_a_failure_inside_the_model_is_shown_as_it_is_and_the_other_model_answers(engines):
    with engine_with_room() as broken:
        layer = broken.model.model.language_model.layers[1]
        hook = layer.register_forward_pre_hook(lambda *_: torch.zeros(2) @ torch.zeros(3))
        one, two = ask(Talk([broken, engines[0]]))
        assert one.error.startswith("RuntimeError: ") and "2" in one.error
        assert two.error is None and two.text
        hook.remove()
        (healed,) = ask(Talk([broken]))
        assert healed.error is None and healed.text


def test_sampling_options_reach_the_engine(engines):
    def drawn(seed):
        return ask(Talk(engines[:1]), do_sample=True, temperature=3.0, seed=seed, max_new_tokens=12)[0].text

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_look_is_the_attention_of_that_word_in_that_model(engines):
    talk = Talk(engines)
    ask(talk, pictures=[shown(1), shown(2)])
    replies = ask(talk, "w8")
    for model, engine in enumerate(engines):
        reply = replies[model]
        word = reply.words[2]
        assert len(reply.words) == 6 and word.tokens == range(2, 3)
        found = look(talk, 1, model, 2, "last third")
        expected = answer_attention(
            engine.model,
            engine.processor,
            talk.messages(model, 1),
            reply.answer.token_ids,
            token=2,
            layers=[2],
        )
        assert len(found.maps) == 2
        for one, other in zip(found.maps, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="word 6: the answer has 6 words"):
        look(talk, 1, 0, 6)


def test_looking_while_another_answer_is_written_changes_neither(engines):
    engine = engines[0]
    alone = engine.answer("w9", [picture(3)], max_new_tokens=300).token_ids
    talk = Talk([engine])
    ask(talk, pictures=[shown()])
    before = look(talk, 0, 0, 1).maps[0]
    with engine.stream("w9", [picture(3)], max_new_tokens=300) as stream:
        next(stream)
        looks = [look(talk, 0, 0, 1).maps[0] for _ in range(5)]
        assert stream.result().token_ids == alone
    for found in looks:
        np.testing.assert_array_equal(found, before)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 30, 32])
def test_the_thirds_of_the_layers_are_never_empty_and_all_are_in_one(count):
    thirds = [chosen_layers(name, count) for name in LAYERS[1:]]
    assert all(len(part) and part.start >= 0 and part.stop <= count for part in thirds)
    assert {layer for part in thirds for layer in part} == set(range(count))


def test_a_map_is_painted_patch_by_patch_with_more_colour_where_more_attention_is():
    url = heat_images([np.array([[0.0, 0.1], [0.2, 0.4]])])[0]
    painted = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    assert painted.shape == (2, 2, 4)
    opacity = painted[..., 3].ravel().astype(int)
    assert opacity[0] == 0 and all(np.diff(opacity) > 0)


def test_pictures_share_one_scale():
    strong, weak = heat_images([np.full((1, 1), 0.5), np.full((1, 1), 0.1)])
    assert strong != weak and heat_images([np.zeros((1, 1))])


def reply_of(text: str, **options) -> Reply:
    words = [Word(text, 0, range(0, 1))]
    return Reply(text, Answer(text, (1,), "stop"), words, **options)


def test_nothing_that_a_user_a_model_or_an_error_says_becomes_html(engines):
    evil = "<img src=x onerror=alert(1)>\"'&"
    talk = Talk(engines[:1])
    talk.exchanges = [
        Exchange(evil, [shown()], [reply_of(evil)]),
        Exchange(evil, [], [Reply(error=evil)]),
        Exchange(evil, [], [Reply(evil)]),
    ]
    html = conversation_html(talk, [evil]) + conversation_html(Talk(engines), [evil] * 2, [(evil, evil)])
    assert "<img src=x" not in html and html.count("&lt;img src=x onerror=alert(1)&gt;") == 8


def test_small_print_says_speed_cache_and_why_an_answer_ended():
    fast = Answer("w", (1, 2, 3), "length", (), 48, 40, 36, 0.5, 0.6)
    assert small_print(fast) == (
        "20.0 tokens/s · first token after 0.50 s · 40 of 48 prompt tokens from the cache · cut off at 3 tokens"
    )
    assert small_print(Answer("", (), "cancelled", prompt_tokens=9)) == (
        "0 of 9 prompt tokens from the cache · stopped"
    )


def test_words_can_be_clicked_only_where_there_is_a_picture_to_look_at(engines):
    talk = Talk(engines[:1])
    ask(talk)
    assert 'data-act="word"' not in conversation_html(talk, ["a"])
    ask(talk, pictures=[shown()])
    assert conversation_html(talk, ["a"]).count('data-act="word"') == 6


def test_errors_are_said_in_their_own_words():
    assert said(EngineBusy(3, 1.5)).startswith("the queue is full: 3 requests wait")
    assert said(MemoryError()) == "MemoryError"


def test_examples_are_pictures_of_the_starter_with_questions_about_them():
    try:
        package_versions()
    except ImportError as error:
        pytest.skip(f"the starter's packages are not installed: {error}")
    examples = starter_examples(112)
    assert len(examples) == len(KINDS) and all(example.question for example in examples)
    again = starter_examples(112)
    assert all(one.image.tobytes() == two.image.tobytes() for one, two in zip(examples, again, strict=True))


def test_without_the_starter_there_are_no_examples_and_the_page_does_not_speak_of_them(engines, monkeypatch):
    monkeypatch.setattr(sources, "PACKAGES", ("a-package-that-is-not-there",))
    assert starter_examples() == []
    assert "one of these" not in conversation_html(Talk(engines), ["a", "b"], [])
