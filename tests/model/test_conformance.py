"""The conformance suite: what every LLM family must keep, over tiny random models."""

import copy
import io
import threading

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    DynamicCache,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from llavit import LlavitForConditionalGeneration, LlavitModel
from llavit.model.compat import recompute_activations
from llavit.model.routing import routed_linears

from .families import (
    IMAGE,
    LLMS,
    PATCHES,
    TOWERS,
    config_of,
    image_prompt,
    other_thread_within,
    pixels,
    tiny,
)

LLAVA = {"visual_qkv": False, "bidirectional_visual_attention": False}

PROMPTS = {
    "one image": (image_prompt([1, 5, 6], 1, [7, 8]), 1),
    "two images": (image_prompt([1, 5], 2, [7]), 2),
    "adjacent images": ([1, *[IMAGE] * (2 * PATCHES), 5, 6], 2),
    "text only": ([1, 5, 6, 7, 8], 0),
}

every_llm = pytest.mark.parametrize("llm", LLMS)
# transformers refuses sdpa for Gemma 2, whose softcapped scores it cannot compute.
every_llm_and_backend = pytest.mark.parametrize(
    ("llm", "backend"),
    [(llm, b) for llm in LLMS for b in ("eager", "sdpa") if (llm, b) != ("gemma2", "sdpa")],
)


def inputs(prompt: str) -> dict[str, torch.Tensor]:
    ids, images = PROMPTS[prompt]
    batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    return {**batch, "pixel_values": pixels(images)} if images else batch


def llava_twin(model: LlavitForConditionalGeneration) -> LlavaForConditionalGeneration:
    """transformers' LLaVA with the text weights of `model`."""
    fields = {**model.config.to_dict(), "model_type": "llava"}
    for switch in LLAVA:
        fields.pop(switch)
    twin = LlavaForConditionalGeneration._from_config(
        LlavaConfig(**fields), attn_implementation=model.config.text_config._attn_implementation
    )
    weights = {
        name.replace(".text.", "."): weight
        for name, weight in model.state_dict().items()
        if ".visual." not in name
    }
    twin.load_state_dict(weights)
    return twin.float().eval()


@torch.no_grad()
def hidden(model, batch) -> torch.Tensor:
    return model.model(**batch).last_hidden_state[0]


# 1, 2: LLaVA


@every_llm
@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_with_the_switches_off_it_is_llava_to_the_logit(llm, tower):
    # The usual initialisation: with larger weights the same matmul on other memory may differ by 1e-6 already.
    model = tiny(llm, tower, gain=1.0, **LLAVA, vision_feature_layer=-2)
    twin = llava_twin(model)
    for prompt in PROMPTS:
        batch = inputs(prompt)
        torch.testing.assert_close(model(**batch).logits, twin(**batch).logits, atol=1e-6, rtol=0)


@every_llm
@torch.no_grad()
def test_fresh_visual_qkv_with_a_causal_mask_is_llava(llm):
    model = tiny(llm, bidirectional_visual_attention=False)
    model.copy_text_to_visual()
    twin = llava_twin(model)
    for prompt in PROMPTS:
        batch = inputs(prompt)
        # 1e-5: the two projections are two matmuls, whose sums are ordered differently.
        torch.testing.assert_close(model(**batch).logits, twin(**batch).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_each_change_alone_changes_the_logits():
    """The equalities above have teeth: with a switch on, the logits differ."""
    base = tiny("llama", **LLAVA)
    for switch in LLAVA:
        changed = tiny("llama", **{**LLAVA, switch: True})
        missing, _ = changed.load_state_dict(
            {
                name.replace("_proj.", "_proj.text.")
                if switch == "visual_qkv"
                and "language_model" in name
                and name.split(".")[-2] in ("q_proj", "k_proj", "v_proj")
                else name: weight
                for name, weight in base.state_dict().items()
            },
            strict=False,
        )
        assert all(".visual." in name for name in missing)
        difference = (changed(**inputs("one image")).logits - base(**inputs("one image")).logits).abs().max()
        assert difference > 1e-2, switch


# 3: routing


@every_llm
@torch.no_grad()
def test_a_visual_projection_changes_visual_rows_and_what_follows_only(llm):
    model, batch = tiny(llm), inputs("one image")
    before = hidden(model, batch)
    for projection in routed_linears(model).values():
        projection.visual.weight.add_(0.1 * torch.randn_like(projection.visual.weight))
    after = hidden(model, batch)
    first = PROMPTS["one image"][0].index(IMAGE)
    assert torch.equal(before[:first], after[:first])
    assert ((before - after)[first:].abs().amax(-1) > 1e-4).all()


@every_llm
@torch.no_grad()
def test_a_text_projection_leaves_the_visual_rows_own_qkv_untouched(llm):
    model, batch = tiny(llm), inputs("one image")
    visual = batch["input_ids"][0] == IMAGE
    seen: list[torch.Tensor] = []
    first_layer = [p for name, p in routed_linears(model).items() if ".layers.0." in name]
    hooks = [
        p.register_forward_hook(lambda module, args, out: seen.append(out[0].clone())) for p in first_layer
    ]
    model(**batch)
    for projection in first_layer:
        projection.text.weight.add_(1.0)
    model(**batch)
    for hook in hooks:
        hook.remove()
    for before, after in zip(seen[: len(first_layer)], seen[len(first_layer) :], strict=True):
        assert torch.equal(before[visual], after[visual])
        assert (before[~visual] != after[~visual]).any()


def test_each_token_goes_through_exactly_one_projection():
    model, batch = tiny("llama"), inputs("two images")
    rows: dict[str, list[int]] = {"text": [], "visual": []}
    for projection in routed_linears(model).values():
        for which in rows:
            getattr(projection, which).register_forward_hook(
                lambda module, args, out, which=which: rows[which].append(
                    args[0].reshape(-1, args[0].shape[-1]).shape[0]
                )
            )
    model(**batch)
    images = int((batch["input_ids"] == IMAGE).sum())
    assert set(rows["visual"]) == {images}
    assert set(rows["text"]) == {batch["input_ids"].numel() - images}


@torch.no_grad()
def test_each_of_two_threads_has_its_own_visual_tokens():
    model, mine, theirs = tiny("llama"), inputs("one image"), inputs("two images")
    expected, expected_there = model(**mine).logits, model(**theirs).logits
    attention = model.model.language_model.layers[1].self_attn
    outcome = other_thread_within(attention.q_proj, lambda: model(**theirs).logits)  # before k and v
    assert torch.equal(model(**mine).logits, expected)
    assert torch.equal(outcome[0], expected_there)


# 4: who sees whom


def changed_rows(model, batch, pixel_change) -> torch.Tensor:
    before = hidden(model, batch)
    changed = {**batch, "pixel_values": batch["pixel_values"].clone()}
    pixel_change(changed["pixel_values"])
    return (hidden(model, changed) - before).abs().amax(-1) > 1e-5


def check_visibility(model, batch) -> None:
    """Perturb images and text at the input and watch which hidden states move."""
    ids = batch["input_ids"][0].tolist()
    first = ids.index(IMAGE)

    def last_patch_of_first_image(values):
        values[0, :, -4:, -4:] += 3.0

    rows = changed_rows(model, batch, last_patch_of_first_image)
    assert not rows[:first].any(), "text before an image sees it"
    assert rows[first : first + PATCHES].all(), "an early patch does not see a later patch of its image"
    assert rows[first + PATCHES :].all(), "what follows does not see the image"

    def second_image(values):
        values[1] += 3.0

    rows = changed_rows(model, batch, second_image)
    start = first + PATCHES + (0 if ids[first + PATCHES] == IMAGE else 1)
    assert not rows[:start].any(), "an image, or text, sees a later image"
    assert rows[start : start + PATCHES].all()

    other_text = {**batch, "input_ids": batch["input_ids"].clone()}
    other_text["input_ids"][0, -1] = 20
    moved = (hidden(model, other_text) - hidden(model, batch)).abs().amax(-1) > 1e-5
    assert moved[-1] and not moved[:-1].any(), "something sees later text"


def see_through(model):
    """Make the tower local (each patch sees only itself), so that only the LLM can mix patches."""
    for layer in model.model.vision_tower.encoder.layers:
        layer.self_attn.out_proj.weight.data.zero_()
        layer.self_attn.out_proj.bias.data.zero_()
    return model


@every_llm_and_backend
@pytest.mark.parametrize("prompt", ["two images", "adjacent images"])
def test_patches_see_their_whole_image_and_nothing_later(llm, backend, prompt):
    check_visibility(see_through(tiny(llm, backend=backend)), inputs(prompt))


def slow_but(*quick, slow) -> list:
    """Cases that run always, and the others, marked slow: compiling takes a minute each."""
    return [*quick, *(pytest.param(*case, marks=pytest.mark.slow) for case in slow if case not in quick)]


@pytest.mark.parametrize(
    ("llm", "prompt"),
    slow_but(
        ("llama", "adjacent images"),
        slow=[(llm, prompt) for llm in LLMS for prompt in ("adjacent images", "two images")],
    ),
)
def test_patches_see_their_whole_image_with_flex_attention(llm, prompt):
    model, batch = see_through(tiny(llm, backend="flex_attention")), inputs(prompt)
    check_visibility(model, batch)
    with torch.no_grad():
        twin = see_through(tiny(llm, backend="eager"))
        torch.testing.assert_close(model(**batch).logits, twin(**batch).logits, atol=1e-4, rtol=1e-4)


def test_without_the_switch_an_early_patch_does_not_see_a_later_one():
    model = see_through(tiny("llama", bidirectional_visual_attention=False))

    def last_patch(values):
        values[0, :, -4:, -4:] += 3.0

    rows = changed_rows(model, inputs("one image"), last_patch)
    last = PROMPTS["one image"][0].index(IMAGE) + PATCHES - 1
    assert not rows[:last].any() and rows[last:].all()


def test_flash_attention_is_refused_with_the_remedy():
    model = tiny("llama")
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"flash_attention_2.*sdpa"):
        model(**inputs("one image"))
    config = config_of("llama")
    config.text_config._attn_implementation = "flash_attention_2"
    from llavit.model.masks import require_block_masks

    with pytest.raises(ValueError, match="flex_attention"):
        require_block_masks(config.text_config)


def test_an_unknown_family_is_refused_with_the_file_to_extend():
    from transformers import GPTNeoXConfig

    config = config_of("llama")
    config.text_config = GPTNeoXConfig(
        hidden_size=64, num_attention_heads=4, num_hidden_layers=1, vocab_size=100
    )
    with pytest.raises(ValueError, match=r"gpt_neox.*src/llavit/model/families.py"):
        LlavitModel(config)


# 5: batches and caches


def left_padded(prompts: list[str]) -> dict[str, torch.Tensor]:
    rows = [PROMPTS[prompt] for prompt in prompts]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (tokens, _) in enumerate(rows):
        ids[row, longest - len(tokens) :] = torch.tensor(tokens)
        mask[row, longest - len(tokens) :] = 1
    images = torch.cat(
        [inputs(prompt)["pixel_values"] for prompt, (_, n) in zip(prompts, rows, strict=True) if n]
    )
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": images}


@every_llm_and_backend
@torch.no_grad()
def test_a_left_padded_uneven_batch_equals_each_row_alone(llm, backend):
    model = tiny(llm, backend=backend)
    prompts = list(PROMPTS)
    batch = left_padded(prompts)
    together = model(**batch).logits
    assert not together.isnan().any()
    for row, prompt in enumerate(prompts):
        alone = model(**inputs(prompt)).logits[0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, atol=2e-4, rtol=2e-4)


@every_llm
@torch.no_grad()
def test_cached_decoding_equals_no_cache_over_turns_with_a_second_image(llm):
    model = tiny(llm)
    turns = [image_prompt([1, 5], 1, [6]), [7], [8], image_prompt([9], 1, [11, 12]), [13], [14]]
    whole = torch.tensor([[token for turn in turns for token in turn]])
    expected = model(input_ids=whole, pixel_values=pixels(2)).logits[0]
    cache, seen, got, image = DynamicCache(config=model.config), 0, [], 0
    for turn in turns:
        count = turn.count(IMAGE) // PATCHES
        extra = {"pixel_values": pixels(2)[image : image + count]} if count else {}
        seen, image = seen + len(turn), image + count
        out = model(
            input_ids=torch.tensor([turn]),
            attention_mask=torch.ones(1, seen, dtype=torch.long),
            past_key_values=cache,
            **extra,
        )
        got.append(out.logits[0])
    torch.testing.assert_close(torch.cat(got), expected, atol=2e-4, rtol=2e-4)


@every_llm
@torch.no_grad()
def test_generate_in_a_batch_equals_each_alone_and_no_cache(llm):
    model = tiny(llm)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "suppress_tokens": [IMAGE]}
    prompts = list(PROMPTS)
    batch = left_padded(prompts)
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for row, prompt in enumerate(prompts):
        one = inputs(prompt)
        for cache in (True, False):
            alone = model.generate(**one, **options, use_cache=cache)[0, one["input_ids"].shape[1] :]
            assert together[row].tolist() == alone.tolist(), (prompt, cache)
    static = model.generate(**batch, **options, cache_implementation="static", disable_compile=True)
    assert static[:, batch["input_ids"].shape[1] :].tolist() == together.tolist()


# 6: training


def training_batch() -> dict[str, torch.Tensor]:
    batch = left_padded(["one image", "two images"])
    return {
        **batch,
        "labels": batch["input_ids"].masked_fill(
            (batch["input_ids"] == IMAGE) | (batch["input_ids"] == 0), -100
        ),
    }


def loss_and_gradients(model, forward=None, **options):
    model.train()
    model.zero_grad()
    loss = (model if forward is None else forward)(**training_batch(), use_cache=False, **options).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@every_llm
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(llm, reentrant):
    model = tiny(llm)
    loss, gradients = loss_and_gradients(model)
    recompute_activations(model, use_reentrant=reentrant)
    again, regradients = loss_and_gradients(model)
    assert torch.equal(loss, again)
    assert gradients.keys() == regradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, regradients[name], atol=1e-6, rtol=1e-5, msg=name)


def test_a_backward_pass_in_another_thread_gives_the_same_gradients():
    """As on a GPU, where layers are run again by a thread that saw nothing of the forward pass."""
    model = tiny("llama").train()
    recompute_activations(model, use_reentrant=False)
    _, gradients = loss_and_gradients(model)
    model.zero_grad()
    thread = threading.Thread(target=model(**training_batch(), use_cache=False).loss.backward)
    thread.start()
    thread.join()
    for name, gradient in gradients.items():
        assert torch.equal(model.get_parameter(name).grad, gradient), name


@every_llm
def test_logits_at_labels_only_give_the_same_loss_and_gradients(llm):
    model = tiny(llm)
    loss, gradients = loss_and_gradients(model)
    again, regradients = loss_and_gradients(model, supervised_logits_only=True)
    torch.testing.assert_close(loss, again)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, regradients[name], atol=1e-5, rtol=1e-4, msg=name)


# The quick one makes the same graphs and runs them as they are; tests/train/test_compiling.py makes kernels of layers.
@pytest.mark.parametrize(
    ("llm", "backend"), slow_but(("llama", "eager"), slow=[(llm, "inductor") for llm in LLMS])
)
def test_torch_compile_gives_the_same_loss_and_gradients(llm, backend):
    model = tiny(llm)
    loss, gradients = loss_and_gradients(model)
    again, regradients = loss_and_gradients(model, torch.compile(model, backend=backend))
    torch.testing.assert_close(loss, again, atol=1e-5, rtol=1e-5)
    for name, regradient in regradients.items():
        # The compiler gives zeros where eager mode gives no gradient (tower layers that nothing reads).
        gradient = gradients.get(name, torch.zeros_like(regradient))
        torch.testing.assert_close(gradient, regradient, atol=1e-4, rtol=1e-3, msg=name)
    assert gradients.keys() <= regradients.keys()


@every_llm
def test_after_a_pretrain_step_only_projector_and_visual_qkv_have_moved(llm):
    model = tiny(llm)
    before = copy.deepcopy(model.state_dict())
    trained = {n for n, _ in model.named_parameters() if ".visual." in n or "multi_modal_projector" in n}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    model(**training_batch(), use_cache=False).loss.backward()
    optimizer.step()
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == trained


@every_llm
def test_a_batch_without_images_gives_every_trained_part_a_gradient(llm):
    model = tiny(llm)
    model.train()
    ids = torch.tensor([PROMPTS["text only"][0]])
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        if ".visual." in name or "multi_modal_projector" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.count_nonzero() == 0, name


# 7: saving and loading


@every_llm
@torch.no_grad()
def test_save_and_load_round_trip_with_documented_keys(llm, tmp_path):
    from safetensors import safe_open

    model = tiny(llm)
    model.save_pretrained(tmp_path)
    weights, config = (tmp_path / name for name in ("model.safetensors", "config.json"))
    assert weights.stat().st_mode == config.stat().st_mode  # who reads one reads the other
    with safe_open(weights, "pt") as file:
        keys = set(file.keys())
    documented = (
        "model.vision_tower.",
        "model.multi_modal_projector.linear_",
        "model.language_model.",
        "lm_head.weight",
    )
    assert all(key.startswith(documented) for key in keys)
    assert keys == set(model.state_dict()) - {
        key for key in model.all_tied_weights_keys if key in model.state_dict()
    }
    batch = inputs("two images")
    expected = model(**batch).logits
    for loaded, info in (
        LlavitForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True),
        AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True),
    ):
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert torch.equal(loaded(**batch).logits, expected)
        loaded.generate(**batch, max_new_tokens=2)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is LlavitModel
    assert torch.equal(base(**batch).last_hidden_state, model.model(**batch).last_hidden_state)


@torch.no_grad()
def test_a_model_is_copied_and_pickled_whole():
    model, batch, file = tiny("llama"), inputs("one image"), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (torch.load(file, weights_only=False), copy.deepcopy(model)):
        assert torch.equal(again(**batch).logits, model(**batch).logits)


@every_llm
@pytest.mark.parametrize("tower", ["clip", "siglip"])
@torch.no_grad()
def test_a_llava_checkpoint_loads_unchanged_and_the_copy_is_said(llm, tower, tmp_path, caplog):
    twin = llava_twin(tiny(llm, tower, gain=1.0, **LLAVA, vision_feature_layer=-2))
    twin.save_pretrained(tmp_path)
    batch = inputs("two images")
    expected = twin(**batch).logits
    off, info = LlavitForConditionalGeneration.from_pretrained(tmp_path, **LLAVA, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(off(**batch).logits, expected, atol=1e-6, rtol=0)

    import logging

    hf = logging.getLogger("transformers")
    library = logging.getLogger("llavit")
    for logger in (hf, library):
        logger.addHandler(caplog.handler)
    routed, info = LlavitForConditionalGeneration.from_pretrained(
        tmp_path, bidirectional_visual_attention=False, output_loading_info=True
    )
    for logger in (hf, library):
        logger.removeHandler(caplog.handler)
    assert "Visual QKV initialised as copies" in caplog.text
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert routed.generation_config.suppress_tokens == [IMAGE]
    for projection in routed_linears(routed).values():
        assert torch.equal(projection.text.weight, projection.visual.weight)
    torch.testing.assert_close(routed(**batch).logits, expected, atol=1e-5, rtol=1e-5)

    # What was loaded from LLaVA is saved as LLaViT, and its own visual weights come back.
    with torch.no_grad():
        for projection in routed_linears(routed).values():
            projection.visual.weight.mul_(1.5)
    routed.save_pretrained(tmp_path / "llavit")
    again = LlavitForConditionalGeneration.from_pretrained(tmp_path / "llavit")
    assert torch.equal(again(**batch).logits, routed(**batch).logits)
