"""The LLM as a vision encoder: its features are those of an ordinary forward pass, and no more is computed."""

import pytest
import torch

from llavit import LlavitForConditionalGeneration
from llavit.model.encoding import layer_numbers
from llavit.model.masks import TEXT

from .families import IMAGE, LLMS, PATCHES, TOWERS, other_thread_within, pixels, tiny

LLAVA = {"visual_qkv": False, "bidirectional_visual_attention": False}
PREFIX = [1, 5, 6, 7]

every_llm = pytest.mark.parametrize("llm", LLMS)
both = pytest.mark.parametrize("switches", [{}, LLAVA], ids=["llavit", "llava"])


@torch.no_grad()
def ordinary(model, prefix: list[int], image: torch.Tensor, suffix: list[int]) -> list[torch.Tensor]:
    """Residual stream at the patches of one image in a whole prompt, (v, d) for 0 to the last layer."""
    ids = torch.tensor([[*prefix, *[IMAGE] * PATCHES, *suffix]])
    seen = []
    layers = model.model.language_model.layers
    hooks = [
        layers[0].register_forward_pre_hook(
            lambda m, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        ),
        *(layer.register_forward_hook(lambda m, args, out: seen.append(out)) for layer in layers),
    ]
    out = model(input_ids=ids, pixel_values=image[None], output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    for mine, theirs in zip(seen[:-1], out.hidden_states[:-1], strict=True):
        torch.testing.assert_close(mine, theirs)  # transformers' own, but for the last, which it norms
    torch.testing.assert_close(model.model.language_model.norm(seen[-1]), out.hidden_states[-1])
    return [hidden[0, len(prefix) : len(prefix) + PATCHES] for hidden in seen]


@every_llm
@both
@pytest.mark.parametrize("prefix", [[], PREFIX], ids=["alone", "behind a prefix"])
def test_features_are_the_hidden_states_of_an_ordinary_pass(llm, switches, prefix):
    model, images = tiny(llm, **switches), pixels(3)
    count = len(model.model.language_model.layers)
    found = model.encode_image(images, layer=range(count + 1), prefix=prefix or None)
    assert [each.layer for each in found] == list(range(count + 1))
    for number, image in enumerate(images):
        # The text behind the image is not seen by it.
        expected = ordinary(model, prefix, image, suffix=[8, 9])
        for each, want in zip(found, expected, strict=True):
            assert each.patches.shape == (3, 3, 3, 64)
            # fp32: a batch of three and a prompt of one are other matmuls; weights are four times the usual.
            torch.testing.assert_close(each.patches[number].flatten(0, 1), want, atol=2e-4, rtol=2e-4)
            torch.testing.assert_close(each.pooled[number], each.patches[number].mean((0, 1)))


@both
@pytest.mark.parametrize("tower", TOWERS)
def test_layer_zero_is_the_projectors_output(tower, switches):
    model, images = tiny("llama", tower, **switches), pixels(2)
    with torch.no_grad():
        projected = model.model.multi_modal_projector(model.model.encode_images(images))
    assert torch.equal(model.encode_image(images, 0).patches.flatten(1, 2), projected)


@every_llm
def test_one_pass_for_several_layers_and_none_after_the_last(llm):
    model, runs = tiny(llm), []
    layers = model.model.language_model.layers
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda m, args, out, number=number: runs.append(number))
    model.model.language_model.norm.register_forward_hook(lambda *_: runs.append("norm"))
    model.lm_head.register_forward_hook(lambda *_: runs.append("head"))
    model.model.vision_tower.register_forward_hook(lambda *_: runs.append("tower"))
    model.encode_image(pixels(2), 0)
    assert runs == ["tower"]
    runs.clear()
    first, second = model.encode_image(pixels(2), [2, 1])
    assert runs == ["tower", 0, 1] and (first.layer, second.layer) == (2, 1)
    runs.clear()
    model.encode_image(pixels(2))
    assert runs == ["tower", *range(len(layers))]


def test_negative_layers_count_from_the_end():
    model = tiny("llama")
    assert torch.equal(model.encode_image(pixels(1)).patches, model.encode_image(pixels(1), 3).patches)
    assert torch.equal(model.encode_image(pixels(1), -4).patches, model.encode_image(pixels(1), 0).patches)
    assert layer_numbers([-4, -1, 0, 3], 3) == [0, 3, 0, 3]
    for wrong in (4, -5):
        with pytest.raises(ValueError, match=rf"layer {wrong}: expected 0 \(projector\) to 3"):
            model.encode_image(pixels(1), wrong)
    with pytest.raises(ValueError, match="at least one"):
        model.encode_image(pixels(1), [])


@both
def test_patches_look_ahead_only_in_a_llavit(switches):
    model = tiny("llama", **switches)
    for layer in model.model.vision_tower.encoder.layers:  # a tower whose patches see only themselves
        layer.self_attn.out_proj.weight.data.zero_()
    images = pixels(2)
    images[1] = images[0]
    images[1, :, -4:, -4:] += 3.0
    moved = (torch.sub(*model.encode_image(images).patches)).abs().amax(-1).flatten() > 1e-5
    assert moved[-1]
    assert moved[:-1].all() if not switches else not moved[:-1].any()


@both
def test_each_switch_of_the_model_is_at_work(switches):
    """Visual QKV transforms the patches of a LLaViT, and text QKV those of a LLaVA."""
    model = tiny("llama", **switches)
    before = model.encode_image(pixels(1)).patches
    projection = model.model.language_model.layers[0].self_attn.v_proj
    with torch.no_grad():
        (projection if switches else projection.visual).weight.mul_(2.0)
    assert not torch.allclose(before, model.encode_image(pixels(1)).patches, atol=1e-3)


def test_a_prefix_changes_what_patches_see_and_an_image_token_in_it_is_refused():
    model = tiny("llama")
    alone, behind = model.encode_image(pixels(1)), model.encode_image(pixels(1), prefix=torch.tensor(PREFIX))
    assert not torch.allclose(alone.patches, behind.patches, atol=1e-3)
    with pytest.raises(ValueError, match="without an image token"):
        model.encode_image(pixels(1), prefix=[1, IMAGE])
    with pytest.raises(ValueError, match=r"\(n, 3, height, width\).*got shape \(3, 12, 12\)"):
        model.encode_image(pixels(1)[0])


def test_the_cls_token_of_a_tower_is_no_patch():
    full = tiny("llama")
    full.config.vision_feature_select_strategy = "full"
    found = full.encode_image(pixels(2), 0)
    assert found.patches.shape == (2, 3, 3, 64)
    with torch.no_grad():
        projected = full.model.multi_modal_projector(full.model.encode_images(pixels(2)))
    assert torch.equal(found.patches.flatten(1, 2), projected[:, 1:])


def test_a_model_in_training_encodes_as_in_evaluation_and_goes_on_training():
    model = tiny("llama")
    expected = model.encode_image(pixels(2)).patches
    model.config.text_config.attention_dropout = 0.5
    model.train()
    model.model.vision_tower.eval()
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    found = model.encode_image(pixels(2)).patches
    assert torch.equal(found, expected) and not found.requires_grad
    assert model.training and model.lm_head.training and not model.model.vision_tower.training


def test_compiled_layers_encode_the_same_and_stay_compiled():
    model = tiny("llama")
    expected, runs = model.encode_image(pixels(1)).patches, []

    def backend(graph, example_inputs):
        runs.append(graph)
        return graph.forward

    for layer in model.model.language_model.layers:
        layer.compile(backend=backend)
    assert torch.equal(model.encode_image(pixels(1)).patches, expected) and runs == []
    with torch.no_grad():
        ids = torch.tensor([[1, *[IMAGE] * PATCHES, 2]])
        model(input_ids=ids, pixel_values=pixels(1))
    assert runs


def test_no_hook_is_left_behind_also_after_an_error():
    model = tiny("llama")

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    model.encode_image(pixels(1), 0)  # transformers leaves hooks of its own on the tower once it was used
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2]]), output_hidden_states=True)  # and on the LLM
    before = hooks()
    model.encode_image(pixels(1), [0, 1, 3])
    assert hooks() == before
    with pytest.raises(RuntimeError):
        model.encode_image(torch.rand(1, 5, 12, 12), [0, 1])
    assert hooks() == before


@both
def test_the_prefix_of_a_processor_is_what_its_prompts_begin_with(tiny, switches):
    built = tiny.build(**(switches or {}))
    model, processor = built
    from PIL import Image

    picture = Image.new("RGB", (16, 16), "red")
    question = [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]
    prompt = processor.encode([{"role": "user", "content": question}], add_generation_prompt=True)
    prefix = processor.image_prefix()
    first = int((prompt["image_ids"] != TEXT).nonzero()[0])
    assert 0 < len(prefix) == first and torch.equal(prefix, prompt["input_ids"][:first])

    assert isinstance(model, LlavitForConditionalGeneration)
    found = model.eval().encode_image(processor.pixel_values([picture]), 1, prefix=prefix).patches[0]
    with torch.no_grad():
        hidden = model(
            input_ids=prompt["input_ids"][None],
            pixel_values=prompt["pixel_values"],
            output_hidden_states=True,
        ).hidden_states[1]
    want = hidden[0, prompt["image_ids"] == 0]
    torch.testing.assert_close(found.flatten(0, 1), want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_another_thread_that_runs_the_model_meanwhile_is_left_alone_and_leaves_nothing_here():
    model, mine, theirs = tiny("llama"), pixels(1), pixels(1, seed=1)
    layers = model.model.language_model.layers
    batch = {"input_ids": torch.tensor([[*PREFIX, *[IMAGE] * PATCHES, 7]]), "pixel_values": theirs}
    logits, expected = model(**batch).logits, model.encode_image(mine, [0, 2], prefix=PREFIX)
    for place in (layers[0], layers[1]):
        outcome = other_thread_within(place, lambda: model(**batch).logits)
        found = model.encode_image(mine, [0, 2], prefix=PREFIX)
        assert torch.equal(outcome[0], logits)
        for each, want in zip(found, expected, strict=True):
            assert torch.equal(each.patches, want.patches)
    read = model.model.encode_images(mine)
    other_thread_within(model.model.vision_tower, lambda: model.model.encode_images(theirs))
    assert torch.equal(model.model.encode_images(mine), read)
