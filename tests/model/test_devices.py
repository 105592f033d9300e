"""On a GPU that is pretended: every tensor is made where it is needed, in training and in answering."""

import pytest
import torch

from llavit.model.compat import recompute_activations
from llavit.model.routing import RoutedLinear
from tests.model.families import IMAGE, PATCHES, image_prompt, pixels, tiny
from tests.pretend_gpu import GPU, OnGpu, move, pretend_gpu


def training_batch() -> dict[str, torch.Tensor]:
    """Two rows padded on the right, with two images and one."""
    rows = [image_prompt([1, 5], 2, [7]), image_prompt([1], 1, [8])]
    length = len(rows[0])
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill((ids == IMAGE) | (mask == 0), -100),
        "pixel_values": pixels(3),
    }


def packed_batch() -> dict[str, torch.Tensor]:
    """The same samples in one row, by positions that restart."""
    first, second = image_prompt([1, 5], 2, [7]), image_prompt([1], 1, [8])
    ids = torch.tensor([first + second])
    image_ids = [[-1] * 2 + [0] * PATCHES + [-1] + [1] * PATCHES + [-1] * 3 + [2] * PATCHES + [-1] * 2]
    positions = [*range(len(first)), *range(len(second))]
    return {
        "input_ids": ids,
        "image_ids": torch.tensor(image_ids),
        "position_ids": torch.tensor([positions]),
        "labels": ids.masked_fill(ids == IMAGE, -100),
        "pixel_values": pixels(3),
    }


def text_batch() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[1, 5, 7]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def gradients(model, batch) -> tuple[float, dict[str, torch.Tensor]]:
    outputs = model(**batch, supervised_logits_only=True, use_cache=False)
    outputs.loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return outputs.loss.item(), {name: getattr(grad, "held", grad) for name, grad in found.items()}


@pytest.mark.parametrize("make", [training_batch, packed_batch, text_batch])
@pytest.mark.parametrize("attention", ["sdpa", "documents"])
def test_a_training_step_on_a_gpu_is_that_on_a_cpu(make, attention):
    def model():
        made = tiny("llama", vision_feature_norm=True, layers=2).train()
        made.set_attn_implementation({"text_config": attention})
        return made

    batch = make()
    loss, expected = gradients(model(), batch)
    with pretend_gpu():
        there = move(model())
        got, found = gradients(there, {key: value.to(GPU) for key, value in batch.items()})
    assert got == pytest.approx(loss, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


def test_in_bfloat16_and_with_activations_made_again_a_step_runs_on_a_gpu():
    model = tiny("qwen2", layers=2).train()
    recompute_activations(model, use_reentrant=False)
    with pretend_gpu(), torch.autocast("cuda", torch.bfloat16):
        move(model)
        batch = {key: value.to(GPU) for key, value in training_batch().items()}
        loss, found = gradients(model, batch)
    assert 0 < loss < float("inf")
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("make", [training_batch, packed_batch])
@pytest.mark.parametrize("attention", ["sdpa", "documents"])
def test_from_the_first_layer_to_the_end_of_the_backward_pass_nothing_waits_for_the_gpu(make, attention):
    model = tiny("llama", layers=2).train()
    model.set_attn_implementation({"text_config": attention})
    model.model.vision_tower.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(False)
    with pretend_gpu() as pretence:
        move(model)
        first = model.model.language_model.layers[0]
        first.register_forward_pre_hook(lambda module, args: pretence.waits.clear())
        batch = {key: value.to(GPU) for key, value in make().items()}
        model(**batch, supervised_logits_only=True, use_cache=False).loss.backward()
        assert not pretence.waits


def test_all_ways_to_generate_run_on_a_gpu_and_give_the_cpus_tokens():
    ids = torch.tensor([[0] * 2 + image_prompt([1], 1, [8]), image_prompt([1, 5, 6], 1, [7])])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels(2)}
    ways = [
        {},
        {"cache_implementation": "static", "disable_compile": True},
        {"num_beams": 2},
        {"num_return_sequences": 2, "do_sample": True, "top_k": 1},
    ]
    model = tiny("gemma3", layers=2)  # layers of two kinds, with a mask each

    def answers(batch):
        return [model.generate(**batch, max_new_tokens=3, min_new_tokens=3, **way) for way in ways]

    expected = answers(inputs)
    with pretend_gpu():
        move(model)
        found = answers({key: value.to(GPU) for key, value in inputs.items()})
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, OnGpu)
        assert one.held.tolist() == other.tolist()


def test_images_are_encoded_and_statistics_measured_on_the_gpu_from_pixels_of_the_cpu():
    model = tiny("llama", vision_feature_norm=True, layers=2)
    with pretend_gpu():
        move(model)
        model.model.calibrate_features(pixels(2))
        encoded = model.encode_image(pixels(2), [0, -1], prefix=[3, 4])
    assert all(isinstance(each.patches, OnGpu) for each in encoded)


def test_visual_projections_are_made_beside_those_of_text():
    with pretend_gpu():
        text = move(torch.nn.Linear(4, 2))
        made = RoutedLinear(text)
        made.randomise_visual()
        assert made.visual.weight.device == GPU


def test_what_the_pretence_forbids_is_what_a_gpu_forbids():
    with pretend_gpu() as pretence:
        x = torch.ones(3, 4).to(GPU)
        with pytest.raises(RuntimeError, match=r"expected all tensors on cuda:0, found shapes \[\(3, 4\)\]"):
            x + torch.ones(3, 4)
        with pytest.raises(RuntimeError, match="an index on cuda:0 into a tensor on cpu"):
            torch.ones(3)[torch.arange(2, device=GPU)]
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert not pretence.waits
        assert x.cpu().numpy().sum() == x.sum().item() == 12
        assert len(x[x > 0]) == 12 and sum(pretence.waits.values()) == 3
