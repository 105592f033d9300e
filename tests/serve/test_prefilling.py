"""Compiled prefill: the logits, keys and values of the plain one, for any prompt."""

import pytest
import torch

from llavit.model.masks import TEXT, visual_attention_mask
from llavit.serve.masks import prefill_masks
from llavit.serve.prefilling import CompiledPrefill
from llavit.serve.runner import Runner
from llavit.serve.seeing import CompiledTower
from llavit.serve.slots import SlotCache
from tests.model.families import IMAGE, LLMS, SIDE, TOWERS, tiny
from tests.serve.parts import engine_of, picture

WORKS = pytest.mark.usefixtures("compiler")
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


def test_idle_tokens_of_a_prompt_that_is_not_finite_are_wiped_with_it(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # it computes the same
    with engine_of(options={"image_cache_bytes": 0}) as engine:
        with engine.exclusive() as model, torch.inference_mode():
            engine._runner.compile(engine.processor.pixel_values([picture(1)]))
            model.get_input_embeddings().weight[77] = float("nan")
        with pytest.raises(FloatingPointError):
            engine.answer("w77 w5 w6 w7")
        assert all(
            rows.isfinite().all() for rows in (*engine._runner.slots.keys, *engine._runner.slots.values)
        )
        assert len(engine.answer("w5", max_new_tokens=4, min_new_tokens=4).token_ids) == 4


@WORKS
@pytest.mark.slow  # a minute of compiling
def test_graphs_of_two_models_are_not_mixed_up():
    """Nothing in a graph's guards tells one model from another, so each must have graphs of its own."""
    torch._dynamo.reset()
    models = [tiny("llama"), tiny("llama")]
    with torch.no_grad():
        for weight in models[1].parameters():
            weight.mul_(0.5)
    ids, image_ids = [5, 6, 7, 8], torch.full((4,), TEXT)
    with torch.inference_mode():
        runners = [Runner(model, max_batch=2) for model in models]
        graphs = [CompiledPrefill(runner.model, runner.kinds, runner.slots) for runner in runners]
        plain = [runner.prefill(0, ids, image_ids) for runner in runners]
        assert not torch.allclose(*plain, atol=1e-3)
        for _ in range(2):
            for graph, expected in zip(graphs, plain, strict=True):
                torch.testing.assert_close(graph(0, ids, image_ids), expected, rtol=1e-4, atol=1e-5)


@WORKS
@pytest.mark.slow  # a minute of compiling
@pytest.mark.parametrize("tower", TOWERS)
def test_a_compiled_tower_gives_the_features_of_the_plain_one(tower):
    torch._dynamo.reset()
    model = tiny("llama", tower)
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        compiled = CompiledTower(model.model, (SIDE, SIDE))
        assert compiled.takes(pixels)
        assert not compiled.takes(torch.zeros(1, 3, SIDE, SIDE + 4))
        plain = model.model.encode_images(pixels)
        torch.testing.assert_close(compiled(pixels), plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.model.encode_images(pixels), plain)  # others run it as it is
        assert model.model.vision_tower._compiled_call_impl is None
