"""Processor: images anywhere, one count of visual tokens, labels from the template, errors that help."""

import base64
import io
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessorPil, LlavaProcessor

from llavit import LlavitProcessor
from llavit.model.chat import DEFAULT_CHAT_TEMPLATE, render_with_spans
from llavit.model.processor import IGNORED, NothingLeft
from tests.tiny import SIDE, tokenizer

PER_IMAGE = 4  # 16 px, patches of 8


def processor(template: str | None = "own", **options) -> LlavitProcessor:
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    if template != "own":
        words.chat_template = template
    size = {"height": SIDE, "width": SIDE}
    return LlavitProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **options,
    )


def picture(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (20, 30), colour)


def image(colour: str = "red") -> dict:
    return {"type": "image", "image": picture(colour)}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*parts) -> dict:
    return {"role": "user", "content": list(parts)}


def said(words: str) -> dict:
    return {"role": "assistant", "content": words}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([image(), text("What?")], "<image>\nWhat?"),
        ([image(), text("\nWhat?")], "<image>\nWhat?"),
        ([text("Look: "), image(), text(" and "), image()], "Look: <image> and <image>"),
        ([image(), image(), text("Compare.")], "<image><image>\nCompare."),
        ([text("No picture.")], "No picture."),
    ],
)
def test_images_stand_where_the_message_has_them(parts, expected):
    assert processor().render([user(*parts)]) == f"<s>user: {expected}</s>"


def test_a_tokenizer_without_template_gets_the_documented_default():
    ours = processor(template=None)
    rendered = ours.render([user(image(), text("What?")), said("A cat.")], add_generation_prompt=False)
    assert rendered == "USER: <image>\nWhat?\nASSISTANT: A cat.</s>\n"
    assert DEFAULT_CHAT_TEMPLATE in ours.chat_template


def test_a_llava_template_renders_strings_too():
    template = (
        "{% for m in messages %}{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
        "{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}{{ p['text'] }}{% endfor %}{% endfor %}"
    )
    ours = processor(chat_template=template)
    assert ours.render([user(text("What?"), image()), said("A cat.")]) == "<image>What?A cat."


def test_of_several_templates_the_default_one_is_taken():
    words = processor().tokenizer
    words.chat_template = {
        "default": "{% for m in messages %}[{{ m['content'] }}]{% endfor %}",
        "tool_use": "",
    }
    ours = LlavitProcessor(processor().image_processor, words, patch_size=8)
    assert ours.render([user(image(), text("What?"))]) == "[<image>\nWhat?]"


def test_a_template_that_knows_images_is_left_alone():
    template = (
        "{% for m in messages %}{% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<image>{% endif %}{% endfor %}{% endfor %}"
    )
    assert processor(chat_template=template).chat_template == template


def test_labels_are_what_the_assistant_says_and_its_end_of_turn():
    ours = processor()
    encoded = ours.encode(
        [user(image(), text("What?")), said("A cat."), user(text("Sure?")), said("Yes.")], return_labels=True
    )
    labels, ids = encoded["labels"], encoded["input_ids"]
    assert ours.decode(labels[labels != IGNORED]) == "A cat.</s>Yes.</s>"
    assert torch.equal(labels[labels != IGNORED], ids[labels != IGNORED])


def words_with_their_spaces():
    """A tokenizer in which a word is a token with the space before it, as Llama's and Vicuna's are."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", "<pad>", "<image>", "▁USER:", "▁ASSISTANT:", "▁Is", "▁it?", "▁Yes", "▁"]
    backend = Tokenizer(
        models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} "
        "{% else %}ASSISTANT: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT: {% endif %}",
    ],
)
def test_a_first_word_that_takes_the_prompts_space_with_it_is_learned(template):
    tokens = words_with_their_spaces()
    tokens.chat_template = template
    ours = LlavitProcessor(processor().image_processor, tokens, patch_size=8)
    encoded = ours.encode([user(text("Is it?")), said("Yes")], return_labels=True)
    learned = encoded["labels"][encoded["labels"] != IGNORED].tolist()
    assert tokens.convert_ids_to_tokens(learned) == ["▁Yes", "</s>"]


def test_a_prompt_by_the_default_template_is_how_a_training_row_begins():
    tokens = words_with_their_spaces()
    ours = LlavitProcessor(processor().image_processor, tokens, patch_size=8)
    prompt = ours.encode([user(text("Is it?"))], add_generation_prompt=True)["input_ids"].tolist()
    row = ours.encode([user(text("Is it?")), said("Yes")], return_labels=True)["input_ids"].tolist()
    assert row[: len(prompt)] == prompt


def test_labels_follow_generation_marks_where_the_template_has_them():
    template = (
        "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
    )
    ours = processor(template=template)
    encoded = ours.encode([user(text("What?")), said("A cat.")], return_labels=True)
    assert ours.decode(encoded["labels"][encoded["labels"] != IGNORED]) == "A cat."


def test_what_a_template_writes_behind_the_last_turn_only_does_not_hide_the_turns_before():
    template = (  # as that of Phi-3.5
        "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
    )
    turns = [user(text("One?")), said("1."), user(text("Two?")), said("2.")]
    rendered, spans = render_with_spans(processor(template), turns)
    assert [rendered[start:end].split("<|end|>")[0] for start, end in spans] == ["1.", "2."]
    assert rendered[spans[1][0] : spans[1][1]] == "2.<|end|>\n</s>"


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_remedy():
    template = (
        "{% for m in messages %}{% if loop.last or m['role'] != 'assistant' %}"
        "{{ m['content'] }}|{% endif %}{% endfor %}"
    )
    ours = processor(template=template)
    with pytest.raises(ValueError, match="generation"):
        render_with_spans(ours, [user(text("a")), said("b"), user(text("c")), said("d")])


def test_each_image_has_its_own_id_and_its_own_number_of_tokens():
    encoded = processor().encode([user(text("a "), image(), image("blue"), text(" b")), said("c")])
    assert encoded["pixel_values"].shape == (2, 3, SIDE, SIDE)
    ids = encoded["image_ids"]
    assert (ids == 0).sum() == (ids == 1).sum() == PER_IMAGE
    assert ((ids >= 0) == (encoded["input_ids"] == processor().image_token_id)).all()


def test_encode_and_apply_chat_template_give_the_same_tokens_and_pixels():
    ours = processor()
    messages = [user(text("see "), image(), text(" and "), image("blue")), said("ok"), user(text("then?"))]
    encoded = ours.encode(messages, add_generation_prompt=True)
    standard = ours.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(standard["input_ids"][0], encoded["input_ids"])
    assert torch.equal(standard["pixel_values"], encoded["pixel_values"])


def test_one_function_counts_tokens_everywhere():
    ours = processor()
    assert ours.image_seq_length == PER_IMAGE
    assert (
        ours._get_num_multimodal_tokens(image_sizes=[(30, 20), (8, 8)])["num_image_tokens"] == [PER_IMAGE] * 2
    )
    assert ours(images=[picture()], text="<image>")["input_ids"][0].count(ours.image_token_id) == PER_IMAGE


def test_a_text_only_conversation_has_no_pixels():
    assert "pixel_values" not in processor().encode([user(text("hi")), said("ho")])


@pytest.mark.parametrize("images", [None, [], [picture()], [picture()] * 3])
def test_a_wrong_number_of_images_says_expected_and_got(images):
    with pytest.raises(ValueError, match=rf"the text has 2 <image> tokens, {len(images or [])} images"):
        processor()(images=images, text="<image> and <image>")


def test_an_image_token_in_plain_text_is_named_with_its_sample():
    with pytest.raises(
        ValueError, match=r"sample 7: number of images: the text has 2 .* the messages have 1"
    ):
        processor().encode([user(image(), text("what does <image> mean?"))], name="sample 7")


def test_an_unreadable_image_is_named(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    for path in (broken, tmp_path / "missing.png"):
        with pytest.raises(ValueError, match=rf"sample 7: cannot read image .*{path.name}"):
            processor().encode([user({"type": "image", "image": str(path)}, text("?"))], name="sample 7")
    with pytest.raises(
        ValueError, match=r"expected an image as PIL\.Image, path, bytes or data URL, got int"
    ):
        processor().encode([user({"type": "image", "image": 3})])


def test_text_past_max_length_is_cut_but_an_image_never():
    ours = processor()
    messages = [user(image(), text("?")), said("a long answer")]
    full = ours.encode(messages, return_labels=True)
    length = len(full["input_ids"])
    cut = ours.encode(messages, return_labels=True, max_length=length - 3)
    assert torch.equal(cut["input_ids"], full["input_ids"][:-3])
    late = [user(text("a" * 20), image()), said("b")]
    with pytest.raises(
        ValueError, match=r"s1: expected at most max_length=20 tokens, got \d+; its images end at"
    ):
        ours.encode(late, return_labels=True, max_length=20, name="s1")
    with pytest.raises(ValueError, match="a prompt is not cut"):
        ours.encode(messages, max_length=length - 3)


def test_turns_that_the_template_refuses_are_an_error_that_names_the_sample():
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"
        "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    )
    turns = [{"role": "system", "content": "Be brief."}, user(text("Hi")), said("Hello.")]
    with pytest.raises(
        ValueError, match=r"17: the chat template refuses turns of system.*: no system prompt"
    ):
        processor(template).encode(turns, return_labels=True, name="17")


def test_nothing_to_learn_from_is_an_error_that_names_the_sample():
    with pytest.raises(ValueError, match="s2: nothing to learn from"):
        processor().encode([user(text("hi"))], return_labels=True, name="s2")


def test_nothing_to_learn_from_tells_what_is_cut_off_from_what_was_never_there():
    turns = [user(text("hi " * 50)), said("Hello.")]
    with pytest.raises(NothingLeft, match=r"s4: nothing to learn from: .* 20 tokens \(max_length=20\)"):
        processor().encode(turns, return_labels=True, max_length=20, name="s4")
    with pytest.raises(ValueError, match="s5: nothing to learn from") as error:
        processor().encode(turns[:1], return_labels=True, max_length=20, name="s5")
    assert error.type is ValueError


def test_a_turn_that_is_only_an_image_is_nothing_to_learn_from():
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
    )
    turns = [user(text("Draw it.")), {"role": "assistant", "content": [image()]}]
    with pytest.raises(ValueError, match="s3: nothing to learn from"):
        processor(template).encode(turns, return_labels=True, name="s3")


def test_the_processor_survives_saving(tmp_path):
    ours = processor()
    from tests.model.families import config_of

    ours.save_pretrained(tmp_path)
    config_of("llama").save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is LlavitProcessor
    messages = [user(text("see "), image()), said("ok")]
    for key, value in ours.encode(messages, return_labels=True).items():
        assert torch.equal(value, again.encode(messages, return_labels=True)[key]), key


def test_an_upright_picture_is_made_of_a_rotated_one(tmp_path):
    turned = Image.new("RGB", (4, 8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    from llavit.model.images import load_image

    assert load_image(tmp_path / "turned.jpg").size == (8, 4)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'].upper() }}: {% for p in m['content'] %}"
        "{% if p['type'] == 'image' %}<image>\n{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}",
        # The way of llava-hf/llava-1.5-7b-hf: nothing is written of a content that is a string.
        "{% for m in messages %}{{ m['role'].upper() }}: "
        "{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
        "{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}{{ p['text'] }} {% endfor %}{% endfor %}",
    ],
)
def test_a_llava_processor_loads_unchanged(template, tmp_path):
    ours = processor()
    llava = LlavaProcessor(
        ours.image_processor,
        ours.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    llava.save_pretrained(tmp_path)
    loaded = LlavitProcessor.from_pretrained(tmp_path)
    messages = [user(image(), text("What?"))]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    for key, value in llava.apply_chat_template(messages, **options).items():
        assert torch.equal(loaded.apply_chat_template(messages, **options)[key], value), key
    assert torch.equal(
        loaded.encode(messages)["input_ids"], llava.apply_chat_template(messages, **options)["input_ids"][0]
    )


def test_visual_tokens_in_what_the_assistant_says_are_not_learned():
    turns = [
        user(text("Draw it.")),
        {"role": "assistant", "content": [text("Here: "), image(), text(" Done.")]},
    ]
    encoded = processor().encode(turns, return_labels=True)
    visual = encoded["image_ids"] >= 0
    assert int(visual.sum()) == PER_IMAGE
    assert (encoded["labels"][visual] == IGNORED).all()
    assert (encoded["labels"] != IGNORED).any()


def test_a_batch_of_pixels_counts_as_many_images():
    pixels = torch.randint(0, 255, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    assert len(processor()(images=pixels, text=["<image> a", "<image> b"])["pixel_values"]) == 2


def test_every_way_in_gives_the_pixels_that_are_trained_on(tmp_path):
    own = processor()
    clear = Image.new("RGBA", (20, 30), (0, 0, 0, 0))
    deep = Image.frombytes("I;16", (20, 30), bytes(range(200)) * 6)
    turned = Image.new("RGB", (20, 30), "red")
    turned.paste("blue", (0, 0, 20, 15))
    exif = Image.Exif()
    exif[0x0112] = 6
    clear.save(tmp_path / "clear.png")
    deep.save(tmp_path / "deep.png")
    turned.save(tmp_path / "turned.png", exif=exif)
    for path in sorted(tmp_path.glob("*.png")):
        expected = own.pixel_values([path])
        opened = Image.open(path)
        parts = [
            {"type": "image", key: value} for key, value in (("path", str(path)), ("url", path.as_uri()))
        ]
        ways = [own(images=each, text="<image>", return_tensors="pt") for each in (opened, str(path))]
        ways += [
            own.apply_chat_template(
                [user(part, text("What?"))], tokenize=True, return_dict=True, return_tensors="pt"
            )
            for part in (*parts, {"type": "image", "image": opened})
        ]
        for way in ways:
            torch.testing.assert_close(way["pixel_values"], expected, msg=path.name)


def test_bytes_base64_and_web_addresses_give_the_pixels_that_are_trained_on(monkeypatch):
    from huggingface_hub.utils import httpx

    own = processor()
    file = io.BytesIO()
    Image.new("RGBA", (20, 20), (0, 0, 0, 128)).save(file, "BMP")  # base64 is one long run without a slash
    raw = file.getvalue()
    monkeypatch.setattr(httpx, "get", lambda url, **options: SimpleNamespace(content=raw))
    plain = base64.b64encode(raw).decode()
    in_lines = "data:image/bmp;base64," + base64.encodebytes(raw).decode()
    parts = [("image", raw), ("base64", plain), ("url", in_lines), ("url", "https://a.org/b.bmp")]
    for key, value in parts:
        chat = [user({"type": "image", key: value}, text("What?"))]
        asked = own.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
        called = own(images=value, text="<image>", return_tensors="pt")
        for way in (asked, called):
            assert torch.equal(way["pixel_values"], own.pixel_values([raw])), (key, value[:30])


def test_an_image_that_is_not_there_is_named_also_beside_text():
    with pytest.raises(ValueError, match=r"images: cannot read image 'gone.png': .*No such file"):
        processor()(images=["gone.png"], text="<image>")
