"""Running a model to look inside: hidden states are the model's own, and looking leaves it as it was."""

import threading

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llavit.inspect.mask import recorded_masks
from llavit.inspect.running import around_attention, batch_of, hidden_states
from llavit.inspect.weights import attention_weights
from tests.inspect.test_attention import SWITCHES, prompt_of
from tests.model.families import LLMS, image_prompt, other_thread_within, pixels, tiny


@pytest.mark.parametrize("switches", SWITCHES, ids=["llavit", "llava"])
@pytest.mark.parametrize("llm", LLMS)
@torch.no_grad()
def test_the_last_layer_before_norm_and_head_gives_the_models_logits(llm, switches):
    model = tiny(llm, **switches)
    batch = batch_of(model, prompt_of(llm))
    read, written = hidden_states(model, batch)
    assert len(written) == model.config.llm.num_hidden_layers
    llm_ = model.model.language_model
    torch.testing.assert_close(model.lm_head(llm_.norm(written[-1])), model(**batch).logits)
    # Layer by layer as transformers records it, where it records the same: its last entry is after the norm.
    theirs = model.model(**batch, output_hidden_states=True).hidden_states
    for mine, other in zip([read, *written[:-1]], theirs[:-1], strict=True):
        torch.testing.assert_close(mine, other)


def test_chosen_layers_come_in_their_order_and_hooks_are_gone():
    model = tiny("llama")
    batch = batch_of(model, prompt_of("llama"))
    _, every = hidden_states(model, batch)
    _, some = hidden_states(model, batch, [2, 0])
    assert torch.equal(some[0], every[2]) and torch.equal(some[1], every[0])
    assert not any(
        layer._forward_hooks or layer._forward_pre_hooks for layer in model.model.language_model.layers
    )


@torch.no_grad()
def test_states_are_those_of_this_thread_while_another_runs_the_model():
    model = tiny("llama")
    batch = batch_of(model, prompt_of("llama"))
    theirs = {"input_ids": torch.tensor([image_prompt([1], 1, [7])] * 2), "pixel_values": pixels(2, seed=1)}
    read, written = hidden_states(model, batch)
    other_thread_within(model.model.language_model.layers[0], lambda: model(**theirs))
    found_read, found = hidden_states(model, batch)
    for mine, other in zip([found_read, *found], [read, *written], strict=True):
        assert torch.equal(mine, other)


def test_a_batch_of_two_gives_the_states_of_each_alone():
    model = tiny("llama")
    one, other = prompt_of("llama"), prompt_of("llama")
    other = {**other, "pixel_values": other["pixel_values"].flip(0)}
    _, both = hidden_states(model, batch_of(model, one, other))
    for row, each in enumerate([one, other]):
        _, alone = hidden_states(model, batch_of(model, each))
        torch.testing.assert_close(both[-1][row], alone[-1][0])
    with pytest.raises(ValueError, match=r"lengths \[3, 25\]"):
        batch_of(model, one, {"input_ids": one["input_ids"][:3]})


@pytest.mark.parametrize("backend", ["sdpa", "documents"])
def test_a_model_in_training_is_looked_at_as_in_evaluation_and_trains_on(backend):
    """`documents` lays tokens in another order while it trains; dropout is of training too."""
    model, inputs = tiny("llama", backend="sdpa"), prompt_of("llama")
    batch = batch_of(model, inputs)
    expected = (*hidden_states(model, batch)[1], attention_weights(model, inputs, [4, -1]))
    sees = recorded_masks(model, inputs)[0].sees
    model.set_attn_implementation({"text_config": backend})
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    found = (*hidden_states(model, batch)[1], attention_weights(model, inputs, [4, -1]))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert (recorded_masks(model, inputs)[0].sees == sees).all()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("backend", ["sdpa", "eager", "documents"])
def test_a_hand_around_attention_sees_every_layer_under_its_real_name(backend):
    model = tiny("llama", backend="sdpa")
    model.set_attn_implementation({"text_config": backend})
    batch, seen = batch_of(model, prompt_of("llama")), []

    def look(base, name, module, query, key, value, mask, **kwargs):
        if hasattr(module, "layer_idx"):
            seen.append((name, module.layer_idx, None if mask is None else mask.shape[-1]))
        return base(module, query, key, value, mask, **kwargs)

    with torch.no_grad():
        expected = model(**batch).logits
        with around_attention(look):
            found = model(**batch).logits
            other = threading.Thread(target=lambda: model(**batch))
            other.start()
            other.join()
    assert seen == [(backend, layer, 25) for layer in range(3)]  # the other thread's pass is not ours
    assert torch.equal(found, expected)
    assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)


def test_the_hand_is_taken_away_after_an_error():
    with pytest.raises(KeyError), around_attention(lambda *args, **kwargs: None):
        raise KeyError
    assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)
