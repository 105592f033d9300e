import pytest

from llavit.data import from_llava

QUESTION = {"from": "human", "value": "<image>\nWhat is this?"}
ANSWER = {"from": "gpt", "value": "A cat."}


def image(path):
    return {"type": "image", "image": path}


def text(words):
    return {"type": "text", "text": words}


def test_a_llava_record_becomes_messages_with_the_image_in_its_place():
    record = {"image": "a/cat.jpg", "conversations": [QUESTION, ANSWER]}
    sample = from_llava(record, name="1", image_folder="/data")
    assert sample.messages == [
        {"role": "user", "content": [image("/data/a/cat.jpg"), text("What is this?")]},
        {"role": "assistant", "content": [text("A cat.")]},
    ]


@pytest.mark.parametrize(
    ("words", "content"),
    [
        ("What is this?\n<image>", [text("What is this?\n"), image("0")]),
        ("<image>", [image("0")]),
        ("Is <image> a cat?", [text("Is "), image("0"), text(" a cat?")]),
        ("<image><image>\nSame?", [image("0"), image("1"), text("Same?")]),
        ("<image>\n<image>\nSame?", [image("0"), image("1"), text("Same?")]),
        ("A:\n<image>\nB: <image>", [text("A:\n"), image("0"), text("\nB: "), image("1")]),
    ],
)
def test_an_image_may_stand_anywhere_in_a_text(words, content):
    record = {
        "image": ["0", "1"][: words.count("<image>")],
        "conversations": [{"from": "human", "value": words}],
    }
    assert from_llava(record, name="1").messages[0]["content"] == content


def test_images_are_handed_out_in_order_over_the_turns():
    turns = [QUESTION, ANSWER, {"from": "human", "value": "And <image>?"}, ANSWER]
    sample = from_llava({"image": ["1.jpg", "2.jpg"], "conversations": turns}, name="1")
    assert sample.images == ["1.jpg", "2.jpg"]
    assert sample.messages[2]["content"][1] == image("2.jpg")


def test_a_record_may_have_no_image():
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, ANSWER]
    sample = from_llava({"conversations": turns}, name="1", image_folder="/data")
    assert sample.images == []
    assert [message["role"] for message in sample.messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": ["a", "b"], "conversations": [QUESTION]}, "record 7: .* got 1 x <image> and 2 image"),
        ({"conversations": [QUESTION]}, "record 7: .* got 1 x <image> and 0 image"),
        ({"image": "a", "conversations": [ANSWER]}, "record 7: .* got 0 x <image> and 1 image"),
        ({"image": 3, "conversations": [QUESTION]}, "record 7: expected `image` to be a path .* got 3"),
        ({"conversations": []}, r"record 7: expected a non-empty list `conversations`, got \[\]"),
        ({"id": 7, "text": ""}, r"record 7: .* got fields \['id', 'text'\]"),
        ({"conversations": ["hi"]}, "record 7, turn 0: expected .* got 'hi'"),
        (
            {"conversations": [ANSWER, {"from": "cat", "value": "miau"}]},
            "record 7, turn 1: unknown speaker 'cat'",
        ),
    ],
)
def test_a_bad_record_is_named_with_what_was_expected_and_got(record, message):
    with pytest.raises(ValueError, match=message):
        from_llava(record, name="7")
