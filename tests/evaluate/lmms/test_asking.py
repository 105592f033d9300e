"""Batches of chat messages, answered."""

import pytest
import torch
from PIL import Image

from llavit.evaluate import Item, answer_items
from llavit.evaluate.lmms.asking import answer_batch, to_messages
from llavit.evaluate.lmms.decoding import Decoding

SHORT = Decoding(max_new_tokens=6)


@pytest.fixture(scope="module")
def asked(tiny):
    model, processor = tiny.build()
    louder(model)
    return model.eval(), processor


def louder(model) -> None:
    """Make a random model's answers vary: at its initial scale it repeats the last token of the prompt."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and ("language_model.layers" in name or "multi_modal_projector" in name):
                weight.normal_(0, 0.4)


def picture(colour: str) -> dict:
    return {"type": "image", "url": Image.new("RGB", (20, 14), colour)}


def chat(*parts) -> list[dict]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return to_messages([{"role": "user", "content": content}])


MIXED = {
    "one image": chat(picture("red"), "What?"),
    "text only": chat("Say something, please."),
    "two images, between words": chat(
        "First", picture("blue"), "then", picture("green"), "What changed here?"
    ),
    "image last": chat("Look:", picture("white")),
}


def test_answers_of_a_mixed_batch_equal_those_of_each_alone(asked):
    together = answer_batch(*asked, list(MIXED.values()), SHORT)
    alone = [answer_batch(*asked, [messages], SHORT)[0] for messages in MIXED.values()]
    assert together == alone
    assert len({answer.text for answer in together}) > 1  # the comparison could fail
    assert len({answer.prompt_tokens for answer in together}) == 4


def test_prompts_and_answers_are_those_of_our_own_runner(asked, tmp_path):
    model, processor = asked
    items, conversations = [], []
    for number, colour in enumerate(("red", "blue", "white")):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (30, 20), colour).save(path)
        items.append(Item(str(number), path, "What colour" + "?" * number, colour, "colour"))
        conversations.append(chat({"type": "image", "url": Image.open(path)}, items[-1].question))
    for item, messages in zip(items, conversations, strict=True):
        assert processor.render(messages, True) == processor.render(item.messages(), True)
        own, theirs = (
            processor.encode(asking, add_generation_prompt=True) for asking in (item.messages(), messages)
        )
        assert torch.equal(own["input_ids"], theirs["input_ids"])
        assert torch.equal(own["pixel_values"], theirs["pixel_values"])
    answers = answer_batch(model, processor, conversations, SHORT)
    assert [answer.text for answer in answers] == answer_items(model, processor, items, max_new_tokens=6)


def test_rendered_prompts_are_frozen(asked):
    rendered = [asked[1].render(messages, add_generation_prompt=True) for messages in MIXED.values()]
    assert rendered == [
        "<s>user: <image>\nWhat?</s><s>assistant: ",
        "<s>user: Say something, please.</s><s>assistant: ",
        "<s>user: First<image>then<image>What changed here?</s><s>assistant: ",
        "<s>user: Look:<image></s><s>assistant: ",
    ]


def test_a_stop_string_ends_generation_and_the_answer(asked):
    whole = answer_batch(*asked, [MIXED["one image"]], Decoding(max_new_tokens=12))[0]
    stop = whole.text[2:4]
    assert len(stop) == 2
    short = answer_batch(*asked, [MIXED["one image"]], Decoding(max_new_tokens=12, until=(stop,)))[0]
    assert short.text == whole.text[: whole.text.index(stop)].strip()
    assert short.new_tokens < whole.new_tokens


def test_every_setting_changes_something(asked):
    conversation = [MIXED["one image"]]
    plain = answer_batch(*asked, conversation, SHORT)[0]
    assert answer_batch(*asked, conversation, Decoding(max_new_tokens=2))[0].new_tokens == 2
    torch.manual_seed(0)
    drawn = answer_batch(*asked, conversation, Decoding.of({"temperature": 5.0, "max_new_tokens": 6}))[0]
    assert drawn.text != plain.text
    repeats = Decoding.of({"repetition_penalty": 0.01, "max_new_tokens": 6})
    assert answer_batch(*asked, conversation, repeats)[0].text != plain.text


def test_a_bad_request_is_an_error_with_its_name_and_no_answer(asked, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = chat({"type": "image", "url": str(tmp_path / "broken.png")}, "What?")
    with pytest.raises(ValueError, match="pope/test/7"):
        answer_batch(*asked, [MIXED["one image"], broken], SHORT, ["pope/test/6", "pope/test/7"])
    with pytest.raises(
        ValueError, match=r"mmvp/test/1: LLaViT takes text and images, got a part of type 'video'"
    ):
        to_messages([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}], "mmvp/test/1")
    with pytest.raises(ValueError, match="holds no image"):
        to_messages([{"role": "user", "content": [{"type": "image", "url": None}]}])
