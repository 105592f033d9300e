"""The loss at supervised tokens is transformers' loss, in value, gradient and all dtypes, with less memory."""

import pytest
import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from llavit.model import loss
from llavit.model.loss import cross_entropy
from llavit.train.memory import MemoryCount

WORDS = 50


def head_and_loss(loss_of, dtype, num_items=None, tokens=33):
    """Loss and gradients of a head that reads `tokens` states."""
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(tokens, 8, generator=generator) * 3).to(dtype).requires_grad_()
    weight = torch.randn(WORDS, 8, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, WORDS, (tokens,), generator=generator)
    found = loss_of(hidden @ weight.T, targets, num_items)
    (found * 3).backward()
    return found, hidden.grad, weight.grad


def transformers_loss(logits, targets, num_items):
    return ForCausalLMLoss(
        logits=logits, labels=None, shift_labels=targets, vocab_size=WORDS, num_items_in_batch=num_items
    )


@pytest.fixture(params=[1, 7 * WORDS, 1000 * WORDS], ids=["token by token", "pieces", "at once"])
def pieces(request, monkeypatch):
    monkeypatch.setattr(loss, "floats_at_a_time", lambda device_type: request.param)


@pytest.mark.parametrize("num_items", [None, 12, torch.tensor(12)], ids=["mean", "number", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_the_loss_of_transformers_with_its_gradients(pieces, dtype, num_items):
    ours = head_and_loss(cross_entropy, dtype, num_items)
    theirs = head_and_loss(transformers_loss, dtype, num_items)
    assert ours[0].dtype is torch.float32
    near = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-3}
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours[1:], theirs[1:], **near)


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[1e4, 0.0], [1e4, 0.0]], requires_grad=True)
    found = cross_entropy(logits * 1, torch.tensor([0, 1]))
    found.backward()
    assert found.item() == 5e3
    assert logits.grad.tolist() == [[0.0, 0.0], [0.5, -0.5]]


def test_no_token_has_a_sum_of_zero():
    logits = torch.zeros(0, WORDS, requires_grad=True)
    found = cross_entropy(logits * 1, torch.zeros(0, dtype=torch.long), num_items=4)
    found.backward()
    assert found.item() == 0 and logits.grad.shape == (0, WORDS)


def test_a_target_outside_the_vocabulary_is_an_error():
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        cross_entropy(torch.zeros(1, WORDS), torch.tensor([WORDS]))


def test_a_second_backward_pass_is_refused_not_wrong():
    logits = torch.randn(3, WORDS, requires_grad=True)
    found = cross_entropy(logits * 1, torch.tensor([0, 1, 2]))
    found.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.backward()


@pytest.mark.parametrize("dtype, share", [(torch.bfloat16, 6), (torch.float32, 3)], ids=["bf16", "fp32"])
def test_beside_the_logits_it_takes_next_to_no_memory(dtype, share, monkeypatch):
    monkeypatch.setattr(loss, "floats_at_a_time", lambda device_type: 20 * 4000)
    peaks = []
    for loss_of in cross_entropy, lambda x, y, n: ForCausalLMLoss(x, None, 4000, n, shift_labels=y):
        hidden, weight = torch.randn(500, 2).to(dtype).requires_grad_(), torch.randn(2, 4000).to(dtype)
        with MemoryCount() as memory:
            loss_of(hidden @ weight, torch.zeros(500, dtype=torch.long), 500).backward()
        peaks.append(memory.peak)
    own, theirs = peaks
    logits = 500 * 4000 * dtype.itemsize
    assert own < 1.25 * logits
    assert theirs >= share * logits


def test_compiled_it_is_the_same(compiler):
    torch._dynamo.reset()
    own = head_and_loss(torch.compile(cross_entropy, fullgraph=True), torch.float32, 12)
    torch.testing.assert_close(own, head_and_loss(cross_entropy, torch.float32, 12))
