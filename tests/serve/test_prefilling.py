"""Compiled prefill: the logits, keys and values of the plain one, for any prompt."""

import pytest
import torch

from llavit.compiling import why_not
from llavit.model.masks import TEXT, visual_attention_mask
from llavit.serve.masks import prefill_masks
from llavit.serve.prefilling import CompiledPrefill
from llavit.serve.runner import Runner
from llavit.serve.slots import SlotCache
from tests.model.families import IMAGE, LLMS, tiny

WORKS = pytest.mark.skipif(why_not() is not None, reason=f"torch.compile does not work here: {why_not()}")
SWITCHES_OFF = {"visual_qkv": False, "bidirectional_visual_attention": False}


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("backend", [None, "eager"], ids=["its own", "eager"])
def test_the_masks_of_a_prompt_are_the_models_own(llm, backend):
    model = tiny(llm, backend=backend)
    config = model.get_decoder().config
    runner = Runner(model, max_batch=1)
    past, image_ids = 5, torch.tensor([TEXT] * 3 + [0] * 9 + [TEXT] * 2 + [1] * 9 + [TEXT])
    slots = SlotCache(config, slots=1, length=64, dtype=torch.float32, device="cpu")
    slots.prefill_at(0, past)
    positions = torch.arange(past, past + len(image_ids))
    embeds = torch.zeros(1, len(image_ids), config.hidden_size)
    theirs = visual_attention_mask(config, image_ids[None], embeds, None, slots, positions[None])
    images_w = torch.nn.functional.pad(image_ids, (past, 0), value=TEXT)
    together = (image_ids[:, None] == images_w) & (image_ids != TEXT)[:, None]
    columns = torch.arange(past + len(image_ids))
    ours = prefill_masks(config, runner.kinds, columns, positions, together, torch.float32)
    if not isinstance(theirs, dict):
        theirs, ours = {"one": theirs}, {"one": ours}
    assert theirs.keys() == ours.keys()
    for kind, mask in theirs.items():
        assert torch.equal(ours[kind], mask), kind


def compare_prompts(llm: str, **switches: bool) -> None:
    """Run prompts plainly and compiled: with images and without, behind others and not, down to a single token."""
    torch._dynamo.reset()
    model = tiny(llm, **switches)
    runner = Runner(model, max_batch=3)
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> list[int]:
        return torch.randint(3, 90, (count,), generator=generator).tolist()

    with torch.inference_mode():
        prefill = CompiledPrefill(model, runner.kinds, runner.slots)
        prefill.warm_up()
        side = model.config.vision_config.image_size
        features = runner.features(torch.randn(2, 3, side, side, generator=generator))
        image = [IMAGE] * features.shape[1]
        one = [*words(4), *image, *words(6)]
        cases = [
            (0, one, features[:1], 0),
            (0, words(9), None, len(one)),
            (0, words(1), None, len(one)),
            (1, [*words(3), *image, *words(1), *image, *words(2)], features, 0),
            (1, [*words(1), *image], features[:1], 0),
            (2, words(12), None, 0),
        ]
        with torch.compiler.set_stance("fail_on_recompile"):
            for slot, ids, own, past in cases:
                visual = torch.tensor(ids) == IMAGE
                image_ids = torch.where(
                    visual, visual.int().diff(prepend=torch.tensor([0])).eq(1).cumsum(0) - 1, TEXT
                )
                filled = slice(past, past + len(ids))
                plain = runner.prefill(slot, ids, image_ids, own, past)
                kept = runner.slots.read(slot, filled.start, filled.stop)
                compiled = prefill(slot, ids, image_ids, own, past)
                torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(
                    runner.slots.read(slot, filled.start, filled.stop), kept, rtol=1e-4, atol=1e-5
                )


@WORKS
@pytest.mark.slow  # a minute of compiling
@pytest.mark.parametrize("switches", [{}, SWITCHES_OFF], ids=["llavit", "llava"])
@pytest.mark.parametrize("llm", LLMS)
def test_one_graph_gives_what_the_plain_prefill_gives(llm, switches):
    compare_prompts(llm, **switches)


def test_a_prompt_without_room_for_idle_tokens_runs_plainly():
    model = tiny("llama")
    runner = Runner(model, max_batch=1, max_length=20)
    prefill = CompiledPrefill(model, runner.kinds, runner.slots)
    assert prefill.takes(10, 6)
    assert not prefill.takes(10, 7)
