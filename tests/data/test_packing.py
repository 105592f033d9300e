"""Packing: fewer rows, the same samples, the same loss of each."""

import copy

import pytest
import torch

from llavit.data import Collator, ConversationDataset, open_reader
from llavit.data.packing import pack
from llavit.train.order import SeededOrder, by_length


def samples_of(tiny, model_and_processor, count=6):
    data = ConversationDataset(open_reader(tiny.data), model_and_processor[1])
    return [data[index] for index in range(count)]


@pytest.fixture(scope="module")
def built(tiny):
    torch.manual_seed(0)
    model, processor = tiny.build()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model.eval(), processor


def losses_by_sample(model, batch, rows):
    """Sum the loss of each sample of a batch; `rows` gives a sample number for each token, -1 for padding."""
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "sample_ids", "skipped")}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    targets, number = batch["labels"][:, 1:], rows[:, 1:]
    token = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return {int(s): token[number.flatten() == s].sum().item() for s in number.unique() if s >= 0}


def sample_numbers(samples, pack_length):
    groups = pack([len(sample["input_ids"]) for sample in samples], pack_length)
    rows = [torch.cat([torch.full((len(samples[i]["input_ids"]),), i) for i in group]) for group in groups]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["sdpa", "eager", "flex_attention"])
def test_a_packed_sample_has_the_loss_of_the_sample_alone(tiny, built, backend):
    model, processor = copy.deepcopy(built[0]), built[1]
    model.set_attn_implementation({"text_config": backend})
    samples = samples_of(tiny, built)
    packed = Collator(processor.tokenizer.pad_token_id, pack_length=120)(samples)
    assert len(packed["input_ids"]) < len(samples)
    got = losses_by_sample(model, packed, sample_numbers(samples, 120))
    for index, sample in enumerate(samples):
        alone = Collator(processor.tokenizer.pad_token_id)([sample])
        # By sdpa: flex_attention is compiled for each length.
        (expected,) = losses_by_sample(built[0], alone, torch.zeros_like(alone["input_ids"])).values()
        assert got[index] == pytest.approx(expected, rel=1e-5), sample["sample_id"]


def test_packing_changes_neither_loss_nor_gradient(tiny, built):
    samples = samples_of(tiny, built)
    found = []
    for pack_length in (None, 120, 64):
        model = copy.deepcopy(built[0]).train()
        batch = Collator(built[1].tokenizer.pad_token_id, pack_length=pack_length)(samples)
        inputs = {key: value for key, value in batch.items() if key not in ("sample_ids", "skipped")}
        loss = model(**inputs, supervised_logits_only=True, use_cache=False).loss
        loss.backward()
        found.append((loss.item(), {name: p.grad for name, p in model.named_parameters()}))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][1][name], rtol=1e-4, atol=1e-6)


def test_an_image_in_a_packed_row_has_an_id_of_its_own(tiny, built):
    samples = samples_of(tiny, built)
    batch = Collator(0, pack_length=200)(samples)
    for ids, positions in zip(batch["image_ids"], batch["position_ids"], strict=True):
        starts = (positions == 0).cumsum(0)
        owners = {int(image): starts[ids == image].unique().tolist() for image in ids.unique() if image >= 0}
        assert all(len(owner) == 1 for owner in owners.values())
    images = sum(len(ids[ids >= 0].unique()) for ids in batch["image_ids"])
    assert images == len(batch["pixel_values"]) == sum("pixel_values" in sample for sample in samples)


def test_a_batch_of_which_nothing_is_left_can_be_packed(built):
    batch = Collator(0, pack_length=8)([])
    assert batch["position_ids"].tolist() == [[0]] and batch["labels"].tolist() == [[-100]]


def test_packing_keeps_every_sample_once_and_every_row_in_its_budget():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (200,), generator=generator).tolist()
    rows = pack(lengths, 64)
    assert sorted(index for row in rows for index in row) == list(range(200))
    assert max(sum(lengths[index] for index in row) for row in rows) <= 64
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // 64) + 1
    with pytest.raises(ValueError, match="at least 1 token"):
        pack(lengths, 0)


def test_rows_are_filled_evenly():
    """Eight samples of about 100 tokens: three rows of 320 hold them, four are shorter and waste less."""
    assert len(pack([100] * 8, 320)) == 4
    generator = torch.Generator().manual_seed(0)
    padding = []
    for _ in range(50):
        lengths = torch.randint(60, 120, (8,), generator=generator).tolist()
        fills = [sum(lengths[index] for index in row) for row in pack(lengths, 320)]
        padding.append(1 - sum(fills) / (len(fills) * max(fills)))
    assert sum(padding) / 50 < 0.05


def test_grouping_by_length_keeps_the_samples_of_a_step():
    lengths = [7 * index % 13 for index in range(40)]
    plain = list(SeededOrder(40, 36, seed=1))
    grouped = list(SeededOrder(40, 36, seed=1, arrange=by_length(lengths), step=8))
    for start in range(0, 36, 8):
        assert sorted(plain[start : start + 8]) == sorted(grouped[start : start + 8])
        sizes = [lengths[index] for index in grouped[start : start + 8]]
        assert sizes == sorted(sizes, reverse=True)


def test_lengths_are_near_the_truth_and_read_no_image(tiny, built):
    data = ConversationDataset(open_reader(tiny.data), built[1])
    guessed, true = data.lengths(), [len(data[index]["input_ids"]) for index in range(len(data))]
    assert len(guessed) == len(true)
    with_image = [index for index in range(len(data)) if "pixel_values" in data[index]]
    without = [index for index in range(len(data)) if index not in with_image]
    assert min(guessed[i] for i in with_image) > max(guessed[i] for i in without) - 4
