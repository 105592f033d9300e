"""Knock-outs: blocked pairs have no weight, nothing else changes, in prompts and in decoding, alone and in batches."""

import pytest
import torch

from llavit.inspect.blocking import Block, blocked_pairs, knockout, spans, why_not
from llavit.inspect.running import around_attention, batch_of
from llavit.inspect.weights import attention_weights
from llavit.model.compat import cache_argument, output_cache
from llavit.model.routing import routed_linears
from tests.inspect.test_attention import SWITCHES, prompt_of
from tests.model.families import LLMS, image_prompt, other_thread_within, pixels, tiny
from tests.tiny import HEAD_DIM

LLAVA = SWITCHES[1]
BACKENDS = ["sdpa", "eager"]


def pairs(kind: str, inputs: dict) -> torch.Tensor:
    """Which query may not see which key, written out one by one."""
    ids = inputs["image_ids"].tolist()
    blocked = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for q, of_query in enumerate(ids):
        for k, of_key in enumerate(ids):
            if of_key >= 0:
                blocked[q, k] = {
                    "visual_to_visual": of_query >= 0 and q != k,
                    "bidirectional": of_query >= 0 and k > q,
                    "text_to_visual": of_query < 0,
                }[kind]
    return blocked


def knocked_out(model, batch, *blocks) -> list:
    with knockout(model, *blocks):
        return model(**batch).logits.tolist()


def backends_of(llm: str) -> list[str]:
    return ["eager"] if llm == "gemma2" else BACKENDS  # softcapped attention, which transformers runs eagerly


@pytest.mark.parametrize("kind", ["visual_to_visual", "bidirectional", "text_to_visual"])
@pytest.mark.parametrize("llm", LLMS)
def test_blocked_pairs_have_no_weight_and_in_the_first_layer_nothing_else_changes(llm, kind):
    inputs = prompt_of(llm)
    blocked = pairs(kind, inputs)
    for backend in backends_of(llm):
        model = tiny(llm, backend=backend)
        rows = range(len(inputs["input_ids"]))
        before = attention_weights(model, inputs, rows)
        with knockout(model, Block(kind)):
            after = attention_weights(model, inputs, rows)
        assert (before[0][:, blocked] > 0).any()
        assert (after[:, :, blocked] == 0).all()
        free = ~blocked.any(-1)
        assert torch.equal(after[0][:, free], before[0][:, free])  # rows without a blocked pair, to the bit
        # In the others the rest shares what was given to blocked keys.
        left = before[0].masked_fill(blocked, 0)
        torch.testing.assert_close(after[0], left / left.sum(-1, keepdim=True), atol=2e-6, rtol=1e-4)
        assert torch.equal(attention_weights(model, inputs, rows), before)


@pytest.mark.parametrize("kind", ["visual_to_visual", "text_to_visual"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_layers_in_question_are_blocked(kind, backend):
    model, inputs = tiny("llama", backend=backend, **LLAVA), prompt_of("llama")
    blocked, rows = pairs(kind, inputs), range(len(inputs["input_ids"]))
    before = attention_weights(model, inputs, rows)
    with knockout(model, Block(kind, [-1])):
        after = attention_weights(model, inputs, rows)
    assert torch.equal(after[:2], before[:2])
    assert (after[2][:, blocked] == 0).all() and (before[2][:, blocked] > 0).any()


def test_without_the_bidirectional_part_a_llavits_mask_is_that_of_a_llava():
    inputs = prompt_of("llama")
    model = tiny("llama", bidirectional_visual_attention=True)
    causal = tiny("llama", bidirectional_visual_attention=False)
    with torch.no_grad(), knockout(model, Block("bidirectional")):
        found = model(**batch_of(model, inputs)).logits
    with torch.no_grad():
        expected = causal(**batch_of(causal, inputs)).logits
        assert not torch.allclose(model(**batch_of(model, inputs)).logits, expected, atol=1e-3)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["visual_to_visual", "bidirectional", "text_to_visual"])
@pytest.mark.parametrize("llm", LLMS)
@torch.no_grad()
def test_decoding_with_a_cache_is_blocked_as_the_whole_text_is(llm, kind):
    for backend in backends_of(llm):
        model, inputs = tiny(llm, backend=backend), batch_of(tiny(llm), prompt_of(llm))
        with knockout(model, Block(kind, [0, 2])):
            whole = model(**inputs).logits
            cut = inputs["input_ids"].shape[1] - 3
            first = {key: value[:, :cut] for key, value in inputs.items() if key != "pixel_values"}
            out = model(**first, pixel_values=inputs["pixel_values"], use_cache=True)
            logits = [out.logits]
            for step in range(cut, cut + 3):
                token = inputs["input_ids"][:, step : step + 1]
                out = model(input_ids=token, use_cache=True, **cache_argument(output_cache(out)))
                logits.append(out.logits)
        torch.testing.assert_close(torch.cat(logits, 1), whole, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("switches", SWITCHES, ids=["llavit", "llava"])
@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_rows_of_a_padded_batch_answer_as_they_do_alone_also_after_rows_were_chosen(switches, backend):
    model = tiny("llama", backend=backend, **switches)
    rows = [image_prompt([1, 5], 1, [7]), image_prompt([1, 5, 6, 7, 8, 9], 1, [7, 8])]
    pictures = pixels(2)
    alone, order = [], [1, 0, 1]
    with knockout(model, Block("visual_to_visual", [0, 1]), Block("text_to_visual", [1, 2])):
        for ids, picture in zip(rows, pictures, strict=True):
            out = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                pixel_values=picture[None],
                max_new_tokens=5,
                do_sample=False,
                eos_token_id=-1,
            )
            alone.append(out[0, len(ids) :].tolist())
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = (torch.arange(longest) >= torch.tensor([[longest - len(row)] for row in rows])).long()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, pixel_values=pictures, use_cache=True
        )
        cache = output_cache(out)
        cache.batch_select_indices(torch.tensor(order))
        mask, position = mask[order], positions[order, -1:]
        token, written = out.logits[order, -1].argmax(-1, keepdim=True), []
        for _ in range(5):
            written.append(token)
            mask, position = torch.cat([mask, torch.ones_like(token)], 1), position + 1
            out = model(input_ids=token, attention_mask=mask, position_ids=position, **cache_argument(cache))
            token = out.logits[:, -1].argmax(-1, keepdim=True)
    plain = model.generate(
        input_ids=torch.tensor([rows[1]]),
        attention_mask=torch.ones(1, len(rows[1]), dtype=torch.long),
        pixel_values=pictures[1:],
        max_new_tokens=5,
        do_sample=False,
        eos_token_id=-1,
    )
    assert torch.cat(written, 1).tolist() == [alone[number] for number in order]
    assert plain[0, len(rows[1]) :].tolist() != alone[1]  # the knock-out says something else


@pytest.mark.parametrize("llm", ["llama", "phi3", "qwen2"])  # apart, fused, with biases
@pytest.mark.parametrize("what", ["visual_q", "visual_k", "visual_v", "visual_qkv"])
@torch.no_grad()
def test_a_replaced_projection_is_the_text_projection_for_these_layers_only(llm, what):
    model, inputs = tiny(llm), prompt_of(llm)
    batch = batch_of(model, inputs)
    before = model(**batch).logits
    weights = {name: module.visual for name, module in routed_linears(model).items()}
    with knockout(model, Block(what, [1])):
        found = model(**batch).logits
    assert {name: module.visual for name, module in routed_linears(model).items()} == weights
    assert torch.equal(model(**batch).logits, before)
    by_hand = tiny(llm)
    for name, linear in routed_linears(by_hand).items():
        if ".layers.1." not in name:
            continue
        letters = what.removeprefix("visual_")
        if name.endswith("qkv_proj"):  # 4 query heads and 2 of keys and values
            heads = {"q": (0, 4), "k": (4, 6), "v": (6, 8), "qkv": (0, 8)}[letters]
            part = slice(*(HEAD_DIM * head for head in heads))
        else:
            part = slice(None) if name.split(".")[-1][0] in letters else slice(0, 0)
        for mine, theirs in zip(linear.visual.parameters(), linear.text.parameters(), strict=True):
            mine[part] = theirs[part]
    torch.testing.assert_close(found, by_hand(**batch).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, before, atol=1e-3)


@torch.no_grad()
def test_knockouts_within_each_other_add_up_and_a_look_inside_sees_the_mask_that_arrives():
    model, inputs = tiny("llama", backend="sdpa"), prompt_of("llama")
    batch = batch_of(model, inputs)
    with knockout(model, Block("text_to_visual"), Block("visual_to_visual")):
        expected = model(**batch).logits
    seen = []

    def look(base, backend, module, query, key, value, mask, **kwargs):
        if hasattr(module, "layer_idx"):
            seen.append(mask[0, 0])
        return base(module, query, key, value, mask, **kwargs)

    with knockout(model, Block("text_to_visual")), knockout(model, Block("visual_to_visual")):
        with around_attention(look):
            assert torch.equal(model(**batch).logits, expected)
        out = model(**batch, use_cache=True)
        assert len(output_cache(out).layers) == 3 + 1  # both share what the cache remembers
    visual = inputs["image_ids"] >= 0
    assert len(seen) == 3 and all(int(mask[:, visual].sum()) == int(visual.sum()) for mask in seen)


@torch.no_grad()
def test_compiled_layers_are_blocked_as_well():
    model, inputs = tiny("llama", backend="sdpa"), prompt_of("llama")
    batch = batch_of(model, inputs)
    with knockout(model, Block("visual_to_visual")):
        expected = model(**batch).logits
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")
    plain = model(**batch).logits
    with knockout(model, Block("visual_to_visual")):
        assert torch.equal(model(**batch).logits, expected)
    assert not torch.allclose(plain, expected, atol=1e-3)
    assert torch.equal(model(**batch).logits, plain)


@torch.no_grad()
def test_embeddings_with_image_ids_are_blocked_and_text_alone_is_left_as_it_is():
    model, inputs = tiny("llama"), prompt_of("llama")
    batch = batch_of(model, inputs)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    given = {"inputs_embeds": embeds, "image_ids": batch["image_ids"], "pixel_values": batch["pixel_values"]}
    text = torch.tensor([[1, 5, 6, 7]])
    plain = model(input_ids=text).logits
    with knockout(model, Block("visual_to_visual")):
        torch.testing.assert_close(model(**given).logits, model(**batch).logits)
        assert torch.equal(model(input_ids=text).logits, plain)
        assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(text)).logits, plain)


@torch.no_grad()
def test_what_cannot_be_blocked_is_refused_and_not_let_through():
    model, llava, inputs = tiny("llama"), tiny("llama", **LLAVA), prompt_of("llama")
    batch = batch_of(model, inputs)
    with pytest.raises(ValueError, match="expected one of visual_to_visual"):
        Block("everything")
    with pytest.raises(ValueError, match="at least one block"), knockout(model):
        pass
    with (
        pytest.raises(ValueError, match="layer 3: there are 3 layers"),
        knockout(model, Block("visual_v", [3])),
    ):
        pass
    for what in ("visual_v", "bidirectional"):
        assert why_not(llava, Block(what)) and why_not(model, Block(what)) is None
        with pytest.raises(ValueError, match="nothing to knock out"), knockout(llava, Block(what)):
            pass
    outside = output_cache(model(**batch, use_cache=True))
    token = {"input_ids": torch.tensor([[7]])}
    block = Block("text_to_visual")
    with knockout(model, block):
        with pytest.raises(ValueError, match="read outside of this context"):
            model(**token, **cache_argument(outside))
        with pytest.raises(ValueError, match="not its LLM alone"):
            model.model.language_model(inputs_embeds=torch.zeros(1, 2, 64))
        with pytest.raises(ValueError, match="fixed size"):
            model.generate(**batch, max_new_tokens=2, cache_implementation="static")
    model.set_attn_implementation({"text_config": "documents"})
    assert knocked_out(model, batch, block) != model(**batch).logits.tolist()  # runs as sdpa
    with knockout(model, block), pytest.raises(ValueError, match="training on documents"):
        model.train()(**batch, use_cache=False)
    model.eval()
    inside = None
    with knockout(model, block):
        inside = output_cache(model(**batch, use_cache=True))
    model(**token, **cache_argument(inside))  # goes on as usual outside
    with knockout(model, block), pytest.raises(ValueError, match="read outside of this context"):
        model(**token, **cache_argument(inside))


@torch.no_grad()
def test_a_pass_that_ends_early_is_forgotten():
    """`encode_image` ends with an exception behind the last layer it needs; what follows has other tokens."""
    model, pictures = tiny("llama"), pixels(2)
    embeds = {"inputs_embeds": torch.zeros(2, 9, 64)}
    plain = model.encode_image(pictures, [0, 1])
    with knockout(model, Block("visual_to_visual", [0, 2])):
        found = model.encode_image(pictures, [0, 1])
        with pytest.raises(ValueError, match="not its LLM alone"):
            model.model.language_model(**embeds)
        with pytest.raises(ValueError, match="differ"):
            model(input_ids=torch.tensor([[1, 5, 6]]), pixel_values=pictures)
        with pytest.raises(ValueError, match="not its LLM alone"):
            model.model.language_model(**embeds)
    assert torch.equal(found[0].patches, plain[0].patches)
    assert not torch.allclose(found[1].patches, plain[1].patches, atol=1e-3)


@torch.no_grad()
def test_another_thread_runs_the_whole_model_meanwhile_and_changes_nothing_here():
    model, batch = tiny("llama"), batch_of(tiny("llama"), prompt_of("llama"))
    theirs = {"input_ids": torch.tensor([image_prompt([1], 1, [7])] * 2), "pixel_values": pixels(2)}
    whole, block = model(**theirs).logits, Block("visual_to_visual")
    with knockout(model, block):
        expected = model(**batch).logits
        outcome = other_thread_within(model.model.language_model.layers[0], lambda: model(**theirs).logits)
        assert torch.equal(model(**batch).logits, expected)
    assert torch.equal(outcome[0], whole)


def test_blocked_pairs_of_present_tokens_behind_earlier_ones():
    text, visual = False, True
    keys = torch.tensor([[text, visual, visual, text, visual]])
    queries = keys[:, 3:]
    assert blocked_pairs({"text_to_visual"}, queries, keys)[0, 0].int().tolist() == [
        [0, 1, 1, 0, 1],
        [0, 0, 0, 0, 0],
    ]
    assert blocked_pairs({"visual_to_visual"}, queries, keys)[0, 0].int().tolist() == [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0],
    ]


def test_names_of_blocks_say_what_and_where():
    assert Block("visual_q", [4]).name == "visual Q by text Q, layer 4"
    assert Block("bidirectional").name == "visual to later visual"
    assert spans([3]) == "3" and spans([0, 2, 3, 4]) == "0,2-4" and spans([-3, -2]) == "-3--2"
