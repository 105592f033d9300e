"""Training on documents gives what training on padded or packed rows gives."""

import pytest
import torch

from llavit.data import Collator
from llavit.model import attention
from llavit.model.compat import recompute_activations
from llavit.model.documents import Documents
from tests.model.families import IMAGE, LLMS, image_prompt, pixels, tiny

every_llm = pytest.mark.parametrize("llm", sorted(LLMS))

PROMPTS = [image_prompt([1, 5], 2, [7, 9]), [1, 4, 6], image_prompt([1], 1, [8, 8, 3, 2])]
IMAGES = 3


def batch(arrangement: str) -> dict[str, torch.Tensor]:
    """Three documents with two, no and one image, in three rows or in one."""
    samples, done = [], 0
    for ids in PROMPTS:
        row = torch.tensor(ids)
        visual = row == IMAGE
        images = (visual.cumsum(0) - 1) // max(int(visual.sum()) // max(int((row >= 10).sum()), 1), 1)
        count = int(images.max()) + 1 if visual.any() else 0
        sample = {
            "input_ids": row,
            "image_ids": torch.where(visual, images, -1),
            "labels": row.masked_fill(visual, -100),
        }
        sample["labels"][0] = -100  # padding on its left would have to foresee it
        if count:
            sample["pixel_values"] = pixels(IMAGES)[done : done + count]
        done += count
        samples.append(sample)
    side = "left" if arrangement == "left" else "right"
    made = Collator(0, side, pack_length=64 if arrangement == "packed" else None)(samples)
    return {key: value for key, value in made.items() if isinstance(value, torch.Tensor)}


def loss_and_gradients(model, inputs, dtype=torch.float32):
    model.train().zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        loss = model(**inputs, use_cache=False, supervised_logits_only=True).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(one, two, **tolerance):
    torch.testing.assert_close(one[0], two[0], **tolerance)
    assert one[1].keys() == two[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, two[1][name], **tolerance, msg=name)


SAME = {"atol": 2e-5, "rtol": 1e-3}  # float32: sums in another order


@every_llm
@pytest.mark.parametrize("arrangement", ["left", "right", "packed"])
def test_documents_give_the_loss_and_gradients_of_rows(llm, arrangement):
    inputs = batch(arrangement)
    plain = loss_and_gradients(tiny(llm, backend="eager"), inputs)
    assert_same(plain, loss_and_gradients(tiny(llm, backend="documents"), inputs), **SAME)


@pytest.mark.parametrize("switches", [{"visual_qkv": False}, {"bidirectional_visual_attention": False}])
@pytest.mark.parametrize("arrangement", ["right", "packed"])
def test_so_they_do_with_a_switch_off(switches, arrangement):
    inputs = batch(arrangement)
    plain = loss_and_gradients(tiny("llama", backend="eager", **switches), inputs)
    assert_same(plain, loss_and_gradients(tiny("llama", backend="documents", **switches), inputs), **SAME)


def test_pieces_and_sdpa_compute_the_same(monkeypatch):
    inputs, model = batch("right"), tiny("llama", backend="documents")
    whole = loss_and_gradients(model, inputs)
    monkeypatch.setattr(attention, "PIECE", 1)
    assert_same(whole, loss_and_gradients(model, inputs), **SAME)
    monkeypatch.setattr(attention, "_attend", attention.attend_plainly)
    assert_same(whole, loss_and_gradients(model, inputs), **SAME)


def test_what_lies_behind_a_short_document_has_no_gradient():
    places = torch.tensor([[0, 1, 2], [3, -1, -1]])
    inverse = torch.tensor([0, 1, 2, 3])
    torch.manual_seed(0)
    inputs = [torch.randn(4, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)]
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    assert torch.autograd.gradcheck(
        lambda *qkv: attention._attend(*qkv, mask, places, inverse, 0.3), inputs, fast_mode=False
    )


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_in_bfloat16_they_agree_with_rows_as_far_as_bfloat16_goes(compiled):
    inputs = batch("right")
    exact = loss_and_gradients(tiny("llama", backend="eager", gain=1.0), inputs)
    rows = loss_and_gradients(tiny("llama", backend="eager", gain=1.0), inputs, torch.bfloat16)
    model = tiny("llama", backend="documents", gain=1.0)
    if compiled:
        for layer in model.get_decoder().layers:
            layer.compile(dynamic=True)
    documents = loss_and_gradients(model, inputs, torch.bfloat16)

    def error(run):
        return torch.cat([(run[1][name] - gradient).flatten() for name, gradient in exact[1].items()]).norm()

    assert error(documents) < 1.25 * error(rows)


def test_gradient_checkpointing_changes_nothing():
    inputs, model = batch("packed"), tiny("llama", backend="documents")
    plain = loss_and_gradients(model, inputs)
    recompute_activations(model)
    assert_same(plain, loss_and_gradients(model, inputs), **SAME)


@every_llm
@torch.no_grad()
def test_a_model_with_it_still_answers(llm):
    rows = [PROMPTS[0], [0] * (len(PROMPTS[0]) - len(PROMPTS[2])) + PROMPTS[2], [1, 4, 6]]
    padded = torch.tensor(rows[:2])
    batch = {"input_ids": padded, "attention_mask": (padded != 0).long(), "pixel_values": pixels(3)}
    text = {"input_ids": torch.tensor(rows[2:])}  # without a mask: causal
    plain, model = tiny(llm, backend="eager"), tiny(llm, backend="documents")
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for inputs in (batch, text):
        kept = inputs["input_ids"] != 0
        torch.testing.assert_close(model(**inputs).logits[kept], plain(**inputs).logits[kept], **SAME)
        for way in ({}, {"cache_implementation": "static", "disable_compile": True}):
            answers = [each.generate(**inputs, **options, **way).tolist() for each in (plain, model)]
            assert answers[0] == answers[1], way


def test_padding_and_packing_are_gone_from_the_row_of_tokens():
    ids = torch.tensor([[-1, 0, 0, -1], [-1, -1, -1, -1]])
    padded = Documents.of(ids, attention_mask=torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]))
    assert padded.order.tolist() == [0, 3, 6, 7, 1, 2]
    assert padded.texts == 4
    assert padded.places.tolist() == [[0, 4, 5, 1], [2, 3, -1, -1]]
    packed = Documents.of(ids[:1], position_ids=torch.tensor([[0, 1, 2, 0]]))
    assert packed.image_ids.tolist() == [[-1, 0, 0], [-1, -1, -1]]
