"""Many callers on one engine: nobody waits for another's end, and nobody's trouble is another's."""

import gc
import threading
import time
import weakref

import pytest
import torch

from llavit import Engine, EngineBusy, EngineClosed, Sampling
from tests.model.families import tiny
from tests.serve.parts import engine_of, generated, picture, processor, user

LONG = {"max_new_tokens": 200, "min_new_tokens": 200}
SHORT = {"max_new_tokens": 4, "min_new_tokens": 4}


def test_eight_threads_get_what_each_would_get_alone():
    conversations = [[user(picture(n % 3), " ".join(["w5"] * (1 + n)))] for n in range(8)]
    with engine_of() as engine:
        expected = [generated(engine.model, engine.processor, each, 12) for each in conversations]
        answers = {}

        def ask(number):
            answers[number] = list(engine.answer(conversations[number], max_new_tokens=12).token_ids)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answers[number] for number in range(8)] == expected
        assert engine.stats().requests == 8


def test_a_short_request_that_comes_late_ends_before_a_long_one_that_came_early():
    with engine_of() as engine:
        with engine.stream("w5 w6", **LONG) as long:
            next(long)  # under way
            short = engine.answer("w7", **SHORT)
            assert len(short.token_ids) == 4
            assert not long.done
        assert long.result().finish_reason == "cancelled"


def test_who_waits_is_let_in_between_the_steps_of_who_runs():
    with engine_of(options={"max_batch": 2}) as engine, engine.stream("w5 w6", **LONG) as long:
        next(long)
        others = engine.answer_many(["w7", "w8", "w9 w10", "w11"], **SHORT)
        assert [len(answer.token_ids) for answer in others] == [4] * 4
        assert not long.done


def test_cancelling_ends_at_the_next_step_keeps_what_came_and_frees_the_row():
    with engine_of(options={"max_batch": 1}) as engine:
        stream = engine.stream("w5 w6", **LONG)
        first = next(stream)
        stream.cancel()
        answer = stream.result(timeout=5)
        assert answer.finish_reason == "cancelled"
        assert 1 <= len(answer.token_ids) < 200
        assert answer.text.startswith(first.text)
        assert first.text + "".join(piece.text for piece in stream) == answer.text
        assert len(engine.answer("w7", **SHORT).token_ids) == 4
        assert (engine.stats().cancelled, engine.stats().running) == (1, 0)


def test_cancelling_a_request_that_waits_takes_it_out_of_the_queue():
    with engine_of() as engine:
        with engine.exclusive():
            stream = engine.stream("w5")
            stream.cancel()
            assert engine.stats().waiting == 1
        assert stream.result(timeout=5).finish_reason == "cancelled"
        assert stream.result().token_ids == ()
        assert engine.stats().generated_tokens == 0


def test_a_timeout_counts_from_submission_and_gives_what_has_come():
    with engine_of() as engine:
        with engine.exclusive():
            late = engine.stream("w5", timeout=0.01)
            time.sleep(0.02)
        assert late.result(timeout=5).finish_reason == "timeout"
        stream = engine.stream("w5", timeout=0.05, **LONG)
        next(stream)
        with engine.exclusive():
            time.sleep(0.06)
        answer = stream.result(timeout=5)
        assert answer.finish_reason == "timeout"
        assert 1 <= len(answer.token_ids) < 200
        assert engine.stats().timed_out == 2


def test_waiting_for_a_result_gives_up_without_ending_the_request():
    with engine_of() as engine:
        with engine.exclusive():
            stream = engine.stream("w5", **SHORT)
            with pytest.raises(TimeoutError, match="goes on"):
                stream.result(timeout=0.01)
        assert len(stream.result().token_ids) == 4


def test_a_full_queue_says_when_to_come_again():
    with engine_of(options={"max_queue": 2}) as engine:
        with engine.exclusive():
            streams = [engine.stream("w5", **SHORT), engine.stream("w6", **SHORT)]
            with pytest.raises(EngineBusy, match="2 requests wait") as caught:
                engine.submit("w7")
            assert caught.value.retry_after > 0
            with pytest.raises(EngineBusy):  # before anything is read
                engine.submit("w7", ["no such image.png"])
        assert [len(stream.result().token_ids) for stream in streams] == [4, 4]
        # More than the queue holds may be asked at once all the same: they are queued as room comes.
        assert len(engine.answer_many(["w5"] * 9, **SHORT)) == 9


def test_the_timeout_of_many_questions_does_not_count_the_wait_for_room(monkeypatch):
    left = []
    with engine_of() as engine:
        scheduler = engine._scheduler
        has_room, add = scheduler.has_room, scheduler.add

        def noted(request):
            left.append(request.deadline - time.monotonic())
            add(request)

        monkeypatch.setattr(scheduler, "has_room", lambda: time.sleep(0.2) or has_room())
        monkeypatch.setattr(scheduler, "add", noted)
        (answer,) = engine.answer_many(["w5"], timeout=30, **SHORT)
    assert 29.9 < left[0] <= 30 and answer.finish_reason == "length"


def test_who_comes_while_ended_requests_are_counted_is_not_counted_half(monkeypatch):
    with engine_of() as engine:
        scheduler, late = engine._scheduler, engine._request("w5", [], Sampling(**SHORT), None)
        adding = threading.Thread(target=scheduler.add, args=(late,))

        class Count(dict):
            def __getitem__(self, name):
                value = super().__getitem__(name)
                if name == "requests" and not adding.ident:
                    adding.start()
                    adding.join(0.1)
                return value

        with engine.exclusive():
            monkeypatch.setattr(scheduler, "_count", Count(scheduler._count))
            assert scheduler._ended() == 0
        late.stream.result()


def test_a_request_that_fails_fails_alone():
    good = [user(picture(1), "w5 w6")]
    with engine_of() as engine:
        expected = generated(engine.model, engine.processor, good, 20, min_new_tokens=20)
        with engine.exclusive() as model, torch.no_grad():
            model.get_input_embeddings().weight[77] = float("nan")
        running = engine.stream(good, max_new_tokens=20, min_new_tokens=20)
        in_prompt = engine.stream("w8 w77")
        in_answer = engine.stream("w9", logit_bias={77: 1e4})
        for failing in (in_prompt, in_answer):
            with pytest.raises(FloatingPointError, match="not finite"):
                failing.result(timeout=5)
            with pytest.raises(FloatingPointError):
                list(failing)
        assert list(running.result().token_ids) == expected
        assert engine.stats().failed == 2
        # Rows that held NaN are used again.
        again = engine.answer_many([good] * 4, max_new_tokens=20, min_new_tokens=20)
        assert [list(answer.token_ids) for answer in again] == [expected] * 4


def test_prompts_that_wait_are_run_together_and_a_new_image_that_they_share_once():
    with engine_of(options={"max_batch": 8}) as engine:
        with engine.exclusive():
            streams = [engine.stream("w5 w6", [picture(number)], **SHORT) for number in range(4)]
        for stream in streams:
            stream.result()
        assert engine.stats().prefills == 1
        with engine.exclusive():
            streams = [engine.stream(f"w{number} w6", [picture(9)], **SHORT) for number in range(5, 9)]
        assert sorted(stream.result().cached_tokens > 0 for stream in streams) == [False, True, True, True]
        stats = engine.stats()
        assert (stats.prefills, stats.image_cache_misses, stats.image_cache_hits) == (3, 5, 3)


def test_prompts_of_very_different_lengths_are_not_filled_up():
    with engine_of(options={"max_batch": 8}) as engine:
        with engine.exclusive():
            streams = [engine.stream(" ".join(["w5"] * length), **SHORT) for length in (9, 10, 100, 10)]
        assert [len(stream.result().token_ids) for stream in streams] == [4] * 4
        assert engine.stats().prefills == 3


def test_between_two_steps_prompts_run_until_the_budget_is_spent_the_last_one_whole(monkeypatch):
    monkeypatch.setattr("llavit.serve.scheduler.PREFILL_BUDGET", 60)
    with engine_of() as engine, engine.stream("w5", **LONG) as running:
        next(running)
        passes, runner = [], engine._runner
        prefill, decode = runner.prefill_rows, runner.decode
        monkeypatch.setattr(runner, "prefill_rows", lambda *of: passes.append(len(of[1][0])) or prefill(*of))
        monkeypatch.setattr(runner, "decode", lambda *of: passes.append("step") or decode(*of))
        with engine.exclusive():
            passes.clear()
            others = [engine.stream(" ".join(["w6"] * length), **SHORT) for length in (50, 200, 10)]
        for stream in others:
            stream.result()
    assert passes[:4] == [53, 203, "step", 13]


def test_what_filled_up_a_prompt_of_not_finite_values_is_wiped_with_it():
    long = [user(" ".join(["w5"] * 30))]
    with engine_of(options={"max_batch": 2}) as engine:
        expected = generated(engine.model, engine.processor, long, 12, min_new_tokens=12)
        with engine.exclusive() as model, torch.no_grad():
            model.get_input_embeddings().weight[77] = float("nan")
        with engine.exclusive():
            streams = [engine.stream(long, **SHORT), engine.stream("w77 " + " ".join(["w5"] * 25), **SHORT)]
        with pytest.raises(FloatingPointError):
            streams[1].result()
        streams[0].result()
        assert engine.stats().prefills == 1
        # Both rows again; the second is shorter than what had been written there.
        short = engine.answer_many([long, "w6"], max_new_tokens=12, min_new_tokens=12)
        assert list(short[0].token_ids) == expected and len(short[1].token_ids) == 12


def test_rows_of_requests_that_fail_in_the_same_pass_are_all_wiped(monkeypatch):
    def wiped():
        slots = engine._runner.slots
        return all(rows.isfinite().all() for rows in (*slots.keys, *slots.values))

    with engine_of() as engine:
        with engine.exclusive() as model, torch.no_grad():
            model.get_input_embeddings().weight[77] = float("nan")
        with engine.exclusive():  # both fail in their prompts
            together = [engine.stream("w77 " + " ".join(["w5"] * 30), **SHORT) for _ in range(2)]
        for stream in together:
            with pytest.raises(FloatingPointError):
                stream.result(timeout=5)
        assert engine.stats().prefills == 1 and wiped()
        decode = engine._runner.decode

        def broken(tokens, filled):
            decode([77] * len(tokens), filled)
            raise RuntimeError("no memory")

        monkeypatch.setattr(engine._runner, "decode", broken)
        with engine.exclusive():  # all fail in one step
            together = [engine.stream("w5 w6", **SHORT) for _ in range(3)]
        for stream in together:
            with pytest.raises(RuntimeError, match="no memory"):
                stream.result(timeout=5)
        assert wiped()


def test_of_prompts_that_run_together_only_the_one_that_breaks_fails():
    with engine_of() as engine:
        expected = engine.answer("w8", [picture(2)], **SHORT).token_ids
        engine._scheduler.cache.clear()
        requests = [engine._request("w8", [picture(number)], Sampling(**SHORT), None) for number in (1, 2, 3)]
        requests[1].prompt.pixels = torch.zeros(1, 5, 12, 12)
        before = engine.stats().failed
        with engine.exclusive():
            for request in requests:
                engine._scheduler.add(request)
        with pytest.raises(RuntimeError):
            requests[1].stream.result(timeout=5)
        assert [len(requests[number].stream.result().token_ids) for number in (0, 2)] == [4, 4]
        assert engine.stats().failed == before + 1
        assert engine.answer("w8", [picture(2)], **SHORT).token_ids == expected


def test_what_breaks_a_whole_step_ends_its_requests_and_not_the_engine():
    with engine_of() as engine:
        with engine.exclusive() as model:
            head, model.lm_head = model.lm_head, torch.nn.Linear(3, 3)
        with pytest.raises(RuntimeError, match="shapes"):
            engine.answer("w5")
        with engine.exclusive() as model:
            model.lm_head = head
        assert len(engine.answer("w5", **SHORT).token_ids) == 4


def test_draining_finishes_what_runs_and_waits_and_takes_nothing_new():
    with engine_of(options={"max_batch": 1}) as engine:
        streams = [engine.stream("w5", max_new_tokens=30, min_new_tokens=30) for _ in range(3)]
        assert engine.drain(timeout=30)
        assert [len(stream.result().token_ids) for stream in streams] == [30] * 3
        with pytest.raises(EngineClosed, match="takes no more"):
            engine.submit("w5")


def test_draining_says_when_time_was_too_short():
    with engine_of() as engine, engine.exclusive():
        engine.stream("w5")
        assert not engine.drain(timeout=0.01)


def test_closing_ends_what_runs_and_waits_with_an_error():
    with engine_of(options={"max_batch": 1}) as engine:
        streams = [engine.stream("w5", **LONG) for _ in range(2)]
        next(streams[0])
        engine.close()
        for stream in streams:
            with pytest.raises(EngineClosed, match="closed before"):
                stream.result(timeout=5)
        with pytest.raises(EngineClosed):
            engine.answer_many(["w5"])
        assert not engine._loop.thread.is_alive()


def test_who_borrows_the_model_has_it_alone_and_running_answers_go_on_as_if_nothing_was():
    conversation = [user(picture(1), "w5 w6")]
    with engine_of() as engine:
        expected = generated(engine.model, engine.processor, conversation, 60, min_new_tokens=60)
        stream = engine.stream(conversation, max_new_tokens=60, min_new_tokens=60)
        next(stream)
        for _ in range(3):
            with engine.exclusive() as model:
                steps = engine.stats().steps
                generated(model, engine.processor, [user("w9", picture(2))], 3)
                assert engine.stats().steps == steps
        assert list(stream.result().token_ids) == expected


def test_two_who_borrow_the_model_in_turn_do_not_keep_answers_from_going_on():
    with engine_of() as engine:
        enough = threading.Event()

        def borrow():
            while not enough.is_set():
                with engine.exclusive():
                    time.sleep(0.02)  # meanwhile the other one comes

        threads = [threading.Thread(target=borrow) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            assert len(engine.stream("w5 w6", **SHORT).result(timeout=10).token_ids) == 4
            cut = engine.stream("w5 w7", timeout=0.2, **LONG)
            assert cut.result(timeout=10).finish_reason == "timeout"
        finally:
            enough.set()
            for thread in threads:
                thread.join()


def test_who_has_borrowed_the_model_is_told_instead_of_waiting_for_itself():
    with engine_of() as engine:
        with (
            engine.exclusive(),
            pytest.raises(RuntimeError, match="leave that block first"),
            engine.exclusive(),
        ):
            pass
        assert engine.answer("w5", max_new_tokens=2, min_new_tokens=2).token_ids


def test_a_bad_question_among_many_leaves_no_other_running():
    with engine_of(options={"max_batch": 1}) as engine:
        with pytest.raises(ValueError):
            engine.answer_many(["w5", "w6", 5], max_new_tokens=200, min_new_tokens=200)
        assert engine.drain(timeout=10)
        assert engine.stats().cancelled == 2 and engine.stats().generated_tokens < 200


def test_an_engine_that_nobody_has_any_more_ends_and_leaves_nothing_behind():
    engine = Engine(tiny("llama"), processor())
    thread, model = engine._loop.thread, weakref.ref(engine.model)
    stream = engine.stream("w5", **LONG)
    next(stream)
    del engine
    gc.collect()
    assert not thread.is_alive()
    with pytest.raises(EngineClosed):
        stream.result(timeout=5)
    gc.collect()
    assert model() is None
