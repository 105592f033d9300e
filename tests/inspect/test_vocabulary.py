"""Words as a measure: the nearest ones are those of a slow sum, and special tokens and empty rows are no words."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from llavit.inspect.running import batch_of, hidden_states
from llavit.inspect.vocabulary import Vocabulary
from tests.inspect.test_attention import SWITCHES, prompt_of
from tests.model.families import IMAGE, LLMS, tiny
from tests.tiny import tokenizer as byte_tokenizer


class Words:
    """A tokenizer of the 100 tokens of the tiny models: two special ones, words, pieces and signs."""

    def __init__(self):
        self.all_special_ids = (0, 1)
        self.added_tokens_decoder = {2: SimpleNamespace(special=True)}
        words = [" cat", "Cat", " dart", "board", " car", "...", " lamp", " rot", "\n", " lam", "ps", " with"]
        self.table = dict(enumerate(words, 3))

    def get_vocab(self):
        return {str(i): i for i in range(99)}

    def batch_decode(self, ids):
        return [self.table.get(i, f"<{i}>") for (i,) in ids]

    def encode(self, text, add_special_tokens):
        pieces = {" dartboard": [5, 6], " carrot": [7, 10], " cat": [3], " lamp": [9], " lamps": [12, 13]}
        return pieces.get(text, [8])


def vocabulary(model, **options) -> Vocabulary:
    return Vocabulary(model, SimpleNamespace(tokenizer=Words()), **options)


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("switches", SWITCHES, ids=["llavit", "llava"])
@torch.no_grad()
def test_behind_the_last_layer_the_words_are_those_of_the_models_logits(llm, switches):
    model = tiny(llm, **switches)
    batch = batch_of(model, prompt_of(llm))
    ids, probabilities = vocabulary(model).nearest_outputs(hidden_states(model, batch)[1][-1][0], k=4)
    expected = model(**batch).logits[0].softmax(-1)
    expected[:, [0, 1, 2, IMAGE]] = 0  # special tokens are no words, but keep their share
    top = expected.topk(4)
    np.testing.assert_array_equal(ids, top.indices)
    np.testing.assert_allclose(probabilities, top.values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("llm", ["llama", "gemma2", "gemma3"])
@torch.no_grad()
def test_the_head_is_that_of_the_llm_as_transformers_runs_it_alone(llm):
    """The text LLM with the same weights: same words; with Gemma 2's softcap on its logits as well."""
    model = tiny(llm, visual_qkv=False, bidirectional_visual_attention=False)
    alone = AutoModelForCausalLM.from_config(model.config.llm).float().eval()
    alone.model.load_state_dict(model.model.language_model.state_dict())
    alone.lm_head.load_state_dict(model.lm_head.state_dict())
    text = torch.tensor([[1, 5, 7, 9, 30, 41]])
    _, written = hidden_states(model, {"input_ids": text})
    ids, _ = vocabulary(model).nearest_outputs(written[-1][0], k=5)
    logits = alone(input_ids=text).logits[0]
    logits[:, [0, 1, 2, IMAGE]] = -torch.inf
    if llm == "gemma2":
        assert model.config.llm.final_logit_softcapping and logits.max() < 30
    np.testing.assert_array_equal(ids, logits.topk(5).indices)


@pytest.mark.parametrize("llm", ["llama", "gemma3"])  # Gemma scales its embeddings: cosines do not mind
@torch.no_grad()
def test_at_the_input_a_word_is_nearest_to_itself(llm):
    model = tiny(llm)
    words = [3, 50, 77]
    at_input, _ = hidden_states(model, {"input_ids": torch.tensor([words])})
    ids, cosines = vocabulary(model).nearest_embeddings(at_input[0], k=2)
    assert ids[:, 0].tolist() == words
    np.testing.assert_allclose(cosines[:, 0], 1, rtol=1e-5)
    weight = model.get_input_embeddings().weight
    slow = torch.nn.functional.cosine_similarity(at_input[0][:, None], weight[None], dim=-1)
    slow[:, [0, 1, 2, IMAGE]] = -1
    np.testing.assert_array_equal(ids, slow.topk(2).indices)
    np.testing.assert_allclose(cosines, slow.topk(2).values, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_cosines_are_as_fine_in_a_model_that_computes_in_sixteen_bits(dtype):
    model = tiny("llama")
    model.get_input_embeddings().weight.mul_(20)
    model.to(dtype)
    states = 5000 * torch.randn(30, 64, generator=torch.Generator().manual_seed(1), dtype=dtype)
    ids, cosines = vocabulary(model).nearest_embeddings(states, k=5)
    weight = model.get_input_embeddings().weight.double()
    slow = torch.nn.functional.cosine_similarity(states.double()[:, None], weight[None], dim=-1)
    slow[:, [0, 1, 2, IMAGE]] = -1
    np.testing.assert_allclose(cosines, slow.topk(5).values, rtol=1e-4)
    np.testing.assert_array_equal(ids, slow.topk(5).indices)


def test_many_states_are_scored_some_at_a_time(monkeypatch):
    model = tiny("llama")
    words, states = vocabulary(model), torch.randn(7, 64, generator=torch.Generator().manual_seed(3))
    most: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, output: most.append(len(output)))
    whole = (*words.nearest_outputs(states, 3), *words.nearest_embeddings(states, 3))
    monkeypatch.setattr("llavit.inspect.vocabulary.PIECE", 200)  # scores of two states
    parts = (*words.nearest_outputs(states, 3), *words.nearest_embeddings(states, 3))
    assert most == [7, 2, 2, 2, 1]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_tied_head_gives_the_same_words_as_an_untied_copy_of_it():
    from llavit import LlavitForConditionalGeneration
    from tests.model.families import config_of

    found = []
    for tied in (True, False):
        config = config_of("llama")
        config.text_config.tie_word_embeddings = config.tie_word_embeddings = tied
        torch.manual_seed(0)
        model = LlavitForConditionalGeneration._from_config(config).float().eval()
        weight = torch.randn(100, 64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(weight)
            model.lm_head.weight.copy_(weight)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
        states = torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
        words = vocabulary(model)
        found.append((*words.nearest_outputs(states, 3), *words.nearest_embeddings(states, 3)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_only_whole_words_if_asked_for_and_never_more_than_there_are():
    model = tiny("llama")
    words = vocabulary(model, whole_words=True)
    ids, _ = words.nearest_outputs(torch.randn(5, 64), k=10)
    assert {words.text[int(i)].strip() for i in ids[0]} == {
        "cat",
        "Cat",
        "dart",
        "board",
        "car",
        "lamp",
        "rot",
        "lam",
        "ps",
        "with",
    }
    with pytest.raises(ValueError, match="k=11: expected 1 to 10"):
        words.nearest_outputs(torch.randn(1, 64), k=11)


def test_a_token_names_a_thing_as_a_word_or_as_its_beginning_but_not_as_another_thing():
    words = vocabulary(tiny("llama"))
    named = words.naming(
        {
            "cat": ["cat", "cats"],
            "dartboard": ["dartboard"],
            "carrot": ["carrot"],
            "car": ["car"],
            "lamp": ["pair of lamp", "lamps with lamp"],
        }
    )
    # Neither " with", nor " lam", with which the tokenizer begins the plural of a word that it has.
    assert named == {"cat": [3, 4], "dartboard": [5], "carrot": [], "car": [7], "lamp": [9]}


def test_rows_of_the_embedding_that_no_token_has_are_no_words(tiny):
    model, processor = tiny.build()
    rows = model.get_input_embeddings().weight.shape[0]
    words = Vocabulary(model, processor)
    known = {i for i in processor.tokenizer.get_vocab().values() if i < rows}
    special = {0, 1, 2, processor.image_token_id}
    assert set(np.flatnonzero(~words.hidden_w.numpy())) == known - special
    assert len(byte_tokenizer()) == 259  # three special ones and the bytes


def test_an_int8_model_is_read_as_it_embeds(tiny):
    from llavit.model.quantize import quantize_int8

    model, processor = tiny.build(dtype=torch.float32)
    states = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    before, _ = Vocabulary(model, processor).nearest_outputs(states, 1)
    quantize_int8(model.eval())
    words = Vocabulary(model, processor)
    assert words.embeddings_wd.is_floating_point()
    embedded = model.get_input_embeddings()(torch.tensor([40, 41]))
    assert words.nearest_embeddings(embedded, 1)[0][:, 0].tolist() == [40, 41]
    assert (words.nearest_outputs(states, 1)[0] == before).mean() >= 0.75  # eight bits may swap near ties
