import pytest

from llavit.data import from_record

QUESTION = {"from": "human", "value": "<image>\nWhat is this?"}
ANSWER = {"from": "gpt", "value": "A cat."}


def image(path):
    return {"type": "image", "image": path}


def text(words):
    return {"type": "text", "text": words}


def test_a_llava_record_becomes_messages_with_the_image_in_its_place():
    record = {"image": "a/cat.jpg", "conversations": [QUESTION, ANSWER]}
    sample = from_record(record, name="1", image_folder="/data")
    assert sample.messages == [
        {"role": "user", "content": [image("/data/a/cat.jpg"), text("What is this?")]},
        {"role": "assistant", "content": [text("A cat.")]},
    ]


@pytest.mark.parametrize(
    ("words", "content"),
    [
        ("Look at <image>", [text("Look at "), image("0")]),
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
    assert from_record(record, name="1").messages[0]["content"] == content


def llavas_preprocess_multimodal(words):
    """LLaVA's rule (llava/train/train.py), for a text with an image."""
    return ("<image>\n" + words.replace("<image>", "").strip()).strip()


@pytest.mark.parametrize(
    "words", ["What is this?\n<image>", "What is this?\n<image>\n", " A\n\nB?\n<image> ", "<image>\nWhat?"]
)
def test_an_image_after_the_words_stands_before_them_as_llava_trains(words):
    def messages(said):
        return from_record(
            {"image": "0", "conversations": [{"from": "human", "value": said}]}, name="1"
        ).messages

    assert messages(words) == messages(llavas_preprocess_multimodal(words))


@pytest.mark.parametrize(
    "words",
    [
        "<image>\nWhat? ",
        "<image>\nWhat?\n",
        "<image>\n\n What?",
        " <image>What?",
        "<image> What?\u00a0",
        "<image> \n",
    ],
)
def test_white_space_around_the_words_beside_an_image_is_left_out_as_llava_does(words):
    record = {"image": "0", "conversations": [{"from": "human", "value": words}]}
    said = llavas_preprocess_multimodal(words).removeprefix("<image>").removeprefix("\n")
    assert from_record(record, name="1").messages[0]["content"] == [
        image("0"),
        *([text(said)] if said else []),
    ]


def test_white_space_stays_in_words_without_an_image():
    turns = [QUESTION, ANSWER, {"from": "human", "value": " And now? \n"}]
    messages = from_record({"image": "0", "conversations": turns}, name="1").messages
    assert messages[2]["content"] == [text(" And now? \n")]


@pytest.mark.parametrize("words", ["A?\n<image>\n<image>", "<image>\nA?\n<image>", "A:\n<image>\nB?"])
def test_several_images_and_those_within_the_words_stay_where_they_are(words):
    images = ["0", "1"][: words.count("<image>")]
    record = {"images": images, "conversations": [{"from": "human", "value": words}]}
    (message,) = from_record(record, name="1").messages
    said = "".join("<image>" if part["type"] == "image" else part["text"] for part in message["content"])
    assert said.replace("\n", "") == words.replace("\n", "")


def test_messages_of_other_dialects_keep_an_image_at_the_end():
    record = {"images": ["0"], "messages": [{"role": "user", "content": "What is this?\n<image>"}]}
    (message,) = from_record(record, name="1").messages
    assert message["content"] == [text("What is this?\n"), image("0")]


def test_images_are_handed_out_in_order_over_the_turns():
    turns = [QUESTION, ANSWER, {"from": "human", "value": "And <image>?"}, ANSWER]
    sample = from_record({"image": ["1.jpg", "2.jpg"], "conversations": turns}, name="1")
    assert sample.images == ["1.jpg", "2.jpg"]
    assert sample.messages[2]["content"][1] == image("2.jpg")


def test_a_record_may_have_no_image():
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, ANSWER]
    sample = from_record({"conversations": turns}, name="1", image_folder="/data")
    assert sample.images == []
    assert [message["role"] for message in sample.messages] == ["system", "user", "assistant"]


def spoken(*turns):
    return [{"role": role, "content": [text(words)]} for role, words in turns]


def test_sharegpt_records_have_either_pair_of_names_a_system_text_and_a_list_of_images():
    turns = [
        {"role": "human", "content": "<image>A<image>"},
        {"role": "gpt", "content": "B"},
        {"from": "user", "value": "C"},
        {"from": "chatgpt", "value": "D"},
    ]
    record = {"id": 5, "system": "Be brief.", "images": ["1.jpg", "2.jpg"], "conversations": turns}
    sample = from_record(record, name="5 (#0)", image_folder="/data")
    assert sample.messages == [
        *spoken(("system", "Be brief.")),
        {"role": "user", "content": [image("/data/1.jpg"), text("A"), image("/data/2.jpg")]},
        *spoken(("assistant", "B"), ("user", "C"), ("assistant", "D")),
    ]
    assert (sample.id, sample.record_id) == ("5 (#0)", "5")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("a/cat.jpg", "/data/a/cat.jpg"),
        ("/elsewhere/cat.jpg", "/elsewhere/cat.jpg"),
        ("file:///a%20b/cat.jpg", "/a b/cat.jpg"),
        ("data:image/png;base64,iVBORw==", b"\x89PNG"),
    ],
)
def test_openai_messages_name_images_by_path_file_url_or_data_url(url, expected):
    parts = [text("What is this?"), {"type": "image_url", "image_url": {"url": url}}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A cat."}]
    sample = from_record({"messages": turns}, name="1", image_folder="/data")
    assert sample.messages == [
        {"role": "user", "content": [text("What is this?"), image(expected)]},
        *spoken(("assistant", "A cat.")),
    ]


def test_hugging_face_parts_take_the_next_image_or_the_one_they_count():
    images = [{"bytes": b"0", "path": "0.png"}, {"bytes": None, "path": "1.png"}]
    bare = [
        {"type": "image", "text": None, "index": None},
        {"type": "text", "text": "x", "index": None},
        {"type": "image", "text": None, "index": None},
    ]
    counted = [{"type": "image", "index": 1}, {"type": "image", "index": 0}, {"type": "image", "index": 1}]
    record = {"image": None, "images": images, "messages": [{"role": "user", "content": bare}]}
    assert from_record(record, name="1", image_folder="/d").images == [b"0", "/d/1.png"]
    record = {"images": images, "messages": [{"role": "user", "content": counted}]}
    assert from_record(record, name="1", image_folder="/d").images == ["/d/1.png", b"0", "/d/1.png"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": ["a", "b"], "conversations": [QUESTION]}, "record 7: .* got 1 x <image> and 2 image"),
        ({"conversations": [QUESTION]}, "record 7: .* got 1 x <image> and 0 image"),
        ({"image": "a", "conversations": [ANSWER]}, "record 7: .* got 0 x <image> and 1 image"),
        ({"image": 3, "conversations": [QUESTION]}, "record 7: expected each of `image` .* got 3"),
        (
            {"conversations": []},
            r"record 7: expected a non-empty list `conversations` or `messages`, got \[\]",
        ),
        ({"id": 7, "text": ""}, r"record 7: .* got fields \['id', 'text'\]"),
        (
            {"image": "a", "images": ["a"], "conversations": [QUESTION]},
            "record 7: expected `image` or `images`",
        ),
        ({"image": "http://a/b.png", "conversations": [QUESTION]}, "record 7: .* images are not downloaded"),
        ({"image": "data:image/png,abc", "conversations": [QUESTION]}, "record 7: cannot read image 'data:"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "turn 0: expected parts of type text",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "turn 0: expected .* got {'role'"),
        (
            {"images": ["a"], "messages": [{"role": "user", "content": [{"type": "image", "index": 1}]}]},
            "record 7: expected an image index below 1, got 1",
        ),
        (
            {"images": ["a"], "messages": [{"role": "user", "content": [{"type": "image"}] * 2}]},
            "record 7: .* got 2 x <image> and 1 image",
        ),
        ({"conversations": ["hi"]}, "record 7, turn 0: expected .* got 'hi'"),
        (
            {"conversations": [ANSWER, {"from": "cat", "value": "miau"}]},
            "record 7, turn 1: unknown speaker 'cat'",
        ),
        ({"conversations": [{"from": ["gpt"], "value": "Hi"}]}, r"turn 0: unknown speaker \['gpt'\]"),
        (
            {"conversations": [QUESTION, {"from": "gpt", "value": "A cat. \ud83d"}]},
            r"record 7, turn 1: expected Unicode text, got half of a surrogate pair at character 7",
        ),
    ],
)
def test_a_bad_record_is_named_with_what_was_expected_and_got(record, message):
    with pytest.raises(ValueError, match=message):
        from_record(record, name="7")


def test_what_the_assistant_says_before_the_first_question_is_left_out():
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "gpt", "value": "Welcome."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello."},
    ]
    roles = [message["role"] for message in from_record({"conversations": turns}, name="1").messages]
    assert roles == ["system", "user", "assistant"]
    assert [m["role"] for m in from_record({"conversations": turns[1:2]}, name="2").messages] == ["assistant"]


def test_a_video_is_an_error_and_not_a_text_without_it():
    turns = [{"from": "human", "value": "<video>\nWhat happens?"}, {"from": "gpt", "value": "A cat jumps."}]
    with pytest.raises(ValueError, match=r"record 1: expected images and text only, got `video`: 'cat\.mp4'"):
        from_record({"video": "cat.mp4", "conversations": turns}, name="1")
