"""The image cache: what is kept, found, dropped and counted."""

import pytest
import torch

from llavit.serve.image_cache import ImageCache, TokenPath
from tests.model.families import PATCHES
from tests.serve.parts import engine_of, picture, user

TOKEN = 2 * 4  # bytes of a token's keys and values below


def path(*tokens):
    made = TokenPath()
    made.extend(tokens)
    return made


def reader(asked):
    def read(start, end):
        asked.append((start, end))
        return torch.zeros(1, 2, 1, end - start, 1)

    return read


def test_beginnings_are_shared_and_only_what_is_new_is_read():
    cache, asked = ImageCache(1000), []
    cache.put(path(1, 2, 3), 3, reader(asked))
    cache.put(path(1, 2, 3, 4, 5), 5, reader(asked))
    cache.put(path(1, 2, 3, 9), 4, reader(asked))
    cache.put(path(1, 2, 3, 9), 4, reader(asked))
    assert asked == [(0, 3), (3, 5), (3, 4)]
    assert cache.bytes == 6 * TOKEN and len(cache) == 3
    assert [stretch.end for stretch in cache.find(path(1, 2, 3, 4, 5, 6), most=5)] == [3, 5]
    assert [stretch.end for stretch in cache.find(path(1, 2, 3, 4, 5), most=4)] == [3]
    assert cache.find(path(1, 2), most=2) == [] == cache.find(path(2, 2, 3), most=3)


def test_room_is_made_by_dropping_what_was_not_used_for_longest_but_nothing_that_others_go_on_from():
    cache = ImageCache(6 * TOKEN)
    cache.put(path(1, 2), 2, reader([]))
    cache.put(path(1, 2, 3), 3, reader([]))
    cache.put(path(7, 8), 2, reader([]))
    cache.find(path(1, 2, 3), most=3)  # used: 7, 8 is the oldest now
    cache.put(path(5, 6), 2, reader([]))
    assert cache.find(path(7, 8), most=2) == []
    assert len(cache.find(path(1, 2, 3), most=3)) == 2
    assert (cache.bytes, cache.evictions) == (5 * TOKEN, 1)
    cache.put(path(9, 9, 9, 9), 4, reader([]))  # 5, 6 goes, then 1, 2, 3 before 1, 2
    assert len(cache.find(path(1, 2, 3), most=3)) == 1
    assert (cache.bytes, cache.evictions) == (6 * TOKEN, 3)


def test_what_is_larger_than_the_limit_is_not_kept():
    cache = ImageCache(3 * TOKEN)
    cache.put(path(1, 2), 2, reader([]))
    cache.put(path(1, 2, 3, 4), 4, reader([]))
    cache.put(path(4, 5, 6, 7), 4, reader([]))
    assert (cache.bytes, len(cache), cache.evictions) == (2 * TOKEN, 1, 0)


def test_a_name_that_two_conversations_share_by_chance_is_told_apart_by_tokens():
    cache, other = ImageCache(1000), path(1, 3)
    cache.put(path(1, 2), 2, reader([]))
    other.names[1] = path(1, 2).names[1]
    assert cache.find(other, most=2) == []
    cache.put(other, 2, reader([]))
    assert len(cache) == 1


def test_the_next_question_pays_for_its_own_tokens_only():
    with engine_of() as engine:
        first = engine.answer([user(picture(1), "w5 w6")], max_new_tokens=4)
        assert (first.cached_tokens, first.visual_tokens) == (0, PATCHES)
        second = engine.answer([user(picture(1), "w7 w8 w9")], max_new_tokens=4)
        assert second.cached_tokens == 1 + PATCHES  # <s> and the image
        other = engine.answer([user(picture(2), "w5 w6")], max_new_tokens=4)
        assert other.cached_tokens == 0
        stats = engine.stats()
        assert (stats.image_cache_hits, stats.image_cache_misses) == (1, 2)
        assert stats.prompt_tokens == sum(each.prompt_tokens for each in (first, second, other))
        assert stats.cached_tokens == second.cached_tokens
        assert stats.generated_tokens == sum(len(each.token_ids) for each in (first, second, other))


def test_the_same_question_again_runs_its_last_token_only():
    with engine_of() as engine:
        once = engine.answer([user(picture(1), "w5 w6")], max_new_tokens=4)
        again = engine.answer([user(picture(1), "w5 w6")], max_new_tokens=4)
        assert again.cached_tokens == again.prompt_tokens - 1
        assert again.token_ids == once.token_ids


def test_the_next_turn_goes_on_behind_the_answer():
    with engine_of() as engine:
        turns = [user(picture(1), "w5 w6")]
        first = engine.answer(
            turns, max_new_tokens=6, min_new_tokens=6, logit_bias={2: -100, 1: -100, 0: -100}
        )
        assert len(first.token_ids) == 6
        turns += [{"role": "assistant", "content": first.text}, user("w7")]
        second = engine.answer(turns, max_new_tokens=4)
        # The last token of the answer was never run.
        assert second.cached_tokens == first.prompt_tokens + 5


def test_images_in_another_order_are_other_beginnings():
    with engine_of() as engine:
        engine.answer([user(picture(1), picture(2), "w5")], max_new_tokens=2)
        swapped = engine.answer([user(picture(2), picture(1), "w5")], max_new_tokens=2)
        assert swapped.cached_tokens == 0
        same_first = engine.answer([user(picture(1), picture(3), "w5")], max_new_tokens=2)
        assert same_first.cached_tokens == 1 + PATCHES
        assert engine.stats().image_cache_hits == 1


def test_the_limit_holds_and_evictions_are_counted():
    with engine_of() as engine:
        engine.answer([user(picture(1), "w5")], max_new_tokens=2)
        one = engine.stats().image_cache_bytes
        assert one > 0
    with engine_of(options={"image_cache_bytes": 2 * one}) as engine:
        for number in range(6):
            engine.answer([user(picture(number), "w5")], max_new_tokens=2)
            stats = engine.stats()
            assert stats.image_cache_bytes <= stats.image_cache_limit == 2 * one
        assert stats.image_cache_evictions > 0
        assert engine.answer([user(picture(5), "w6")], max_new_tokens=2).cached_tokens > 0
        assert engine.answer([user(picture(0), "w6")], max_new_tokens=2).cached_tokens == 0


@pytest.mark.parametrize("limit", [-1, 1.5, "1"])
def test_a_limit_that_makes_no_sense_is_refused(limit):
    with (
        pytest.raises(ValueError, match="image_cache_bytes"),
        engine_of(options={"image_cache_bytes": limit}),
    ):
        pass
