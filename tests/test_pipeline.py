"""transformers' own pipeline answers with our folders, after `import llavit`."""

import pytest
import torch
from PIL import Image
from transformers import pipeline

from llavit.model.quantize import is_int8, quantize_int8


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    model, processor = tiny.build(dtype=torch.float32)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ask(folder):
    return pipeline("image-text-to-text", model=str(folder))


@pytest.fixture
def paths(tiny):
    return [str(tiny.data.parent / f"{number}.png") for number in (0, 1)]


def chat(image, **part):
    picture = {"type": "image", **(part or {"image": image})}
    return [{"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}]


def expected(ask, image):
    """What the model answers when it is asked without a pipeline."""
    encoded = ask.processor.encode(chat(image), add_generation_prompt=True)
    inputs = {key: encoded[key][None] for key in ("input_ids",)} | {"pixel_values": encoded["pixel_values"]}
    ids = ask.model.generate(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]), **GREEDY)
    return ask.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.mark.parametrize("kind", ["a path as url", "a picture"])
def test_a_chat_is_answered_as_without_a_pipeline(ask, paths, kind):
    image = Image.open(paths[0])
    asked = chat(image) if kind == "a picture" else chat(None, url=paths[0])
    (answer,) = ask(text=asked, return_full_text=False, generate_kwargs=GREEDY)
    assert answer["generated_text"] == expected(ask, image)


def test_the_picture_of_a_chat_has_the_pixels_that_are_trained_on(ask, tmp_path, monkeypatch):
    path = tmp_path / "clear.png"
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(path)
    seen, generate = [], ask.model.generate
    monkeypatch.setattr(
        ask.model, "generate", lambda **inputs: seen.append(inputs["pixel_values"]) or generate(**inputs)
    )
    ask(text=chat(None, url=str(path)), generate_kwargs=GREEDY)
    assert torch.equal(seen[0].float(), ask.processor.pixel_values([path]))


def test_chats_run_in_batches(ask, paths):
    images = [Image.open(path) for path in paths]
    answers = ask(
        text=[chat(image) for image in images], batch_size=2, return_full_text=False, generate_kwargs=GREEDY
    )
    assert [answer[0]["generated_text"] for answer in answers] == [expected(ask, image) for image in images]


def test_rendered_text_with_images_beside_it_is_answered(ask, paths):
    text = ask.processor.render(chat(None), add_generation_prompt=True)
    (answer,) = ask(images=[paths[0]], text=text, return_full_text=False, generate_kwargs=GREEDY)
    assert answer["generated_text"] == expected(ask, Image.open(paths[0]))


def test_an_int8_folder_is_answered_in_int8(ask, folder, paths, tmp_path):
    from llavit import LlavitForConditionalGeneration

    quantize_int8(LlavitForConditionalGeneration.from_pretrained(folder)).save_pretrained(tmp_path)
    ask.processor.save_pretrained(tmp_path)
    int8 = pipeline("image-text-to-text", model=str(tmp_path))
    (answer,) = int8(text=chat(None, url=paths[0]), return_full_text=False, generate_kwargs=GREEDY)
    assert is_int8(int8.model)
    assert answer["generated_text"] == expected(int8, Image.open(paths[0]))
