"""Text as it comes: whole characters, no part of a stop string, nothing lost."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from llavit import Engine
from llavit.serve.text import TextPieces, token_texts
from tests.tiny import tokenizer

BYTES = tokenizer()
TEXT = "naïve – 你好, 🎉 done"


def said(text, stop=()):
    pieces = TextPieces(BYTES, stop)
    given = []
    for token in BYTES.encode(text, add_special_tokens=False):
        given.append(pieces.add(token))
        if pieces.stopped:
            break
    return [*given, pieces.finish()], pieces.stopped


def test_pieces_are_whole_characters_and_together_the_text():
    given, stopped = said(TEXT)
    assert "".join(given) == TEXT and not stopped
    assert not any("\ufffd" in piece for piece in given)
    assert given[2:4] == ["", "ï"]  # two bytes, two tokens


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["你好"], "naïve – "),  # spans six tokens
        (["done", "–"], "naïve "),
        (["好,", "你好, 🎉"], "naïve – 你"),  # the first to be complete
        (["e –!", "ne?"], TEXT),  # only begun
        (["n"], ""),
    ],
)
def test_a_stop_string_ends_the_text_before_it_wherever_tokens_end(stop, expected):
    given, stopped = said(TEXT, stop)
    assert "".join(given) == expected
    assert stopped == (expected != TEXT)


def test_what_may_begin_a_stop_string_is_held_back_until_it_is_certain():
    pieces = TextPieces(BYTES, ["abc"])
    tokens = BYTES.encode("xababd", add_special_tokens=False)
    assert [pieces.add(token) for token in tokens] == ["x", "", "", "ab", "", "abd"]


def test_half_a_character_at_the_end_is_shown_as_the_tokenizer_shows_it():
    pieces = TextPieces(BYTES)
    tokens = BYTES.encode("aé", add_special_tokens=False)[:-1]
    assert "".join(map(pieces.add, tokens)) + pieces.finish() == BYTES.decode(tokens) == "a\ufffd"


def test_an_answer_ends_before_the_stop_string_and_its_tokens_with_it(tiny):
    model, processor = tiny.build()
    with Engine(model.eval(), processor) as engine:
        options = {"max_new_tokens": 40, "do_sample": True, "seed": 5}
        options["logit_bias"] = {token: 12.0 for token in BYTES.encode("abc", add_special_tokens=False)}
        free = engine.answer("Hello?", **options)
        stop = free.text[10:13]
        end = free.text.index(stop)
        stopped = engine.answer("Hello?", stop=stop, **options)
        assert (stopped.text, stopped.finish_reason) == (free.text[:end], "stop")
        assert stopped.token_ids == free.token_ids[: end + 3]
        assert free.finish_reason == "length"


def llama(words: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of these tokens with Llama's decoder, which drops the space at the beginning of a text."""
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def test_a_special_token_amid_the_answer_takes_no_space_from_the_next_word():
    words = llama(["<unk>", "<s>", "▁a", "▁cat", "s", "</s>"])
    for tokens in ([2, 0, 3, 4], [1, 2, 1, 0, 3], [2, 3, 4, 0]):
        pieces = TextPieces(words)
        given = "".join(map(pieces.add, tokens)) + pieces.finish()
        assert given == words.decode(tokens, skip_special_tokens=True)


def test_a_tokens_text_keeps_its_space_and_half_a_character_is_shown_as_the_tokenizer_shows_it():
    words = llama(["<unk>", "<s>", "</s>", "▁a", "▁cat", "s", "▁", "<0xC3>", "<0xA9>", "<0x0A>"])
    tokens = range(len(words))
    expected = ["<unk>", "<s>", "</s>", " a", " cat", "s", " ", "\ufffd", "\ufffd", "\n"]
    assert token_texts(words, tokens) == expected
    assert token_texts(BYTES, range(len(BYTES))) == [BYTES.decode([token]) for token in range(len(BYTES))]
    words.eos_token = None  # then only as it would begin a text
    assert token_texts(words, [3, 5]) == ["a", "s"]
