"""The engine on a GPU that is pretended."""

import pytest
import torch

from llavit import Engine
from llavit.serve import runner
from tests.model.families import tiny
from tests.pretend_gpu import move, pretend_gpu
from tests.serve.parts import picture, processor

OPTIONS = [
    {},
    {"do_sample": True, "seed": 1, "temperature": 0.8, "top_k": 1, "top_p": 0.9, "min_p": 0.01},
    {"repetition_penalty": 1.2, "presence_penalty": 0.5, "logit_bias": {5: 1.0}},
    {"logprobs": True, "top_logprobs": 2},
]


class InThisThread:
    """Stands for the engine's thread, in which nothing would be pretended."""

    def __init__(self, scheduler):
        pass

    def close(self):
        pass


@pytest.mark.parametrize("llm", ["llama", "gemma2"])
@torch.no_grad()
def test_answers_on_a_gpu_are_those_of_a_cpu(llm, monkeypatch):
    monkeypatch.setattr("llavit.serve.engine.Loop", InThisThread)

    def answers(model):
        engine = Engine(model, processor(), max_batch=4)
        rounds = [
            [(f"w{5 + number} w7", number, options) for number, options in enumerate(OPTIONS)],
            [("w9 w8", 0, {})],  # whose image is known
        ]
        found = []
        for asked in rounds:
            streams = [
                engine.stream(text, [picture(seed)], max_new_tokens=4, min_new_tokens=4, **options)
                for text, seed, options in asked
            ]
            while not engine._scheduler.idle():
                engine._scheduler.round()
            found += [stream.result().token_ids for stream in streams]
        assert engine.stats().image_cache_hits == 1
        return found

    expected = answers(tiny(llm))
    with pretend_gpu():
        assert answers(move(tiny(llm))) == expected


def test_a_gpu_without_room_for_all_slots_says_which_options_to_lower(monkeypatch):
    make = runner.SlotCache

    def no_room(*args, device, **kwargs):
        if kwargs["slots"] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(*args, device=device, **kwargs)

    monkeypatch.setattr(runner, "SlotCache", no_room)
    # 2 x 3 layers x 2 heads x 32 numbers of 4 bytes a token
    with pytest.raises(ValueError, match=r"4 answers of 256 tokens take 0.00157 GB.*max_batch or max_length"):
        Engine(tiny("llama"), processor(), max_batch=4)
