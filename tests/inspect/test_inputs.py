"""What analyses look at: conversations out of files, and names of models."""

import json

import pytest
from typer.testing import CliRunner

from llavit.cli import app
from llavit.inspect.inputs import model_names, one_image, read_messages


def test_messages_and_records_are_read_with_images_beside_the_file(tmp_path):
    messages = one_image("a/cat.jpg", "What?")
    wanted = one_image(str(tmp_path / "a/cat.jpg"), "What?")
    file = tmp_path / "m.json"
    file.write_text(json.dumps(messages))
    assert read_messages(file) == wanted
    record = {"image": "a/cat.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat?"}]}
    file.write_text(json.dumps(record))
    assert read_messages(file) == wanted


def test_what_is_no_conversation_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of messages"):
        read_messages(tmp_path / "none.json")
    file = tmp_path / "m.json"
    for text, message in [
        ("{", "expected JSON"),
        ("3", "got int"),
        ("[]", "non-empty list"),
        ('{"a": 1}', "fields"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_messages(file)


def test_models_are_named_by_what_tells_them_apart():
    assert model_names(["x/llava/instruct", "x/llavit/instruct"]) == ["llava/instruct", "llavit/instruct"]
    assert model_names(["a/b"]) == ["b"]
    assert model_names(["a/b", "a/b"]) == ["b (1)", "b (2)"]


def test_a_model_in_the_present_folder_has_that_folders_name(tmp_path, monkeypatch):
    (tmp_path / "runs" / "llavit").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs" / "llavit")
    assert model_names(["."]) == ["llavit"] and model_names([".."]) == ["runs"]
    assert model_names([".", "../../other/llavit"]) == ["runs/llavit", "other/llavit"]


@pytest.mark.parametrize(
    "command, message",
    [
        ("lens M --data D --find cat", "--find: no meaning without --image or --messages"),
        ("lens M --image i.png --limit 5 --split test", "--split and --limit: no meaning without --data"),
        ("mask M --messages m.json --question What?", "--question: no meaning beside --messages"),
        ("drift M --limit 5", "--limit: no meaning without --image, --messages or --data"),
        ("drift M --image i.png --limit 5", "--limit: no meaning without --data"),
        ("knockout M --block visual_v --layers 0-3", "--layers: no meaning where only projections"),
        ("lens M --image i.png --layers -5-3", "expected single numbers from the end"),
    ],
)
def test_options_that_would_be_left_out_of_account_are_refused(command, message):
    done = CliRunner().invoke(app, f"inspect {command}".split())
    assert done.exit_code == 2 and message in done.output


def test_layers_that_run_backwards_are_an_error_and_not_none():
    from llavit.cli.inspect import numbers

    assert numbers("3,5-7,-1") == [3, 5, 6, 7, -1]
    with pytest.raises(ValueError, match="the smaller number first, got '7-5'"):
        numbers("3,7-5")
