"""Batched answers and likelihoods against those of one question at a time, and against transformers' own decoding."""

import weakref

import pytest
import torch
from PIL import Image

from llavit.evaluate.asking import Asker
from llavit.evaluate.engine import Engine
from llavit.evaluate.items import Item
from llavit.evaluate.stretches import Prompt
from tests.model.families import IMAGE, LLMS, PATCHES, SIDE, tiny


@pytest.fixture(scope="module")
def asked(tiny, tmp_path_factory):
    """A model whose answers differ from question to question, and items of every kind in one heap."""
    folder = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(3)
    model, processor = tiny.build(dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)
    items = []
    for number, colour in enumerate(("red", "blue", "green", "orange")):
        path = folder / f"{colour}.png"
        Image.new("RGB", (20, 14 + number), colour).save(path)
        options = ["cat", "a dog", "bus", "tree house"]
        for turn in range(4):  # a circular group: one picture, options turned
            turned = options[turn:] + options[:turn]
            lines = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", turned, strict=True))
            items.append(
                Item(f"c{number}-{turn}", path, f"What is it?\n{lines}", "A", "circular", tuple(turned))
            )
        items.append(Item(f"s{number}", path, "Why" + " so" * number + "?", "x", "short"))
        items.append(
            Item(f"t{number}", None, f"Is fire {colour}, or is it rather something else?", "yes", "text")
        )
    return model.eval(), processor, items


def kinds(items):
    """Each item with another kind of picture: its own, none, grey, that of another item."""
    return [("own", "none", "blank", items[0].image)[number % 4] for number in range(len(items))]


@pytest.mark.parametrize("mixed", [False, True])
def test_batched_answers_equal_those_one_at_a_time_over_uneven_tasks(asked, mixed):
    model, processor, items = asked
    pictures = kinds(items) if mixed else ["own"] * len(items)
    together = Asker(model, processor, batch_size=7).generate(items, pictures, 6)
    alone = [
        Asker(model, processor, 1).generate([item], [picture], 6)[0]
        for item, picture in zip(items, pictures, strict=True)
    ]
    assert together == alone
    assert len({answer.text for answer in together}) > 3  # else equality would say little


def test_answers_equal_those_of_transformers_generate(asked):
    model, processor, items = asked
    mine = Asker(model, processor, batch_size=5).generate(items, ["own"] * len(items), 6)
    for item, answer in zip(items, mine, strict=True):
        encoded = processor.encode(item.messages(), add_generation_prompt=True)
        inputs = {"input_ids": encoded["input_ids"][None]}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "pixel_values" in encoded:
            inputs["pixel_values"] = encoded["pixel_values"]
        model.generation_config.suppress_tokens = [model.config.image_token_id]
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        text = processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert text.split("\n")[0].strip() == answer.text


@torch.no_grad()
def test_likelihoods_are_those_of_whole_sequences(asked):
    """Shared keys and values against one forward pass over prompt and option, for options of uneven length."""
    model, processor, items = asked
    options = [("A", "B", "a dog") if number % 2 else ("yes", "no") for number in range(len(items))]
    chosen = Asker(model, processor, batch_size=9).choose(items, ["own"] * len(items), options)
    for item, of_item, answer in zip(items, options, chosen, strict=True):
        for option, likelihood in zip(of_item, answer.likelihoods, strict=True):
            turn = {"role": "assistant", "content": option}
            encoded = processor.encode([*item.messages(), turn], return_labels=True)
            wanted = (encoded["labels"] != -100).nonzero()[:-1, 0]  # without the end-of-turn
            inputs = {key: encoded[key][None] for key in ("input_ids", "image_ids")}
            if "pixel_values" in encoded:
                inputs["pixel_values"] = encoded["pixel_values"]
            logits = model(**inputs).logits[0].log_softmax(-1)
            expected = logits[wanted - 1, encoded["input_ids"][wanted]].mean()
            assert likelihood == pytest.approx(float(expected), abs=2e-5)
        best = max(range(len(of_item)), key=lambda k: answer.likelihoods[k])
        assert answer.text == of_item[best]


def test_each_picture_goes_through_the_tower_once_and_equal_prompts_through_the_llm_once(asked):
    model, processor, items = asked
    seen, rows = [], []
    asker = Asker(model, processor, batch_size=64)
    encode, generate = asker._encode, asker.engine.generate
    asker._encode = lambda images: seen.extend(images) or encode(images)
    asker.engine.generate = lambda prompts, **more: rows.append(len(prompts)) or generate(prompts, **more)
    for picture in ("own", items[0].image, "none"):
        asker.generate(items, [picture] * len(items), 2)
    assert len(seen) == 4
    # Of one picture or none, the four circular groups ask the same four questions.
    assert rows == [24, 12, 12]


def test_a_picture_that_cannot_be_read_fails_alone(asked, tmp_path):
    model, processor, items = asked
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    broken = [*items[:3], Item("bad", bad, "What?", "x", "short"), *items[3:6]]
    answers = Asker(model, processor, batch_size=4).generate(broken, ["own"] * len(broken), 3)
    whole = Asker(model, processor, batch_size=4).generate(items[:6], ["own"] * 6, 3)
    assert answers[3].text is None and "bad" in answers[3].error
    assert answers[:3] + answers[4:] == whole


def test_what_fails_in_the_model_is_found_and_the_rest_is_answered(asked):
    model, processor, items = asked
    asker = Asker(model, processor, batch_size=8)
    generate, counted = asker.engine.generate, []

    def failing(prompts, **more):
        if any(prompt.name == items[4].id for prompt in prompts):
            raise RuntimeError("out of memory")
        return generate(prompts, **more)

    asker.engine.generate = failing
    answers = asker.generate(items, ["own"] * len(items), 3, progress=counted.append)
    assert [item.id for item, answer in zip(items, answers, strict=True) if answer.text is None] == [
        items[4].id
    ]
    assert answers[4].error == "RuntimeError: out of memory"
    assert sum(counted) == len(items)


def test_a_tower_that_fails_over_a_batch_of_pictures_takes_them_one_by_one(asked):
    model, processor, items = asked
    asker = Asker(model, processor)
    encode = asker._encode

    def failing(images):
        if len(images) > 1 or str(items[0].image) in images:
            raise torch.OutOfMemoryError("out of memory")
        return encode(images)

    asker._encode = failing
    answers = asker.generate(items, ["own"] * len(items), 3)
    whole = Asker(model, processor).generate(items, ["own"] * len(items), 3)
    for item, answer, right in zip(items, answers, whole, strict=True):
        if item.image == items[0].image:
            assert answer.text is None and answer.error == "OutOfMemoryError: out of memory"
        else:
            assert answer == right


def test_no_more_features_are_kept_than_fit_and_answers_are_the_same(asked):
    model, processor, items = asked
    pictures = kinds(items)
    one = Asker(model, processor)._encode([str(items[0].image)])[0]
    asker = Asker(model, processor, kept_bytes=2 * one.nbytes + 1)
    encode, kept = asker._encode, []

    def encoding(images):
        kept.append(len(asker._features) + len(images))
        return encode(images)

    asker._encode = encoding
    for shown in (["own"] * len(items), pictures):
        assert asker.generate(items, shown, 3) == Asker(model, processor).generate(items, shown, 3)
    assert max(kept) == 2 and len(asker._features) <= 2


def test_logits_that_are_no_numbers_are_a_failure_and_no_answer(asked):
    """Else the likeliest of NaN is the first option, with nothing failed: float16 that overflows in one picture."""
    model, processor, items = asked
    asker = Asker(model, processor, batch_size=8)
    asker.generate(items, ["own"] * len(items), 1)  # all pictures have been seen
    asker._features[str(items[0].image)] = torch.full_like(asker._features[str(items[0].image)], torch.nan)
    options = [("A", "B")] * len(items)
    for answers in (
        asker.generate(items, ["own"] * len(items), 3),
        asker.choose(items, ["own"] * len(items), options),
    ):
        failed = [item.image for item, answer in zip(items, answers, strict=True) if answer.text is None]
        assert failed == [items[0].image] * 5
        assert "not numbers (NaN)" in answers[0].error


def test_what_a_failed_run_held_is_let_go_before_the_rest_is_asked(asked):
    """Out of memory, halves fit only if the keys and values of the whole are gone."""
    model, processor, items = asked
    asker = Asker(model, processor, batch_size=8)
    generate, held = asker.engine.generate, []

    class Memory:
        """Stands for keys and values on the device."""

    def failing(prompts, **more):
        assert not any(memory() for memory in held)
        if len(prompts) > 5:
            taken = Memory()
            held.append(weakref.ref(taken))
            raise torch.OutOfMemoryError("out of memory")
        return generate(prompts, **more)

    asker.engine.generate = failing
    answers = asker.generate(items, ["own"] * len(items), 3)
    assert len(held) > 2 and all(answer.text is not None for answer in answers)


@torch.inference_mode()
@pytest.mark.parametrize("least", [1, 1000], ids=["beginning apart", "beginning with the rest"])
@pytest.mark.parametrize("llm", LLMS)
def test_every_llm_family_answers_in_a_batch_as_alone(llm, least):
    """Prompts that share nothing, a beginning, or a picture; windows and biases of every kind."""
    model = tiny(llm).eval()
    torch.manual_seed(1)
    seen = model.model.encode_images(torch.rand(2, 3, SIDE, SIDE))

    def prompt(before, image, after):
        visual = [IMAGE] * PATCHES if image is not None else []
        features, names = ([seen[image]], [image]) if image is not None else ([], [])
        return Prompt([*before, *visual, *after], features, names, IMAGE)

    prompts = [
        prompt([5, 6, 7], 0, [20, 21]),
        prompt([5, 6, 7], 0, [20, 21, 30, 31, 32]),
        prompt([5, 6, 7], 1, [20]),
        prompt([5, 6], None, [40, 41, 42, 43, 44, 45]),
        prompt([5, 6], None, [46]),
        prompt([5, 6, 7], 0, list(range(50, 70))),
        prompt([5, 9], 1, [20, 21]),
    ]
    options = [[[10], [11, 12], [13, 14, 15]]] * len(prompts)
    together, single = Engine(model, 0, batch_size=7, least_shared=least), Engine(model, 0, batch_size=1)
    answers = together.generate(prompts, max_new_tokens=5)
    assert answers == [single.generate([one], max_new_tokens=5)[0] for one in prompts]
    assert len({tuple(answer) for answer in answers}) > 1
    scores = together.likelihoods(prompts, options)
    for one, of_it, row in zip(prompts, options, scores, strict=True):
        assert row == pytest.approx(single.likelihoods([one], [of_it])[0], abs=1e-4)
        for option, likelihood in zip(of_it, row, strict=True):
            ids = torch.tensor([one.ids + option])
            features = torch.stack(one.features) if one.features else None
            logits = model(input_ids=ids, image_features=features).logits[0].float().log_softmax(-1)
            start = len(one.ids) - 1
            expected = logits[torch.arange(start, start + len(option)), torch.tensor(option)].mean()
            assert likelihood == pytest.approx(float(expected), abs=1e-4)
